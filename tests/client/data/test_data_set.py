"""A hospital's data: real files, small files made here, and everything that may be wrong with
them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.client.data.choose_splits import (
    LabelledRows,
    SplitRule,
    by_content,
    choose_splits,
)
from fedgraft.client.data.data_set import Records
from fedgraft.client.readers.table_file import read_features
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch
from tests.records import open_records

DATA = Path(os.environ.get("FEDGRAFT_DATA") or Path(__file__).parents[3].parent / "shared" / "data")
HEART = [
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalach",
    "exang",
    "oldpeak",
    "slope",
    "ca",
    "thal",
]
XRAYS = {"kind": "image-classification", "classes": ("normal", "pneumonia")}
TABLE = {"kind": "tabular-classification", "classes": ("healthy", "ill")}


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is missing; set FEDGRAFT_DATA to the folder that holds the data")
    return path


def heart(name: str, **changes: Any) -> Records:
    wanted: dict[str, Any] = {**TABLE, "columns": HEART, "path": real(f"heart_disease/{name}.csv")}
    return open_records(**{**wanted, **changes})


def table(folder: Path, text: str, **changes: Any) -> Records:
    path = folder / "table.csv"
    path.write_text(text)
    wanted: dict[str, Any] = {**TABLE, "columns": ["age", "chol"], "path": path}
    return open_records(**{**wanted, **changes})


def images(path: Path, n: int = 12, labels: Any = None, **arrays: Any) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 8, 8), np.uint8)
    chosen = np.arange(n) % 2 if labels is None else np.array(labels)
    np.savez(path, **{"images": pixels, "labels": chosen, **arrays})
    return path


# ── real files ────────────────────────────────────────────────────────────────────────────────────


def test_pneumonia_has_its_own_splits_and_pixels() -> None:
    """Rows in another order than the file's would pair X-rays with other patients' labels."""
    path = real("pneumoniamnist.npz")
    records = open_records(path=path, **XRAYS)
    assert {name: len(rows) for name, rows in records.splits.items()} == {
        "train": 2428,
        "val": 270,
        "test": 468,
    }
    with np.load(path) as file:
        for split in ("train", "val", "test"):
            rows = records.splits[split]
            assert np.array_equal(records.read(rows)[:, 0].numpy(), file[f"{split}_images"])
            assert np.array_equal(records.labels[rows], file[f"{split}_labels"][:, 0])
    assert records.read(records.splits["train"][:3]).dtype == torch.uint8


@pytest.mark.parametrize(
    ("name", "rows", "missing"),
    [("cleveland", 303, 6), ("hungarian", 294, 782), ("switzerland", 123, 273), ("va", 200, 698)],
)
def test_heart_keeps_missing_values_as_nan(name: str, rows: int, missing: int) -> None:
    """A missing value read as 0 is a cholesterol of 0; the counts are of the files' empty cells."""
    import pandas

    records = heart(name)
    values = records.read(np.arange(rows))
    frame = pandas.read_csv(real(f"heart_disease/{name}.csv"))
    np.testing.assert_array_equal(values.numpy(), frame[HEART].to_numpy(np.float32))
    np.testing.assert_array_equal(records.labels, frame["target"])
    assert int(values.isnan().sum()) == missing
    assert len(records.splits["train"]) + len(records.splits["test"]) == rows
    assert len(records.splits["test"]) == pytest.approx(0.2 * rows, abs=2)
    for label in (0, 1):  # eight healthy patients in Switzerland: both sides must have some
        assert {label} <= set(records.labels[records.splits["test"]].tolist())


def test_digits_without_the_labels_that_the_plan_leaves_out() -> None:
    """Digits 5–9 are the task: 0–4 must be in no split, and 5 must become class 0."""
    from sklearn.datasets import load_digits

    records = open_records(
        path="sklearn:digits",
        kind="image-classification",
        classes=("five", "six", "seven", "eight", "nine"),
        labels=(5, 6, 7, 8, 9),
    )
    digits: Any = load_digits()
    rows = np.sort(np.concatenate(list(records.splits.values())))
    assert np.array_equal(rows, np.flatnonzero(digits.target >= 5))
    assert np.array_equal(records.labels[rows], digits.target[rows] - 5)
    pixels = records.read(rows[:1])
    assert pixels.shape == (1, 1, 8, 8)
    assert (pixels.dtype, int(pixels.max())) == (torch.uint8, 255)


