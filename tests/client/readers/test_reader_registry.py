"""Formats as one table: each reader under its own name, and a new one by a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.data import find_reader as finding
from fedgraft.client.data.find_reader import find_reader
from fedgraft.client.readers.image_arrays import image_source
from fedgraft.client.readers.reader import Reader, ReadRequest, has_suffix
from fedgraft.client.readers.reader_table import READERS
from fedgraft.client.readers.source import Label, Source
from fedgraft.common.errors import UserError
from fedgraft.common.registry import Registry
from tests.records import open_records

# how a table's name ends, and the reader of one of numbers
TABLES = ((".csv", "csv"), (".csv.gz", "csv"), (".parquet", "parquet"), (".PQ", "parquet"))


@pytest.mark.parametrize("name", READERS.names)
def test_a_reader_bears_the_name_of_its_line(name: str) -> None:
    """node.yaml picks the line; what is kept decoded is kept under the reader's own name."""
    assert READERS[name].name == name


def test_the_task_decides_what_a_table_is(tmp_path: Path) -> None:
    """A list of image files read as a table of features would be refused cell by cell."""
    for suffix, table in TABLES:
        path = str(tmp_path / f"x{suffix}")
        assert find_reader(path, None, "tabular").name == table
        assert find_reader(path, None, "image").name == "manifest"
    (tmp_path / "x.csv").mkdir()
    assert find_reader(str(tmp_path / "x.csv"), None, "image").name == "image-folder"


def test_a_path_that_no_reader_knows_is_told(tmp_path: Path) -> None:
    """A misspelt path and a format that is not read are two mistakes."""
    with pytest.raises(UserError, match="no such file or folder"):
        find_reader(str(tmp_path / "x.xlsx"), None, "tabular")
    (tmp_path / "x.xlsx").touch()
    with pytest.raises(UserError, match=r"unknown format '\.xlsx'"):
        find_reader(str(tmp_path / "x.xlsx"), None, "tabular")
    with pytest.raises(UserError, match=r"data\.format 'xlsx'(.|\n)*write one of npz, csv"):
        find_reader(str(tmp_path / "x.csv"), "xlsx", "tabular")


def read_raw(request: ReadRequest) -> Source:
    pixels = np.frombuffer(Path(request.path).read_bytes(), np.uint8).reshape(-1, 1, 2, 2)
    labels: list[Label] = [number % 2 for number in range(len(pixels))]
    return image_source(request.path, pixels, labels, {})


RAW = Reader("raw", has_suffix(".raw"), read_raw)


def test_a_new_format_is_a_reader_and_a_line(tmp_path: Path, monkeypatch) -> None:
    """The recipe in docs/extend.md; whatever else had to know the format would break here."""
    lines = {"npz": "fedgraft.client.readers.archive:NPZ", "raw": f"{__name__}:RAW"}
    monkeypatch.setattr(finding, "READERS", Registry("data.format", "format", lines))
    (tmp_path / "x.raw").write_bytes(bytes(range(80)))
    records = open_records(tmp_path / "x.raw", kind="image-classification", classes=["a", "b"])
    assert len(records.labels) == 20
    assert records.read(np.array([1])).flatten().tolist() == [4, 5, 6, 7]
