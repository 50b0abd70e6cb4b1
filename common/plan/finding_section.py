"""The plan's `task.findings`: labels by a rule on a column of numbers."""

from __future__ import annotations

from pydantic import Field, model_validator

from fedgraft.common.plan.number_section import Bound
from fedgraft.common.plan.section import Problem, Section, Text, check_together


class FindingSection(Section):
    """A label that a record has where a number lies beyond a threshold; where the number is
    missing, the label is not known.

        FindingSection(name="lactate high", column="lactate_max", above=4).read(5.1)  # 1
    """

    name: Text = Field(description="what it is called")
    column: Text = Field(description="a column of numbers that is no input")
    above: Bound | None = Field(default=None, description="there where the number is larger")
    below: Bound | None = Field(default=None, description="or where it is smaller")

    @property
    def rule(self) -> str:
        """Return when a record has it, in words."""
        if self.above is not None:
            return f"{self.column} above {self.above:g}"
        return f"{self.column} below {self.below:g}"

    def read(self, number: float) -> int:
        """Return 1 where a number makes the finding, else 0."""
        if self.above is not None:
            return int(number > self.above)
        return int(self.below is not None and number < self.below)

    @model_validator(mode="after")
    def _one_of_them(self) -> FindingSection:
        if (self.above is None) == (self.below is None):
            what = "one threshold makes a finding: above or below"
            problem = Problem("above", what, "write `above: 4`, or `below: 7.3`")
            return check_together(self, [problem])
        return self