def test_a_table_that_scikit_learn_ships() -> None:
    """Columns must come in the plan's order, not the file's."""
    from sklearn.datasets import load_breast_cancer

    columns = ["mean texture", "mean radius"]
    records = open_records(path="sklearn:breast_cancer", **{**TABLE, "columns": columns})
    cancer: Any = load_breast_cancer()
    wanted = cancer.data[:, [1, 0]].astype(np.float32)
    assert np.array_equal(records.read(np.arange(569)).numpy(), wanted)


# ── splits and fingerprints ───────────────────────────────────────────────────────────────────────


def test_the_split_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    """Exporting the table anew, sorted otherwise, would move tests into training."""
    header, *lines = real("heart_disease/va.csv").read_text().splitlines()
    shuffled = tmp_path / "va.csv"
    shuffled.write_text("\n".join([header, *lines[::-1]]))
    here, there = heart("va"), heart("va", path=shuffled)
    for split in ("train", "test"):
        one = here.read(here.splits[split]).nan_to_num(-1)
        other = there.read(there.splits[split]).nan_to_num(-1)
        assert sorted(one.tolist()) == sorted(other.tolist())
    assert here.fingerprint == there.fingerprint


def test_the_fingerprint_changes_with_any_value_or_label(tmp_path: Path) -> None:
    """Two data sets under one fingerprint would share one privacy budget and one cache."""
    text = "age,chol,target\n" + "".join(f"{20 + i},{200 + i},{i % 2}\n" for i in range(10))
    base = table(tmp_path, text).fingerprint
    assert table(tmp_path, text.replace("200", "2000")).fingerprint != base
    assert table(tmp_path, text.replace("20,200,0", "20,200,1")).fingerprint != base
    assert table(tmp_path, text.replace("20,200,0", "20.0,2e2,0")).fingerprint == base


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    copies=st.integers(1, 3),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_every_class_of_two_or_more_is_on_both_sides(
    labels: list[int], copies: int, fraction: float, seed: int
) -> None:
    """A tiny class wholly in the tests is never learnt; equal records on both sides are a leak."""
    digests = [bytes([i // copies, label]) for i, label in enumerate(labels)]
    tested = by_content(np.array(labels), digests, fraction, seed)
    for label in set(labels):
        mine = np.array(labels) == label
        distinct = len({d for d, m in zip(digests, mine, strict=True) if m})
        assert (mine & ~tested).any()
        assert (mine & tested).any() == (distinct >= 2)
    sides = {(digest, bool(side)) for digest, side in zip(digests, tested, strict=True)}
    assert len(sides) == len(set(digests))


@settings(max_examples=60, deadline=None)
@given(
    owners=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    known=st.booleans(),
    fraction=st.floats(0.01, 0.9),
    draw=st.randoms(use_true_random=False),
)
def test_validation_rows_come_out_of_training_alone(
    owners: list[int], known: bool, fraction: float, draw: Any
) -> None:
    """Tests that move with a choice, a patient on two sides, or another share where the file is
    sorted otherwise.
    """
    labels = np.array([draw.randint(0, 2) for _ in owners])
    patients = [f"p{owner}" for owner in owners] if known else None
    digests = [bytes([number]) for number in range(len(owners))]
    order = np.random.default_rng(0).permutation(len(owners))

    def split(share: float, at: np.ndarray) -> dict[str, set[int]]:
        moved = None if patients is None else [patients[row] for row in at]
        rows = LabelledRows("x", labels[at], [digests[row] for row in at], {}, moved)
        splits = choose_splits(rows, SplitRule(None, 0.2, 0, share))
        return {name: set(at[chosen].tolist()) for name, chosen in splits.items()}

    here = np.arange(len(owners))
    without = split(0.0, here)
    chosen = split(fraction, here)
    assert not without["val"]
    assert chosen["test"] == without["test"]
    assert chosen["train"] | chosen["val"] == without["train"]
    assert not chosen["train"] & chosen["val"]
    assert chosen["train"]
    assert split(fraction, order) == chosen
    if patients is not None:
        whose = {name: {patients[row] for row in rows} for name, rows in chosen.items()}
        assert not whose["val"] & (whose["train"] | whose["test"])


def test_a_files_own_validation_rows_are_used_as_they_are() -> None:
    """Training rows given away where the source has validation rows; or none kept where it has
    none.
    """
    path = real("pneumoniamnist.npz")
    own = open_records(path=path, **XRAYS)
    again = open_records(path=path, validation_fraction=0.3, **XRAYS)
    for name, rows in own.splits.items():
        assert np.array_equal(again.splits[name], rows)
    kept = heart("va", validation_fraction=0.25)
    plain = heart("va")
    assert np.array_equal(kept.splits["test"], plain.splits["test"])
    assert len(kept.splits["val"]) == pytest.approx(0.25 * len(plain.splits["train"]), abs=2)


def test_the_rows_file_picks_this_nodes_rows(tmp_path: Path) -> None:
    """A simulated node must see its own rows and no others."""
    path = images(tmp_path / "x.npz")
    np.savez(tmp_path / "rows.npz", train=np.array([3, 1]), test=np.array([7]))
    records = open_records(path=path, rows=tmp_path / "rows.npz", **XRAYS)
    assert {name: rows.tolist() for name, rows in records.splits.items()} == {
        "train": [1, 3],
        "val": [],
        "test": [7],
    }
    assert records.fingerprint != open_records(path=path, **XRAYS).fingerprint


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"train": np.array([0, 12])}, "row 12"),
        ({"train": np.array([-1])}, "row -1"),
        ({"train": np.array([0.5])}, "float64"),
        ({"train": np.array([0, 0])}, "twice"),
        ({"train": np.array([0]), "test": np.array([0])}, "twice"),
        ({"test": np.array([0])}, "no array 'train'"),
        ({"train": np.array([0]), "trian": np.array([1])}, "trian"),
    ],
)
def test_a_wrong_rows_file_is_refused(tmp_path: Path, arrays: dict, words: str) -> None:
    """NumPy would take −1 for the last row, and the same row on both sides inflates every
    metric.
    """
    np.savez(tmp_path / "rows.npz", **arrays)
    with pytest.raises(UserError, match=words):
        open_records(path=images(tmp_path / "x.npz"), rows=tmp_path / "rows.npz", **XRAYS)


