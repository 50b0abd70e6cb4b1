"""Manifests, patients and many files: who is on which side, what is left out, what is remembered,
what it costs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedgraft.client.data import data_set as data
from fedgraft.client.data.choose_splits import by_patient
from fedgraft.client.data.data_set import Records
from fedgraft.client.readers import looked_at, stored
from fedgraft.common.errors import UserError
from tests.records import open_records

XRAYS = {"kind": "image-classification", "classes": ("normal", "pneumonia")}


def write_images(folder: Path, count: int) -> list[np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = list(np.random.default_rng(0).integers(0, 256, (count, 8, 8), np.uint8))
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return pixels


def manifest(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pandas

    frame = pandas.DataFrame(rows)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


def listed(count: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "path": f"xrays/{n:03}.png",
            "label": n % 2,
            **{key: make(n) for key, make in more.items()},
        }
        for n in range(count)
    ]


# ── manifests ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_manifest_in_its_own_order_with_its_own_splits(tmp_path: Path, suffix: str) -> None:
    """Labels paired with other images than their own, or the file's split made anew, are found
    nowhere later.
    """
    pixels = write_images(tmp_path / "xrays", 20)
    rows = listed(
        20, patient=lambda n: f"p{n // 2}", split=lambda n: ("train", "valid", "test")[n // 2 % 3]
    )
    records = open_records(path=manifest(tmp_path / f"list{suffix}", rows[::-1]), **XRAYS)
    assert records.labels.tolist() == [row["label"] for row in rows[::-1]]
    assert np.array_equal(records.read(np.arange(20))[:, 0].numpy(), np.stack(pixels[::-1]))
    assert records.column("patient") == [f"p{n // 2}" for n in range(19, -1, -1)]
    assert {name: len(split) for name, split in records.splits.items()} == {
        "train": 8,
        "val": 6,
        "test": 6,
    }
    assert records.source.place(0).endswith(f"list{suffix}:{2 if suffix == '.csv' else 1}")


def test_columns_of_other_names_absolute_paths_and_labels_as_words(tmp_path: Path) -> None:
    """Hospitals' lists have names of their own: node.yaml says which is which."""
    write_images(tmp_path / "xrays", 6)
    rows = [
        {
            "Image Index": str(tmp_path / "xrays" / f"{n:03}.png"),
            "Finding": ("normal", "pneumonia")[n % 2],
            "MRN": n,
        }
        for n in range(6)
    ]
    path = manifest(tmp_path / "list.csv", rows)
    records = open_records(
        path=path, manifest=("Image Index", "Finding", "fold"), patient="MRN", **XRAYS
    )
    assert records.labels.tolist() == [0, 1] * 3
    assert records.owners == [str(n) for n in range(6)]
    with pytest.raises(UserError, match="no column 'path'") as caught:
        open_records(path=path, **XRAYS)
    assert "data.columns" in caught.value.remedy
    with pytest.raises(UserError, match="no column 'mrn'; did you mean 'MRN'"):
        open_records(path=path, manifest=("Image Index", "Finding", "fold"), patient="mrn", **XRAYS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": ""}, "no path"),
        ({"path": "xrays/../xrays/000.png"}, "of line 2 once more"),
        ({"label": ""}, "label is missing"),
        ({"split": "holdout"}, "'holdout' is no split"),
        ({"split": ""}, "no split"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path: Path, change: dict, words: str) -> None:
    """The same image twice is one too many in every guarantee; a row of no split must not
    vanish.
    """
    write_images(tmp_path / "xrays", 6)
    rows = [
        {key: str(value) for key, value in row.items()}
        for row in listed(6, split=lambda n: "train")
    ]
    rows[3] |= change
    with pytest.raises(UserError, match=words) as caught:
        open_records(path=manifest(tmp_path / "list.csv", rows), **XRAYS)
    assert caught.value.where.endswith("list.csv:5")


def test_files_that_are_not_there_are_counted(tmp_path: Path) -> None:
    """An archive that has moved on: some are left out, many are an error, and no path is told."""
    write_images(tmp_path / "xrays", 98)
    records = open_records(
        path=manifest(tmp_path / "list.csv", listed(99)), max_unreadable=0.02, **XRAYS
    )
    assert (records.skipped, len(records.labels)) == (1, 98)
    with pytest.raises(
        UserError, match=r"2 of 100 files cannot be used \(2: no such file"
    ) as caught:
        open_records(path=manifest(tmp_path / "list.csv", listed(100)), **XRAYS)
    assert "098" not in str(caught.value)


# ── patients ──────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=100, deadline=None)
@given(
    owners=st.lists(st.integers(0, 12), min_size=1, max_size=80),
    fraction=st.floats(0.05, 0.9),
    seed=st.integers(0, 5),
    draw=st.randoms(use_true_random=False),
)
def test_no_patient_is_on_both_sides(
    owners: list[int], fraction: float, seed: int, draw: Any
) -> None:
    """Two X-rays of one patient, one trained on and one tested on, make any model look good."""
    patients = [f"p{owner}" for owner in owners]
    labels = np.array([draw.randint(0, 2) for _ in owners])
    tested = by_patient(labels, patients, fraction, seed)
    sides = {(patient, bool(side)) for patient, side in zip(patients, tested, strict=True)}
    assert len(sides) == len(set(patients))
    assert not tested.all()
    order = np.random.default_rng(seed).permutation(
        len(owners)
    )  # the same, however the file is sorted
    again = by_patient(labels[order], [patients[at] for at in order], fraction, seed)
    assert np.array_equal(again, tested[order])


def test_the_share_is_kept_where_patients_allow_it() -> None:
    """200 patients of 1–5 images, two classes: the tests are a fifth of each class, to one
    patient's images.
    """
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 6, 200)
    patients = [f"p{n}" for n, size in enumerate(sizes) for _ in range(size)]
    labels = np.repeat(np.arange(200) % 2, sizes)
    tested = by_patient(labels, patients, 0.2, seed=0)
    for label in (0, 1):
        assert abs(tested[labels == label].sum() - 0.2 * (labels == label).sum()) <= 5
    whale = by_patient(np.zeros(12, int), ["a"] * 6 + ["b"] * 6, 0.1, seed=0)
    assert whale.sum() == 6  # larger than the share, but something must be tested on


