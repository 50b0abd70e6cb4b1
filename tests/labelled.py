"""Labels as a reader gives them, for tests of questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedgraft.common.tasks.labels import Label


@dataclass(frozen=True)
class Source:
    """Labels of the rows of a file."""

    labels: Sequence[Label]
    where: str = "north.csv"
    masks: Any = None
    boxes: Any = None
    answers_at: Sequence[int] | None = None
    texts: Sequence[str] | None = None

    def place(self, row: int) -> str:
        return f"{self.where}:{row + 2}"
