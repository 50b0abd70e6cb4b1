"""docs/task-matrix.md is what a trial of every question and way finds."""

from __future__ import annotations

import pytest

from fedgraft.common.tasks import TASKS
from tests.task_matrix import AFTERWARDS, PAGE, QUESTIONS, WAYS, WORKS, try_cell

CELLS = [(name, way) for name in QUESTIONS for way in (*WAYS, *AFTERWARDS)]


def read_row(name: str) -> list[str]:
    """Return the cells of a question's row."""
    for line in PAGE.read_text().splitlines():
        if line.startswith(f"| {name} |"):
            return [cell.strip() for cell in line.strip("|").split("|")][1:]
    raise AssertionError(f"no row of {name}: python -m tests.task_matrix")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "way"), CELLS)
def test_the_page_says_what_is_so(name: str, way: str) -> None:
    """A ✓ that does not hold, or a reason that is none any more."""
    found = try_cell(name, way)
    assert not found.startswith("wrong")
    cell = read_row(name)[[*WAYS, *AFTERWARDS].index(way)]
    assert (cell == WORKS) == (found == WORKS), found
    if found != WORKS:
        assert f"- {name}, {way}: {found}" in PAGE.read_text()


def test_every_question_has_a_row() -> None:
    """A question that is left out is one of which nobody knows."""
    assert set(QUESTIONS) == set(TASKS)