def test_nodes_on_one_file_share_one_array(tmp_path: Path) -> None:
    """A thousand simulated nodes with an array each would not fit into memory; nor may one write
    into it.
    """
    path = images(tmp_path / "x.npz")
    first, second = open_records(path=path, **XRAYS), open_records(path=path, **XRAYS)
    assert first.source is second.source
    picked = first.read(np.array([0]))
    picked.zero_()
    assert int(second.read(np.array([0])).max()) > 0
    os.utime(path, ns=(1, 1))  # another file under this name
    assert open_records(path=path, **XRAYS).source is not first.source


# ── small nodes ───────────────────────────────────────────────────────────────────────────────────


def test_a_node_with_one_class(tmp_path: Path) -> None:
    """A hospital without healthy patients still takes part."""
    records = open_records(path=images(tmp_path / "x.npz", labels=[1] * 12), **XRAYS)
    assert set(records.labels.tolist()) == {1}
    assert (len(records.splits["train"]), len(records.splits["test"])) == (10, 2)


@pytest.mark.parametrize(("labels", "sizes"), [([0, 1], (2, 0)), ([1, 1], (1, 1))])
def test_a_node_with_two_rows(tmp_path: Path, labels: list[int], sizes: tuple[int, int]) -> None:
    """Two rows are no reason to crash: something to train on goes first."""
    records = open_records(path=images(tmp_path / "x.npz", n=2, labels=labels), **XRAYS)
    assert (len(records.splits["train"]), len(records.splits["test"])) == sizes


