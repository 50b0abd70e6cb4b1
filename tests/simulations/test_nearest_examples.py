"""The public examples that a shared model sees as most alike: against scikit-learn's, by command
and in Python, and every way to ask wrongly.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from typer.testing import CliRunner

import fedgraft
from fedgraft.cli import app
from fedgraft.common.errors import UserError
from fedgraft.common.model.shared_model import SharedModel, load_shared_model
from fedgraft.common.statistics.nearest_neighbours import find_nearest
from tests.task_matrix import write_masks

PLAN: dict[str, Any] = {
    "name": "digits",
    "task": {
        "kind": "image-classification",
        "classes": ["zero", "one", "two"],
        "labels": [0, 1, 2],
    },
    "backbone": {"name": "cifar-resnet8", "image_size": 8},
    "adapter": {"method": "head"},
    "train": {"method": "closed-form"},
    "simulation": {"data": "sklearn:digits", "nodes": 2},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, six new digits, and public ones in class folders and without."""
    folder = tmp_path_factory.mktemp("nearest")
    fedgraft.simulate(PLAN, out=folder / "run", progress=False)
    digits: Any = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)
    np.savez(folder / "new.npz", images=images[:6])
    for place in ("flat", "none"):
        (folder / place).mkdir()
    for number in range(6, 40):
        image = Image.fromarray(images[number])
        named = folder / "classes" / str(digits.target[number])
        named.mkdir(parents=True, exist_ok=True)
        image.save(named / f"{number}.png")
        image.save(folder / "flat" / f"{number}.png")
    return folder


@pytest.fixture
def ask(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Type `fedgraft nearest` in that folder."""
    monkeypatch.chdir(home)

    def type_in(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["nearest", *arguments])

    return type_in


@pytest.fixture
def shared(home: Path) -> SharedModel:
    """The run's model."""
    return load_shared_model(home / "run")


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_they_are_those_of_scikit_learn(home: Path, shared: SharedModel) -> None:
    """Another distance, another order, or features that the head does not read."""
    digits: Any = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)[:, None]
    raw = torch.from_numpy(images[:300])
    vectors = shared.vectors(shared.preprocess(raw))
    found = find_nearest(vectors[:20], vectors[20:], count=7)
    features = vectors.numpy()
    head = shared.model.net.get_submodule(shared.model.solved_name)
    assert features.shape == (300, head.in_features)
    search = NearestNeighbors(n_neighbors=7, metric="cosine").fit(features[20:])
    distances, positions = search.kneighbors(features[:20])
    np.testing.assert_allclose(found.similarities, 1 - distances, atol=1e-5)
    assert np.mean(found.positions.numpy() == positions) > 0.98


def test_a_record_is_its_own_nearest_and_has_its_label(
    home: Path, ask: Callable[..., Result]
) -> None:
    """Names and labels of other rows than those that were compared."""
    done = ask("run", "new.npz", "--among", "sklearn:digits", "--count", "2", "--out", "near.csv")
    assert done.exit_code == 0, done.output
    assert "the nearest of sklearn:digits" in done.output
    rows = read_rows(home / "near.csv")
    assert list(rows[0]) == ["input", "rank", "example", "label", "similarity"]
    assert [row["rank"] for row in rows] == ["1", "2"] * 6
    first = rows[::2]
    assert [row["input"] for row in first] == [f"images[{number}]" for number in range(6)]
    # the plan calls the first three by a name
    assert [row["label"] for row in first] == ["zero", "one", "two", "3", "4", "5"]
    assert all(float(row["similarity"]) == pytest.approx(1, abs=1e-5) for row in first)


def test_public_examples_with_and_without_labels(home: Path, ask: Callable[..., Result]) -> None:
    """A folder of class folders tells the class; one of images has the same ones without."""
    assert ask("run", "new.npz", "--among", "classes", "--out", "named.csv").exit_code == 0
    assert ask("run", "new.npz", "--among", "flat", "--out", "plain.csv").exit_code == 0
    named = read_rows(home / "named.csv")
    plain = read_rows(home / "plain.csv")
    assert len(named) == len(plain) == 6 * 5
    for one, other in zip(named, plain, strict=True):
        assert Path(one["example"]).name == other["example"]
        assert not Path(one["example"]).is_absolute()
        assert one["similarity"] == other["similarity"]
        assert one["label"]
        assert not other["label"]


