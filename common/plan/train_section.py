"""The plan's `train`: local training at the nodes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedgraft.common.plan.section import Count, Section


class OptimizerSection(Section):
    """How a node, or the pre-training, takes its steps."""

    name: Literal["adamw", "sgd", "adam"] = Field(default="adamw", description="the optimizer")
    lr: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="weight decay")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="sgd only: momentum"
    )


class TrainSection(Section):
    """Local training at the nodes, as all sides agree on it."""

    rounds: Annotated[Count, Field(le=9999)] = Field(
        default=10, description="rounds of the federation"
    )
    local_epochs: Count = Field(
        default=1, description="passes over a node's own data in each round"
    )
    batch_size: Count = Field(default=32, description="examples in a step")
    optimizer: OptimizerSection = Field(
        default=OptimizerSection(), description="the local optimizer"
    )
    proximal: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="μ of FedProx: pulls a node's adapter towards the shared one; 0: not at all",
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="learning rate over the rounds"
    )
    augment: Literal["none", "flip", "flip-crop"] = Field(
        default="none", description="images: random flips and crops"
    )
    loss: Literal["cross-entropy", "balanced"] = Field(
        default="cross-entropy",
        description=(
            "balanced: each node takes its own shares of the classes out of what it learns; for"
            " nodes whose shares are unlike one another's"
        ),
    )
    activations: Literal["float32", "float16"] = Field(
        default="float32",
        description=(
            "precision in which a node keeps what its frozen layers compute; float16: half the"
            " disk, rounded"
        ),
    )


class PlannedTrainSection(TrainSection):
    """Local training, and how many threads a simulated node has."""

    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="CPU threads for each node's training"
    )