def test_no_rows_of_the_task_is_an_error(tmp_path: Path) -> None:
    """Training on nothing would divide by zero later, far from the cause."""
    path = images(tmp_path / "x.npz")
    with pytest.raises(UserError, match="no training examples") as caught:
        open_records(path=path, labels=(7, 8), reading={"labels_left_out": "allow"}, **XRAYS)
    assert "0, 1" in caught.value.remedy


# ── images ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "shape", [(4, 8, 9), (4, 8, 9, 1), (4, 1, 8, 9), (4, 8, 9, 3), (4, 3, 8, 9)]
)
def test_grey_and_colour_in_any_layout(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Channels last read as channels first would be noise to the backbone."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = images(tmp_path / "x.npz", n=4, images=pixels)
    found = open_records(path=path, **XRAYS).read(np.arange(4)).numpy()
    if 3 not in shape:
        wanted = pixels.reshape(4, 1, 8, 9)
    else:
        wanted = np.stack(
            [pixels[..., c] if shape[3] == 3 else pixels[:, c] for c in range(3)], axis=1
        )
    assert np.array_equal(found, wanted)


def test_other_number_types_of_pixels(tmp_path: Path) -> None:
    """int64 pixels are common in archives; fractions beyond 0–1 are not pixels."""
    whole = np.arange(4 * 64).reshape(4, 8, 8)
    assert (
        open_records(path=images(tmp_path / "a.npz", n=4, images=whole), **XRAYS)
        .read(np.arange(4))
        .dtype
        == torch.uint8
    )
    part = images(tmp_path / "b.npz", n=4, images=whole / 255)
    assert open_records(path=part, **XRAYS).read(np.arange(4)).dtype == torch.float32
    for wrong in (whole / 100, whole - 1, np.full((4, 8, 8), np.nan), whole + 1j):
        with pytest.raises(UserError, match=r"float|int64|complex"):
            open_records(path=images(tmp_path / "c.npz", n=4, images=wrong), **XRAYS)


def test_image_folders(tmp_path: Path) -> None:
    """Class folders give the labels; sizes may differ; a truncated file is counted and left out."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number, name in enumerate(["normal", "pneumonia"] * 5):
        (tmp_path / name).mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (16 + number, 20), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name / f"{number}.{'png' if number % 3 else 'jpg'}")
    whole = (tmp_path / "normal" / "0.jpg").read_bytes()
    (tmp_path / "normal" / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pneumonia" / "broken.png").write_bytes(
        (tmp_path / "pneumonia" / "1.png").read_bytes()[:-30]
    )
    (tmp_path / "normal" / "notes.txt").write_text("not an image")

    records = open_records(path=tmp_path, max_unreadable=0.2, **XRAYS)
    assert records.skipped == 2
    assert sorted(records.labels.tolist()) == [0] * 5 + [1] * 5
    every = np.arange(10)
    with pytest.raises(UserError, match="several sizes"):
        records.read(every)
    squares = records.source.read(every, lambda raw: Batch({"image": raw[..., :16, :16].float()}))
    assert squares.only.shape == (10, 1, 16, 16)
    lone = records.read(every[:1])
    with Image.open(tmp_path / "normal" / "0.jpg") as image:
        assert np.array_equal(lone[0, 0].numpy(), np.asarray(image))


def test_image_folders_with_their_own_splits(tmp_path: Path) -> None:
    """train/ and test/ as folders are the data's split, not two classes."""
    from PIL import Image

    for split, count in (("train", 3), ("test", 2)):
        for name in ("normal", "pneumonia"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.effect_noise((8, 8), 90).convert("RGB")
                image.save(tmp_path / split / name / f"{i}.png")
    records = open_records(path=tmp_path, **XRAYS)
    assert {name: len(rows) for name, rows in records.splits.items()} == {
        "train": 6,
        "val": 0,
        "test": 4,
    }
    assert records.read(records.splits["test"]).shape == (4, 3, 8, 8)


# ── what may be wrong ─────────────────────────────────────────────────────────────────────────────


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    """Unpickling runs code of whoever wrote the file."""
    marker = tmp_path / "was-run"

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(marker),)

    path = images(tmp_path / "x.npz", labels=None, extra=np.array([Bomb()], object))
    with pytest.raises(UserError, match="pickled"):
        open_records(path=path, **XRAYS)
    assert not marker.exists()


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "missing", "folder"])
def test_a_corrupt_archive_is_named(tmp_path: Path, damage: str) -> None:
    """Any way of being broken ends in one message with the file's name, not in a traceback."""
    path = images(tmp_path / "x.npz", n=50)
    content = path.read_bytes()
    if damage == "flipped":  # inside the pixels: the archive's checksum finds it
        path.write_bytes(content[:500] + bytes([content[500] ^ 255]) + content[501:])
    elif damage in ("missing", "folder"):
        path.unlink()
        if damage == "folder":
            path.mkdir()
    else:
        path.write_bytes(
            {"empty": b"", "text": b"no archive", "cut": content[: len(content) // 2]}[damage]
        )
    with pytest.raises(UserError) as caught:
        open_records(path=path, format="npz", **XRAYS)
    assert "x.npz" in str(caught.value)
    assert caught.value.remedy


def test_arrays_of_other_names_or_lengths(tmp_path: Path) -> None:
    """Labels that do not belong to the images one to one must not be cut to fit."""
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(UserError, match="no array 'images'; found x"):
        open_records(path=tmp_path / "a.npz", **XRAYS)
    with pytest.raises(UserError, match="12 images"):
        open_records(path=images(tmp_path / "b.npz", labels=[0, 1]), **XRAYS)
    # several labels an image are a question of its own
    with pytest.raises(UserError, match="is not one of the plan's 2 classes"):
        open_records(path=images(tmp_path / "c.npz", labels=np.zeros((12, 14))), **XRAYS)


def test_a_label_outside_the_list(tmp_path: Path) -> None:
    """The wrong number of classes in the plan; an index beyond the head's outputs crashes in
    training.
    """
    path = images(tmp_path / "x.npz", labels=[0, 1, 2] * 4)
    with pytest.raises(UserError, match="label 2 is not one of the plan's 2 classes") as caught:
        open_records(path=path, **XRAYS)
    assert "image 2" in caught.value.where
    assert "0, 1, 2" in caught.value.remedy
    left = open_records(path=path, labels=(0, 2), reading={"labels_left_out": "allow"}, **XRAYS)
    assert left.labels.tolist() == [0, -1, 1] * 4


@pytest.mark.parametrize(
    "cell", ["high", "inf", "-Infinity", "1e400", "1e39", "-1e38", "nan", "1_000", "0x10", "1,5"]
)
def test_what_is_not_a_number_is_named_by_line_and_column(tmp_path: Path, cell: str) -> None:
    """Text or infinity in one cell poisons every gradient of the node; the engineer must find the
    cell.
    """
    text = f'age,chol,target\n50,200,0\n51,"{cell}",1\n'
    with pytest.raises(UserError, match="column 'chol'") as caught:
        table(tmp_path, text)
    assert caught.value.where.endswith("table.csv:3")
    assert "empty" in caught.value.remedy


def test_several_bad_cells_are_told_at_once(tmp_path: Path) -> None:
    """One mistake a run makes a long morning; a wrong file must not print a million."""
    bad = table_error(tmp_path, "age,chol,target\nx,200,0\n51,y,1\n52,3,\n")
    assert all(
        words in str(bad)
        for words in ("table.csv:2", "table.csv:3", "table.csv:4", "label is missing")
    )
    many = table_error(tmp_path, "age,chol,target\n" + "x,y,0\n" * 1000)
    assert len(str(many).splitlines()) < 50
    unlabelled = table_error(tmp_path, "age,chol,target\n" + "1,2,\n" * 1000)
    assert len(str(unlabelled).splitlines()) < 50


def table_error(folder: Path, text: str, **changes: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        table(folder, text, **changes)
    return caught.value


def test_a_missing_column_is_named_with_the_nearest() -> None:
    """A column that one hospital spells otherwise, or lacks."""
    with pytest.raises(UserError, match="no column 'thalac'; did you mean 'thalach'"):
        heart("va", columns=["age", "thalac"])
    with pytest.raises(UserError, match="no column 'outcome'"):
        heart("va", target="outcome")


def test_an_empty_column_is_all_missing(tmp_path: Path) -> None:
    """The hospital does not measure it: allowed, unlike a column that is not there."""
    values = table(tmp_path, "age,chol,target\n50,,0\n51,  ,1\n52,,0\n").read(np.arange(3))
    assert values[:, 1].isnan().all()
    assert not values[:, 0].isnan().any()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("age,chol,target\n", "no rows"),
        ("age,chol,target\n50,200,0\n51,200\n", "table.csv:3: 2 cells"),
        ("age,chol,age,target\n1,2,3,0\n", "'age' is there twice"),
        ('age,chol,target\n50,"200,0\n', "cannot be read"),
        ("age,chol,target\n50,200,7\n", "label 7 is not one"),
    ],
)
def test_tables_of_the_wrong_shape(tmp_path: Path, text: str, words: str) -> None:
    """A shifted row would put one column's values into another without a word."""
    assert words in str(table_error(tmp_path, text))


def test_tables_as_other_programs_write_them(tmp_path: Path) -> None:
    """A byte-order mark, spaces after commas, blank lines and labels as names or 1.0."""
    text = (
        "\ufeffage, chol, note, target\n50, 200, any text, ill\n\n51, 210, , 0.0\n52,220,,healthy\n"
    )
    records = table(tmp_path, text)
    assert records.labels.tolist() == [1, 0, 0]
    assert records.read(np.arange(3))[:, 1].tolist() == [200, 210, 220]
    assert records.column("note") == ["any text", "", ""]
    binary = tmp_path / "latin.csv"
    binary.write_bytes("age,chol,target\n50,200,é".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.csv"):
        open_records(**{**TABLE, "columns": ["age"], "path": binary})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path": "/nowhere/x.npz"}, "no such file"),
        ({"path": "/nowhere/x"}, "no such file or folder"),
        ({"path": "sklearn:faces"}, "sklearn:digits"),
        ({"path": "sklearn:iris"}, "a table, but"),
        ({"path": __file__}, "unknown format '.py'"),
    ],
)
def test_data_that_is_not_there_or_of_another_kind(changes: dict, words: str) -> None:
    """A wrong path must be told before anything is trained."""
    with pytest.raises(UserError) as caught:
        open_records(**{**XRAYS, **changes})
    assert words in str(caught.value)


