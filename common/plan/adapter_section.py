"""The plan's `adapter`: what is grafted on and trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fedgraft.common.adapters import METHODS
from fedgraft.common.plan.section import Names, OneOf, Section

MethodName = Annotated[str, AfterValidator(OneOf(lambda: METHODS.names))]


class AdapterSection(Section):
    """The small layers that are trained and that travel."""

    method: MethodName = Field(
        description=(
            "what is added; head: only a new classifier; full: everything is trained (the baseline)"
        )
    )
    rank: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=8, description="lora: rank of the added matrices"
    )
    alpha: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="lora: the update is scaled by alpha / rank (default 2 · rank)"
    )
    width: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=8, description="bottleneck: width of the narrow layer"
    )
    targets: Literal["auto", "last-block"] | Annotated[Names, Field(min_length=1)] = Field(
        default="auto",
        description="where: auto, last-block, or a list of layer names or patterns",
    )
