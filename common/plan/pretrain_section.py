"""The plan's `pretrain`: how a backbone's weights are made here."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from fedgraft.common.plan.language_section import LanguageSection
from fedgraft.common.plan.section import Count, Labels, Names, Section, Seed, Text
from fedgraft.common.plan.train_section import OptimizerSection


class PretrainSection(Section):
    """How `fedgraft pretrain` makes the backbone's weights."""

    later: ClassVar[tuple[str, ...]] = ("language",)

    data: Text | Names = Field(
        description="the file that it learns from; a language model learns from one or several"
    )
    labels: Labels | None = Field(
        default=None,
        description="the values in the data that are its classes; a language model has none",
    )
    epochs: Count = Field(description="passes over the data")
    batch_size: Count = Field(default=64, description="examples in a step")
    optimizer: OptimizerSection = Field(default=OptimizerSection(), description="the optimizer")
    seed: Seed = Field(
        default=0, description="seed of the initial weights and of the order of examples"
    )
    language: LanguageSection | None = Field(
        default=None,
        description=(
            "generation only: a small GPT-2 that is made, such as {tokens: 2048, layers: 4, width:"
            " 128, heads: 4}"
        ),
    )

    @property
    def files(self) -> tuple[str, ...]:
        """Return the files that it learns from."""
        return (self.data,) if isinstance(self.data, str) else self.data

    @property
    def classes(self) -> tuple[int | str, ...]:
        """Return the values that are its classes; none of a language model."""
        return self.labels or ()
