"""The plan's `backbone.signal`: what time series and audio are brought to for a network."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from fedgraft.common.plan.section import Names, Problem, Section, check_together

# Hz
Rate = Annotated[float, Field(ge=0.01, le=1_000_000)]
# values of one prepared record, all channels together: 64 MiB
MOST_VALUES = 2**24


class SignalSection(Section):
    """Channels, rate and length of the signals that a network is given."""

    channels: Annotated[Names, Field(min_length=1, max_length=256)] = Field(
        default=("signal",),
        description=(
            "names of the channels in the order that a network sees them, such as [I, II, V1]; a"
            " table's columns and a WFDB record's signals are found by them. Of audio with several"
            " channels one is the mean of all"
        ),
    )
    rate: Rate | None = Field(
        default=None,
        description=(
            "samples a second (Hz): records that know theirs are resampled to it, others are taken"
            " to have it. null: every record is taken as it is"
        ),
    )
    samples: Annotated[int, Field(ge=16, le=MOST_VALUES)] = Field(
        default=1000,
        description=(
            "samples of each channel that a network sees: of a longer record the first, a shorter"
            " one is filled with zeros behind its end"
        ),
    )
    standardise: bool = Field(
        default=True,
        description=(
            "whether each channel of each record is brought to mean 0 and deviation 1, over those"
            " of its own samples that are seen"
        ),
    )

    @model_validator(mode="after")
    def _is_bounded(self) -> SignalSection:
        problems: list[Problem] = []
        values = self.samples * len(self.channels)
        if values > MOST_VALUES:
            what = f"{values:,} values a record, and at most {MOST_VALUES:,} are taken"
            problems.append(Problem("samples", what, "write fewer samples, or a lower rate"))
        return check_together(self, problems)
