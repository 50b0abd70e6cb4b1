"""docs/matrix.md is what a trial of every family and method finds."""

from __future__ import annotations

import re

import pytest

from tests.matrix import METHODS, PAGE, try_cell, write_cell
from tests.tiny_networks import TINY_NETWORKS

CELLS = [(label, method) for label in TINY_NETWORKS for method in METHODS]


def read_row(words: str) -> list[str]:
    """Return the cells of a network's row."""
    for line in PAGE.read_text().splitlines():
        if line.startswith(f"| {words} |"):
            return [cell.strip() for cell in line.strip("|").split("|")][1:]
    raise AssertionError(f"no row of {words}: python -m tests.matrix")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("label", "method"), CELLS)
def test_the_page_says_what_is_so(label: str, method: str) -> None:
    """A ✓ that does not hold, or a refusal that was lifted."""
    tiny = TINY_NETWORKS[label]
    if not tiny.is_installed:
        pytest.skip(f"{tiny.package} is not installed")
    found = try_cell(label, method)
    cell, notes = write_cell(found)
    assert read_row(tiny.words)[METHODS.index(method)] == cell, found
    page = PAGE.read_text()
    for note in notes:
        assert f"{tiny.words}, {note}" in page
    assert not re.search(r"\bwrong\b", " ".join(notes))


def test_every_network_has_a_row() -> None:
    """A family that is left out is one of which nobody knows."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == len(TINY_NETWORKS) + 1
