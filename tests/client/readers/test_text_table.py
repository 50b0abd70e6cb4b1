"""Texts in CSV, Parquet and JSON lines: text, label, whose it is, and what stands beside it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedgraft.client.data.data_set import DataSource, open_records
from fedgraft.client.data.find_reader import find_reader
from fedgraft.client.readers.text_table import read_texts
from fedgraft.common.errors import UserError
from fedgraft.common.plan.task_section import TaskSection

ROWS = [
    {"title": "Cough", "note": "three weeks", "kind": "ill", "patient": "a", "sex": "f"},
    {"title": "Check", "note": "", "kind": "well", "patient": "b", "sex": "m"},
    {"title": "Rash", "note": 'on "both", arms', "kind": "ill", "patient": "c", "sex": "m"},
    {"title": "Fever", "note": "two\nlines", "kind": "well", "patient": "d", "sex": "f"},
]
TASK = TaskSection(
    kind="text-classification",
    classes=("ill", "well"),
    labels=("ill", "well"),
    text=("title", "note"),
    target="kind",
)


def write_csv(path: Path) -> None:
    pd.DataFrame(ROWS).to_csv(path, index=False)


def write_parquet(path: Path) -> None:
    pd.DataFrame(ROWS).to_parquet(path)


def write_json_lines(path: Path) -> None:
    content = ("\n".join(map(json.dumps, ROWS)) + "\n\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


FILES = {
    "notes.csv": write_csv,
    "notes.csv.gz": write_csv,
    "notes.parquet": write_parquet,
    "notes.jsonl": write_json_lines,
    "notes.jsonl.gz": write_json_lines,
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_records(name: str, tmp_path: Path) -> None:
    """A hospital that keeps its notes in another format would have other records."""
    path = tmp_path / name
    FILES[name](path)
    records = open_records(DataSource(path, test_fraction=0.5), TASK)
    texts = records.read(np.arange(4))
    assert texts == ["Cough\nthree weeks", "Check", 'Rash\non "both", arms', "Fever\ntwo\nlines"]
    assert records.labels.tolist() == [0, 1, 0, 1]
    assert records.owners == ["a", "b", "c", "d"]
    assert records.column("sex") == ["f", "m", "m", "f"]
    reference = tmp_path / "reference.csv"
    write_csv(reference)
    same = open_records(DataSource(reference, test_fraction=0.5), TASK)
    assert records.fingerprint == same.fingerprint


def test_a_table_is_read_as_texts_only_where_the_plan_asks_for_them(tmp_path: Path) -> None:
    """A CSV file is also a table of numbers: the plan's kind decides."""
    path = tmp_path / "notes.csv"
    write_csv(path)
    assert find_reader(str(path), None, "text").name == "texts"
    assert find_reader(str(path), None, "tabular").name == "csv"
    with pytest.raises(UserError, match=r"texts.*read this file"):
        open_records(DataSource(path, format="csv"), TASK)


def test_equal_texts_are_on_one_side_of_the_split(tmp_path: Path) -> None:
    """A text that is in training too is known by heart."""
    rows = [{"note": f"text {number // 2}", "kind": "ill"} for number in range(20)]
    rows += [{"note": f"other {number}", "kind": "well"} for number in range(20)]
    path = tmp_path / "notes.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    task = TASK.model_copy(update={"text": ("note",)})
    records = open_records(DataSource(path, test_fraction=0.4), task)
    sides = {name: set(records.read(rows)) for name, rows in records.splits.items()}
    assert sides["test"]
    assert not sides["test"] & sides["train"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "notes.jsonl:2: a line that is no JSON"),
        ("[1]", "notes.jsonl:2: a line that is no JSON object"),
        ('{"note": ["a"], "kind": "ill"}', "'note' holds more than"),
        ('{"note": "a"}', "the label is missing"),
    ],
)
def test_a_line_that_is_no_record_is_named(line: str, words: str, tmp_path: Path) -> None:
    """Whoever made the file must find the line."""
    path = tmp_path / "notes.jsonl"
    path.write_text('{"note": "a", "kind": "ill"}\n' + line + "\n")
    task = TASK.model_copy(update={"text": ("note",)})
    with pytest.raises(UserError, match=words):
        open_records(DataSource(path), task)


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    """Prediction reads files that nobody has checked."""
    path = tmp_path / "notes.csv"
    write_csv(path)
    with pytest.raises(UserError, match="did you mean 'note'"):
        read_texts(path, ["notes"])
    assert read_texts(path, ["note"])[1] == ""