def test_features_for_prediction_need_no_label(tmp_path: Path) -> None:
    """Whom the model is asked about has no label yet; mistakes are told as in training."""
    path = tmp_path / "new.csv"
    path.write_text("chol,age\n200,50\n,51\n")
    np.testing.assert_array_equal(read_features(path, ["age", "chol"]), [[50, 200], [51, np.nan]])
    path.write_text("chol,age\n200,old\n")
    with pytest.raises(UserError, match="column 'age'"):
        read_features(path, ["age", "chol"])


# ── categories ────────────────────────────────────────────────────────────────────────────────────

SEXED = {"columns": ["age", "sex"], "categories": {"sex": ("f", "m", 3)}}


def test_categories_become_one_input_a_value(tmp_path: Path) -> None:
    """Hospitals that number words by their own order would send each other another meaning of the
    same input.
    """
    text = "sex,age,target\nm,50,0\nf,51,1\n3.0,52,0\n,53,1\nf,,0\n"
    nan = np.nan
    wanted = [[50, 0, 1, 0], [51, 1, 0, 0], [52, 0, 0, 1], [53, nan, nan, nan], [nan, 1, 0, 0]]
    records = table(tmp_path, text, **SEXED)
    np.testing.assert_array_equal(records.read(np.arange(5)), np.array(wanted, np.float32))
    np.testing.assert_array_equal(
        read_features(tmp_path / "table.csv", ["age", "sex"], {"sex": ("f", "m", 3)}), wanted
    )
    other = table(tmp_path, text, columns=["age", "sex"], categories={"sex": ("m", "f", 3)})
    assert other.fingerprint != records.fingerprint