def test_rows_of_a_table(home: Path, ask: Callable[..., Result]) -> None:
    """The column of answers may be there, and is then the label; it must not be compared."""
    rng = np.random.default_rng(1)
    table = pd.DataFrame(rng.normal(size=(60, 3)).round(3), columns=["a", "b", "c"])
    table["target"] = np.where(table["a"] > 0, "yes", "no")
    table.to_csv(home / "rows.csv", index=False)
    table.drop(columns="target").to_csv(home / "bare.csv", index=False)
    task = {
        "kind": "tabular-classification",
        "classes": ["no", "yes"],
        "labels": ["no", "yes"],
        "columns": ["a", "b", "c"],
        "ranges": [{"columns": ["a", "b", "c"], "low": -2, "high": 2}],
    }
    simulation = {"data": [str(home / "rows.csv")], "partition": {"kind": "files"}}
    plan = {**PLAN, "task": task, "backbone": {"name": "mlp", "hidden": [8, 8]}}
    plan |= {"simulation": simulation, "aggregate": {"min_nodes": 1}}
    fedgraft.simulate(plan, out=home / "table", progress=False)
    for among in ("rows.csv", "bare.csv"):
        done = ask("table", "bare.csv", "--among", among, "--count", "1", "--out", f"{among}.csv")
        assert done.exit_code == 0, done.output
    named = read_rows(home / "rows.csv.csv")
    assert [row["label"] for row in named] == table["target"].tolist()
    assert all(float(row["similarity"]) == pytest.approx(1) for row in named)
    assert [row["example"] for row in read_rows(home / "bare.csv.csv")] == [
        f"row {number}" for number in range(1, 61)
    ]


def test_fewer_examples_than_asked_for_are_all_of_them(ask: Callable[..., Result]) -> None:
    done = ask("run", "new.npz", "--among", "new.npz", "--count", "9")
    assert done.exit_code == 0, done.output
    assert "images[5]" in done.output


def test_in_python_it_is_a_table(home: Path) -> None:
    """Arrays have numbers for names, and no labels."""
    model = fedgraft.load_shared_model(home / "run")
    with np.load(home / "new.npz") as archive:
        images = archive["images"][:, None]
    table = model.nearest(images[:2], among=images, count=3)
    assert isinstance(table, pd.DataFrame)
    assert table.columns.tolist() == ["input", "rank", "example", "label", "similarity"]
    assert table["example"].tolist()[::3] == [0, 1]
    by_name = model.nearest(home / "new.npz", among=str(home / "classes"), count=1)
    assert len(by_name) == 6
    assert set(by_name["label"]) <= {"zero", "one", "two", *map(str, range(3, 10))}


def test_nothing_of_a_record_is_kept(home: Path, ask: Callable[..., Result]) -> None:
    """Features on a disk are records that somebody may read back."""
    before = {path for path in home.rglob("*")}
    assert ask("run", "new.npz", "--among", "classes").exit_code == 0
    assert {path for path in home.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "new.npz", "--among", "classes"], "nowhere"),
        (["run", "nothing.npz", "--among", "classes"], "nothing.npz"),
        (["run", "new.npz", "--among", "nothing"], "--among nothing"),
        (["run", "new.npz", "--among", "none"], "none"),
        (["run", "none", "--among", "classes"], "none"),
        (["run", "new.npz", "--among", "broken"], "broken"),
        (["run", "new.npz", "--among", "sklearn:nothing"], "sklearn:"),
        (["run", "new.npz", "--among", "classes", "--out", "none/below/x.csv"], "x.csv"),
    ],
)
def test_what_cannot_be_read_is_said(
    home: Path, ask: Callable[..., Result], arguments: list[str], words: str
) -> None:
    """A traceback, or an empty table that says nothing is alike."""
    (home / "broken").mkdir(exist_ok=True)
    (home / "broken" / "a.png").write_bytes(b"no image")
    done = ask(*arguments)
    assert isinstance(done.exception, UserError)
    assert words in str(done.exception)


def test_a_count_of_none_is_refused_and_help_has_an_example(ask: Callable[..., Result]) -> None:
    assert ask("run", "new.npz", "--among", "classes", "--count", "0").exit_code == 2
    assert ask("run", "new.npz").exit_code == 2
    assert "fedgraft nearest runs/" in ask("--help").output
    assert "nearest" in CliRunner().invoke(app, ["--help"]).output


def test_a_question_of_places_is_refused(home: Path, ask: Callable[..., Result]) -> None:
    """The mean over an image's pixels would be called the image."""
    write_masks(home / "squares.npz", np.random.default_rng(1), 12)
    plan = {
        **PLAN,
        "task": {"kind": "image-segmentation", "classes": ["background", "square"]},
        "backbone": {"name": "cifar-resnet8", "image_size": 16},
        "simulation": {"data": [str(home / "squares.npz")], "partition": {"kind": "files"}},
        "aggregate": {"min_nodes": 1},
    }
    fedgraft.simulate(plan, out=home / "masks", progress=False)
    done = ask("masks", "squares.npz", "--among", "squares.npz")
    assert isinstance(done.exception, UserError)
    assert "image-segmentation" in str(done.exception)
