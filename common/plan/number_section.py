"""The plan's `task.number`: what a number that is predicted can be."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from fedgraft.common.plan.section import Problem, Section, Text, check_together

# float32 holds it, and the difference of two
Bound = Annotated[float, Field(ge=-1e30, le=1e30)]


class NumberSection(Section):
    """Between which values a number lies, by what everybody knows, not by the data.

    NumberSection(low=0, high=60, unit="days")
    """

    low: Bound = Field(description="smaller values are taken for it")
    high: Bound = Field(description="larger values are taken for it")
    unit: Text | None = Field(default=None, description="what it is counted in, for people")

    @property
    def middle(self) -> float:
        """Return what lies between the ends."""
        return (self.low + self.high) / 2

    @property
    def reach(self) -> float:
        """Return how far the ends are from the middle."""
        return (self.high - self.low) / 2

    @model_validator(mode="after")
    def _is_a_range(self) -> NumberSection:
        # ends that are one float32 are none
        if self.high - self.low > 1e-6 * max(abs(self.low), abs(self.high)):
            return self
        what = f"{self.high:g}, and the range begins at {self.low:g}"
        remedy = "write the smaller end as `low`, the larger as `high`"
        return check_together(self, [Problem("high", what, remedy)])