def test_an_unknown_category_is_missing_and_many_are_another_spelling(tmp_path: Path) -> None:
    """An odd value is missing where a person says so, and not before; a column that says `male`
    where the plan says `m` trains on nothing, whatever they say.
    """
    text = "sex,age,target\nm,50,0\nf,51,1\ndivers,52,0\n"
    with pytest.raises(UserError, match=r"1 of 3 values are not among.*'divers' 1") as caught:
        table(tmp_path, text, **SEXED)
    assert "data.unknown_categories: missing" in caught.value.remedy
    missing = {"unknown_categories": "missing"}
    records = table(tmp_path, text, reading=missing, **SEXED)
    assert records.read(np.array([2]))[0, 1:].isnan().all()
    assert records.source.unknown == {"sex": 1}
    spelt = "sex,age,target\nmale,50,0\nfemale,51,1\nm,52,0\n"
    for reading in ({}, missing):
        with pytest.raises(UserError, match=r"2 of 3 values .*'male' 1, 'female' 1") as caught:
            table(tmp_path, spelt, reading=reading, **SEXED)
        assert "f, m, 3" in caught.value.remedy
        assert "unknown_categories" not in caught.value.remedy
    with pytest.raises(UserError, match=r"task\.categories"):
        table(tmp_path, "sex,age,target\nm,50,0\n", columns=["age", "sex"])


