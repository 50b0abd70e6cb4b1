"""Records with labels that the plan does not name: left out where a person allows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.common.errors import UserError
from fedgraft.common.plan.number_section import NumberSection
from tests.records import open_records

XRAYS: dict[str, Any] = {"kind": "image-classification", "classes": ("normal", "pneumonia")}


def archive(path: Path, labels: list[Any]) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), np.uint8)
    np.savez(path, images=pixels, labels=np.array(labels))
    return path


def test_labels_outside_the_plans_list_are_told(tmp_path: Path) -> None:
    """117 of 200 rows were left out, and nobody was told."""
    path = archive(tmp_path / "x.npz", [0] * 43 + [1] * 40 + [2] * 60 + [3] * 57)
    with pytest.raises(UserError, match=r"117 of 200 records .*left out: 2 60, 3 57") as told:
        open_records(path=path, labels=(0, 1), **XRAYS)
    assert "data.labels_left_out: allow" in told.value.remedy
    records = open_records(path=path, labels=(0, 1), reading={"labels_left_out": "allow"}, **XRAYS)
    assert sum(map(len, records.splits.values())) == 83


def test_another_spelling_is_never_left_out(tmp_path: Path) -> None:
    """`Pneumonia` at one hospital is the plan's `pneumonia`; a number is no spelling of another."""
    path = archive(tmp_path / "x.npz", ["normal"] * 20 + ["pneumonia"] * 20 + ["PNEUMONIA"] * 9)
    with pytest.raises(UserError, match="'PNEUMONIA' is the plan's 'pneumonia'"):
        open_records(
            path=path,
            labels=("normal", "pneumonia"),
            reading={"labels_left_out": "allow"},
            **XRAYS,
        )
    signs = archive(tmp_path / "signs.npz", [0, 1, -1] * 10)
    records = open_records(path=signs, labels=(0, 1), reading={"labels_left_out": "allow"}, **XRAYS)
    assert records.labels.tolist() == [0, 1, -1] * 10


@pytest.mark.parametrize(
    ("classes", "labels", "wanted"),
    [
        (("1", "2", "3"), [1, 2, 3, 1], [0, 1, 2, 0]),
        (("1", "2", "3"), [1, 2, 2, 1], [0, 1, 1, 0]),
        (("0", "1"), [0, 1, 1, 0], [0, 1, 1, 0]),
        (("normal", "grade 1"), [0, 1, 1, 0], [0, 1, 1, 0]),
    ],
)
def test_classes_that_are_called_by_numbers(
    tmp_path: Path, classes: tuple[str, ...], labels: list[int], wanted: list[int]
) -> None:
    """Grade 1 was taught as grade 2, and 2 as 3: a number was the class's place, not its name."""
    path = archive(tmp_path / "x.npz", labels * 5)
    records = open_records(path=path, kind="image-classification", classes=classes)
    assert records.labels.tolist() == wanted * 5


def test_a_number_that_no_class_is_called(tmp_path: Path) -> None:
    """Classes 1, 2, 3 and a label 0: not the first of them."""
    path = archive(tmp_path / "x.npz", [0, 1, 2] * 5)
    with pytest.raises(UserError, match="label 0 is not one of the plan's 3 classes"):
        open_records(path=path, kind="image-classification", classes=("1", "2", "3"))


def test_rows_without_a_number_are_left_out_where_a_person_allows_it(tmp_path: Path) -> None:
    """Stays without a score that nobody was told of; or one empty cell that ends the run."""
    path = tmp_path / "stays.csv"
    lines = [f"{row},{row % 13 + 3 if row % 5 else ''}" for row in range(100)]
    path.write_text("\n".join(["age,score", *lines]) + "\n")
    task: dict[str, Any] = {
        "kind": "tabular-regression",
        "columns": ["age"],
        "target": "score",
        "number": NumberSection(low=3, high=15),
    }
    with pytest.raises(UserError, match="label is missing") as told:
        open_records(path=path, **task)
    assert "labels_left_out: allow" in str(told.value)
    records = open_records(path=path, reading={"labels_left_out": "allow"}, **task)
    assert sum(map(len, records.splits.values())) == 80
    for rows in records.splits.values():
        assert np.isfinite(records.labels[rows]).all()


def test_images_without_a_number_are_told_of(tmp_path: Path) -> None:
    """An archive in which half of the answers are empty, and a run on the other half."""
    path = archive(tmp_path / "x.npz", ["3", ""] * 20)
    task: dict[str, Any] = {"kind": "image-regression", "number": NumberSection(low=0, high=9)}
    with pytest.raises(UserError, match="20 of 40 records have no label"):
        open_records(path=path, **task)
    records = open_records(path=path, reading={"labels_left_out": "allow"}, **task)
    assert sum(map(len, records.splits.values())) == 20
