"""The plan's `task.survival`: into which intervals time is cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from fedgraft.common.plan.section import Problem, Section, Text, check_together

Cut = Annotated[float, Field(gt=0, le=1e30)]


class SurvivalSection(Section):
    """Up to when people are looked at, and how finely, by what everybody knows, not by the data.

    SurvivalSection(cuts=(365, 730, 1095), unit="days")
    """

    cuts: Annotated[tuple[Cut, ...], Field(min_length=1, max_length=100)] = Field(
        description=(
            "where each interval of time ends, rising, such as [365, 730, 1095]; the first begins"
            " at 0, and what comes after the last is not looked at"
        )
    )
    unit: Text | None = Field(default=None, description="what time is counted in, for people")

    @property
    def words(self) -> tuple[str, ...]:
        """Return the cuts for people."""
        unit = f" {self.unit}" if self.unit else ""
        return tuple(f"{cut:g}{unit}" for cut in self.cuts)

    @model_validator(mode="after")
    def _rises(self) -> SurvivalSection:
        if all(low < high for low, high in pairwise(self.cuts)):
            return self
        remedy = "write them from the earliest to the latest, each once"
        return check_together(self, [Problem("cuts", "they do not rise", remedy)])