def test_a_parquet_table_is_its_csv(tmp_path: Path) -> None:
    """The same rows from another file must be the same records: numbers, words, labels, holes."""
    import pandas

    frame = pandas.DataFrame(
        {
            "age": [50.25, None, 1e-3, 7.0],
            "sex": ["m", None, "f", "m"],
            "smokes": [True, False, True, False],
            "target": [0, 1, 1, 0],
        }
    )
    frame.to_parquet(tmp_path / "table.parquet")
    options = {"columns": ["age", "sex", "smokes"], "categories": {"sex": ("f", "m")}}
    one = open_records(path=tmp_path / "table.parquet", **TABLE, **options)
    other = table(
        tmp_path, "age,sex,smokes,target\n50.25,m,1,0\n,,0,1\n0.001,f,1,1\n7,m,0,0\n", **options
    )
    np.testing.assert_array_equal(one.read(np.arange(4)), other.read(np.arange(4)))
    assert one.fingerprint == other.fingerprint
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        open_records(path=tmp_path / "broken.parquet", **TABLE, **options)


# ── 16 bits ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_reach_the_backbone(tmp_path: Path, suffix: str) -> None:
    """16-bit X-rays cut to 8 lose what radiologists see; taken as fractions of 255 they are 257
    times too bright.
    """
    from PIL import Image

    from fedgraft.common.inputs.image import for_images

    pixels = np.random.default_rng(0).integers(0, 65536, (6, 16, 16)).astype(np.uint16)
    for number, image in enumerate(pixels):
        place = tmp_path / ("normal", "pneumonia")[number % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.{suffix}")
    records = open_records(path=tmp_path, **XRAYS)
    found = records.read(np.arange(6))
    assert found.dtype == torch.uint16
    assert np.array_equal(found[:, 0].numpy(), pixels[[0, 2, 4, 1, 3, 5]])
    ready = records.prepare(np.arange(6), for_images(16)).only
    wanted = (pixels[[0, 2, 4, 1, 3, 5]] / 65535 - 0.456) / 0.224
    np.testing.assert_allclose(ready[:, 1], wanted, atol=1e-5)


def test_values_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    """Cast to 16 bits, 65536 would be black."""
    from PIL import Image

    (tmp_path / "normal").mkdir()
    for number in range(3):
        Image.fromarray(np.full((8, 8), 65536, np.int32)).save(
            tmp_path / "normal" / f"{number}.tif"
        )
    with pytest.raises(UserError, match="8- or 16-bit"):
        open_records(path=tmp_path, **XRAYS).read(np.arange(1))
