"""The plan's `task.boxes`: how boxes are learnt, and how many an image may have."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from fedgraft.common.plan.section import Problem, Section, check_together

Stride = Annotated[int, Field(ge=2, le=64)]


class BoxSection(Section):
    """At which places of an image a head tells boxes, and how wide it is.

    BoxSection(strides=(4, 8), width=32, most=100)
    """

    strides: Annotated[tuple[Stride, ...], Field(min_length=1, max_length=4)] = Field(
        default=(8, 16),
        description=(
            "pixels of the prepared image between the places of each level, rising; boxes of up to"
            " 8 to 16 strides are told by the first, larger ones by the next, which is twice as"
            " coarse"
        ),
    )
    width: Annotated[int, Field(ge=4, le=256)] = Field(
        default=64, description="channels of the head that is trained by steps"
    )
    most: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=100,
        description="boxes that an image has at most, in the data and in an answer; known to all",
    )

    @model_validator(mode="after")
    def _doubles(self) -> BoxSection:
        if all(fine * 2 == coarse for fine, coarse in pairwise(self.strides)):
            return self
        what = f"{list(self.strides)}, and each is to be twice the one before"
        return check_together(self, [Problem("strides", what, "write `strides: [8, 16]`")])
