"""Notes of three hospitals whose entities are known, made here: names of letters, dates of digits,
in words that the tiny tokenizer has.
"""

from __future__ import annotations

import csv
import random
import re
from pathlib import Path
from typing import Any

SITES = ("north", "south", "west")
TEMPLATES = (
    "NAME no fever",
    "cough three weeks NAME",
    "pain DATE a rash",
    "nothing found DATE",
    "NAME DATE rash",
    "no known pain",
)
PLAN: dict[str, Any] = {
    "name": "entities",
    "task": {
        "kind": "text-token-classification",
        "classes": ["NAME", "DATE"],
        "text": "note",
        "target": "target",
    },
    "backbone": {"name": "huggingface", "weights": "./model", "max_length": 16},
    "adapter": {"method": "head"},
    "train": {"method": "closed-form"},
    "simulation": {
        "data": [f"{name}.csv" for name in SITES],
        "partition": {"kind": "files"},
        "test_fraction": 0.3,
    },
}
Note = tuple[str, list[tuple[int, int, str]]]


def draw_note(draw: random.Random) -> Note:
    """Return a text and its spans."""
    text = ""
    spans: list[tuple[int, int, str]] = []
    for part in re.split(r"(NAME|DATE)", draw.choice(TEMPLATES)):
        value = part
        if part == "NAME":
            words = ["".join(draw.choices("jkqxyz", k=2)) for _ in range(draw.randint(1, 2))]
            value = " ".join(words)
        if part == "DATE":
            value = str(draw.randint(10, 99))
        if part in ("NAME", "DATE"):
            spans.append((len(text), len(text) + len(value), part))
        text += value
    return text, spans


def as_spans(note: Note) -> str:
    """Return a cell of spans."""
    return "|".join(f"{start}:{end}:{type_}" for start, end, type_ in note[1]) or "none"


def as_tags(note: Note) -> str:
    """Return a cell of tags, one a word."""
    tags: list[str] = []
    for match in re.finditer(r"\S+", note[0]):
        tag = "O"
        for start, end, type_ in note[1]:
            if start <= match.start() < end:
                tag = f"B-{type_}" if match.start() == start else f"I-{type_}"
        tags.append(tag)
    return " ".join(tags)


def write_notes(path: Path, notes: list[Note], *, tags: bool = False) -> None:
    """Write a hospital's table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["note", "target"])
        for note in notes:
            writer.writerow([note[0], as_tags(note) if tags else as_spans(note)])


def draw_sites(count: int = 60) -> dict[str, list[Note]]:
    """Return the notes of each hospital."""
    sites: dict[str, list[Note]] = {}
    for number, name in enumerate(SITES):
        draw = random.Random(number)
        sites[name] = [draw_note(draw) for _ in range(count)]
    return sites