def test_splits_of_a_table_by_patient_and_a_patient_in_two_splits(tmp_path: Path) -> None:
    """Visits of one patient are one person's; a split that was made by image must be told."""
    table = {"kind": "tabular-classification", "classes": ("no", "yes"), "columns": ["age"]}
    path = tmp_path / "visits.csv"
    path.write_text(
        "age,patient,target\n" + "".join(f"{n},p{n // 3},{n // 3 % 2}\n" for n in range(60))
    )
    records = open_records(path=path, **table)
    for split in ("train", "test"):
        assert {row // 3 * 3 for row in records.splits[split]} <= set(
            records.splits[split].tolist()
        )
    np.savez(tmp_path / "rows.npz", train=np.arange(31), test=np.arange(31, 60))
    with pytest.raises(UserError, match="1 patients are in train and in test"):
        open_records(path=path, rows=tmp_path / "rows.npz", **table)
    path.write_text(path.read_text().replace("5,p1,", "5,,"))
    with pytest.raises(UserError, match="1 of 60 records without a patient"):
        open_records(path=path, **table)


# ── what is remembered ────────────────────────────────────────────────────────────────────────────


def forget() -> None:
    data.SOURCES.clear()


def test_files_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message starts a process: reading all files for each would take hours. A changed file is
    read again.
    """
    write_images(tmp_path / "data" / "normal", 10)
    write_images(tmp_path / "data" / "pneumonia", 10)
    (tmp_path / "data" / "normal" / "x.png").write_bytes(b"no image")
    looked: list[int] = []
    examine = looked_at.examine

    def count(*given: Any) -> Any:
        looked.append(1)
        return examine(*given)

    monkeypatch.setattr(looked_at, "examine", count)

    def opened(**options: Any) -> Records:
        forget()
        looked.clear()
        wanted: dict[str, Any] = {
            "path": tmp_path / "data",
            "cache": tmp_path / "seen",
            "max_unreadable": 0.1,
        }
        return open_records(**{**wanted, **options}, **XRAYS)

    first = opened()
    assert len(looked) == 21
    again = opened()
    assert not looked
    assert (again.fingerprint, again.skipped, again.source.problems) == (
        first.fingerprint,
        first.skipped,
        first.source.problems,
    )
    assert opened(cache=None).fingerprint == first.fingerprint
    changed = tmp_path / "data" / "normal" / "000.png"
    before = changed.stat()
    changed.write_bytes(
        (tmp_path / "data" / "normal" / "001.png")
        .read_bytes()
        .ljust(before.st_size)[: before.st_size]
    )
    os.utime(
        changed, ns=(before.st_atime_ns, before.st_mtime_ns)
    )  # the same size and time: not the same file
    assert opened().fingerprint != first.fingerprint
    assert len(looked) == 1
    (memory,) = (tmp_path / "seen").iterdir()
    assert memory.stat().st_mode & 0o077 == 0
    assert b"000.png" not in memory.read_bytes()
    memory.write_bytes(memory.read_bytes()[:100])
    opened()
    assert len(looked) == 21


@pytest.mark.exhaustive
def test_a_hundred_thousand_files_in_flat_memory(tmp_path: Path) -> None:
    """Read whole they would be 1.2 GB: what is held must not grow with their size, nor opening take
    minutes.

    The files are links to a few hundred images of 64×64: 100,000 of them, prepared, are 4.9 GB.
    """
    write_images(tmp_path / "few", 200)
    for number in range(200):
        Image.effect_noise((64, 64), 90).save(tmp_path / "few" / f"{number:03}.png")
    for label in ("normal", "pneumonia"):
        (tmp_path / "data" / label).mkdir(parents=True)
    for number in range(100_000):
        label = ("normal", "pneumonia")[number % 2]
        os.link(
            tmp_path / "few" / f"{number % 200:03}.png",
            tmp_path / "data" / label / f"{number:06}.png",
        )
    script = """
