"""The plan's `task.mask`: how masks are learnt."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedgraft.common.plan.section import Section


class MaskSection(Section):
    """What of an image's places a head reads, and how wide a decoder is.

    MaskSection(stride=4, width=32)
    """

    stride: Annotated[int, Field(ge=1, le=64)] = Field(
        default=4,
        description=(
            "a head that is solved from sums reads every so many-th place each way, the same ones"
            " of every image"
        ),
    )
    width: Annotated[int, Field(ge=4, le=256)] = Field(
        default=32, description="channels of the decoder that is trained by steps"
    )
