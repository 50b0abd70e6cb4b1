"""What a raw material says of itself: how it is prepared, and what of that travels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fedgraft.common.inputs.batch import Batch
from fedgraft.common.plan.backbone_section import BackboneSection
from fedgraft.common.plan.task_section import TaskSection


class Preparation(Protocol):
    """How one backbone's inputs are made of raw material; it travels with the backbone."""

    def __call__(self, raw: Tensor) -> Batch:
        """Return a prepared batch of raw records `(n, …)`."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists."""
        ...


Augment = Callable[[Batch, str, torch.Generator], Batch]


@dataclass(frozen=True)
class Input:
    """One kind of raw material.

        material = INPUTS["image"]
        preparation = material.read_preparation(json)
        batch = preparation(images)

    Attributes:
        name: as the plan calls it.
        plural: what its records are called, in words for people.
        read_preparation: the opposite of `Preparation.to_json`; raises `UserError` for anything
            that it would not have written.
        example: a batch of one record with the shapes that a plan's backbone sees; zeros.
        augment: (batch, the plan's `train.augment`, generator) → the batch, changed at random.
        public: raw records that anybody has, `(n, …)`, for a plan's backbone; None: there are none.
    """

    name: str
    plural: str
    read_preparation: Callable[[Mapping[str, Any]], Preparation]
    example: Callable[[Preparation, BackboneSection, TaskSection], Batch]
    augment: Augment
    public: Callable[[Preparation, BackboneSection, TaskSection], Tensor] | None = None
