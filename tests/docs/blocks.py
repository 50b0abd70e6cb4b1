"""The code blocks of a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One block: its language, the file that it is if it has a title, its text."""

    language: str
    title: str
    text: str


def read_blocks(text: str) -> list[Block]:
    """Return all fenced blocks of a text, in their order."""
    return [Block(*groups) for groups in FENCE.findall(text)]


def read_page(name: str) -> str:
    """Return a page of docs/."""
    return (Path(__file__).parents[2] / "docs" / name).read_text()
