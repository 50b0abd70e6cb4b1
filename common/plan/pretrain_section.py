"""The plan's `pretrain`: how a backbone's weights are made here."""

from __future__ import annotations

from pydantic import Field

from fedgraft.common.plan.section import Count, Labels, Section, Seed, Text
from fedgraft.common.plan.train_section import OptimizerSection


class PretrainSection(Section):
    """How `fedgraft pretrain` makes the backbone's weights."""

    data: Text = Field(description="the file that it learns from")
    labels: Labels = Field(description="the values in the data that are its classes")
    epochs: Count = Field(description="passes over the data")
    batch_size: Count = Field(default=64, description="examples in a step")
    optimizer: OptimizerSection = Field(default=OptimizerSection(), description="the optimizer")
    seed: Seed = Field(
        default=0, description="seed of the initial weights and of the order of examples"
    )