import json, re, sys, time
from pathlib import Path
import torch
from fedgraft.client.data.examples import shuffle_batches
from fedgraft.client.data.split import Split
from tests.records import open_records
from fedgraft.common.inputs.image import for_images
folder = Path(sys.argv[1])
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
told = {"before": peak()}
began = time.perf_counter()
records = open_records(
    path=folder / "data", cache=folder / "seen", kind="image-classification",
    classes=("normal", "pneumonia")
)
told |= {"seconds": time.perf_counter() - began, "opened": peak(), "rows": len(records.labels)}
split = Split(records, records.splits["train"], for_images(64))
for number, _ in enumerate(shuffle_batches(split, 256, torch.Generator().manual_seed(0))):
    if number == 20:
        break
told["read"] = peak()
print(json.dumps(told))
"""
    told = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=True
            ).stdout
        )
        for _ in range(2)
    ]
    first, again = told
    assert first["rows"] == again["rows"] == 100_000
    assert first["opened"] - first["before"] < 300  # MiB; labels, digests and names
    assert first["read"] - first["opened"] < 150
    assert again["seconds"] < 60  # a second or two by itself; reading them took 10


# ── large archives ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("layout", ["n h w", "n h w c", "n c h w"])
def test_rows_left_in_the_archive_are_those_that_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """A row read from a wrong place in the file is another patient's; one split large and one small
    is both ways.
    """
    rng = np.random.default_rng(0)
    shape = {"n h w": (9, 7), "n h w c": (9, 7, 3), "n c h w": (3, 9, 7)}[layout]
    arrays: dict[str, Any] = {}
    for split, count in (("train", 50), ("test", 7)):
        arrays[f"{split}_images"] = rng.integers(0, 65536, (count, *shape)).astype(np.uint16)
        arrays[f"{split}_labels"] = np.arange(count) % 2
    np.savez(tmp_path / "x.npz", allow_pickle=False, **arrays)
    loaded = open_records(path=tmp_path / "x.npz", **XRAYS)
    forget()
    monkeypatch.setattr(stored, "LARGE", 2_000)
    left = open_records(path=tmp_path / "x.npz", **XRAYS)
    taken: list[int] = []
    take = stored.StoredRows.take
    monkeypatch.setattr(
        stored.StoredRows, "take", lambda self, rows: taken.append(len(rows)) or take(self, rows)
    )
    rows = rng.permutation(57)
    assert np.array_equal(left.read(rows).numpy(), loaded.read(rows).numpy())
    assert 50 in taken
    assert left.fingerprint == loaded.fingerprint
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[900] ^= 255
    (tmp_path / "x.npz").write_bytes(content)
    forget()
    with pytest.raises(UserError, match="cannot be read"):
        open_records(path=tmp_path / "x.npz", **XRAYS)


@pytest.mark.slow
def test_a_large_archive_in_flat_memory(tmp_path: Path) -> None:
    """400 MB of images in one file, opened and read through: they are never all in memory."""
    images = np.random.default_rng(0).integers(0, 256, (100_000, 64, 64), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(100_000) % 2)
    script = """
import re, sys
from pathlib import Path
import numpy as np
import torch
from tests.records import open_records
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
classes = ("normal", "pneumonia")
records = open_records(path=sys.argv[1], kind="image-classification", classes=classes)
for start in range(0, 100_000, 500):
    records.read(np.arange(start, start + 500))
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x.npz")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 150  # MiB
