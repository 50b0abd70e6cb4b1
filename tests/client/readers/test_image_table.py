"""Lists of images with columns: each image keeps its own row."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgraft.client.data.data_set import DataSource, Records, open_records
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image import for_images
from fedgraft.common.inputs.image_and_table import ROW, PairPreparation
from fedgraft.common.plan.task_section import TaskSection

HEADER = ("path", "label", "age", "sex")


def task(**changes: object) -> TaskSection:
    """Return a plan's task."""
    usual = {
        "kind": "image-and-table-classification",
        "classes": ["well", "ill"],
        "columns": ["age", "sex"],
        "categories": [{"column": "sex", "values": ["f", "m"]}],
    }
    return TaskSection.model_validate(usual | changes)


def write_list(folder: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER) -> Path:
    """Write a list, and an image as bright as its row's number for each that is not there."""
    for number, row in enumerate(rows):
        image = folder / row[0]
        if not image.exists():
            pixels = np.full((12, 10 + number), 40 + number, np.uint8)
            pixels[0] = 0
            Image.fromarray(pixels).save(image)
    path = folder / "list.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def usual_rows(count: int = 20) -> list[tuple[str, str, str, str]]:
    """Return rows whose age is the row's number."""
    rows: list[tuple[str, str, str, str]] = []
    for number in range(count):
        label = ("well", "ill")[number % 2]
        rows.append((f"{number}.png", label, str(number), ("f", "m")[number % 2]))
    return rows


def read(path: Path, **changes: object) -> Records:
    """Return the records of a list."""
    return open_records(DataSource(path, max_unreadable=0.2), task(**changes))


def test_rows_stay_with_their_images_where_some_are_left_out(tmp_path: Path) -> None:
    """One image that cannot be read would move every row behind it to another patient."""
    (tmp_path / "3.png").write_bytes(b"no image")
    records = read(write_list(tmp_path, usual_rows()))
    assert records.skipped == 1
    rows = np.arange(19)
    batch = records.prepare(rows, PairPreparation(for_images(8)))
    ages = batch.tensors[ROW][:, 0].tolist()
    assert ages == [float(number) for number in range(20) if number != 3]
    for record, age in zip(records.read(rows), ages, strict=True):
        assert record.image[0, 1, 0] == 40 + age
        assert record.row.tolist() == [age, float(age % 2 == 0), float(age % 2 == 1)]


def test_a_record_is_known_by_its_image_whatever_columns_are_read(tmp_path: Path) -> None:
    """The ledger would count a person anew for each choice of columns; kept activations of other
    columns would be taken for these.
    """
    path = write_list(tmp_path, usual_rows())
    both = read(path).source
    one = read(path, columns=["age"], categories=[]).source
    images = open_records(
        DataSource(path),
        TaskSection.model_validate({"kind": "image-classification", "classes": ["well", "ill"]}),
    ).source
    assert both.identities == one.identities == images.identities
    assert both.fingerprint() != one.fingerprint()
    assert both.contents == images.contents


def test_the_lists_own_columns_are_no_features(tmp_path: Path) -> None:
    """A label among the features tells itself."""
    path = write_list(tmp_path, usual_rows())
    for name in ("label", "path"):
        with pytest.raises(UserError, match=f"column '{name}' is among the features"):
            read(path, columns=["age", name], categories=[])


def test_the_plans_target_is_the_label_where_the_list_has_none(tmp_path: Path) -> None:
    """A table that hospitals have, with a column of paths added, is read as it is."""
    path = write_list(tmp_path, usual_rows(), ("path", "diagnosis", "age", "sex"))
    assert read(path, target="diagnosis").labels.tolist() == [0, 1] * 10
    with pytest.raises(UserError, match="no column 'label'"):
        read(path)


def test_every_mistake_is_told_with_line_and_column(tmp_path: Path) -> None:
    """A word where a number should be is a hospital's mistake to mend, not a zero."""
    rows = usual_rows()
    rows[4] = ("4.png", "well", "old", "f")
    with pytest.raises(UserError, match=r"'old' is not a number"):
        read(write_list(tmp_path, rows))
    with pytest.raises(UserError, match=r"no column 'weight'"):
        read(write_list(tmp_path, usual_rows()), columns=["weight"], categories=[])
