"""What a raw material says of itself: how it is prepared, and what of that travels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fedgraft.common.inputs.batch import Batch
from fedgraft.common.plan.backbone_section import BackboneSection
from fedgraft.common.plan.task_section import TaskSection

# the tensor of a backbone that holds how its inputs are prepared, where a folder says it: so it is
# under the fingerprint that a hospital approves
PREPARATION = "preparation"
# raw records: numbers `(n, …)`, n texts, n volumes, or n signals
Raw = Tensor | Sequence[Any]


class Preparation(Protocol):
    """How one backbone's inputs are made of raw material; it travels with the backbone."""

    def __call__(self, raw: Any) -> Batch:
        """Return a prepared batch of n raw records."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists."""
        ...


def write_preparation(preparation: Preparation) -> bytes:
    """Return a preparation as it is among a backbone's tensors."""
    return json.dumps(preparation.to_json(), sort_keys=True).encode()


def hash_preparation(preparation: Preparation) -> str:
    """Return SHA-256 of a preparation, as a plan names it."""
    return f"sha256:{hashlib.sha256(write_preparation(preparation)).hexdigest()}"


Augment = Callable[[Batch, str, torch.Generator], Batch]
# (records, the targets in their grid, the plan's `train.augment`, generator) → both
AugmentPairs = Callable[[Batch, Tensor, str, torch.Generator], tuple[Batch, Tensor]]
# gives a backbone's tensors by name; asked when the first record is prepared
Tensors = Callable[[], Mapping[str, Tensor]]


def draw_normal(
    preparation: Preparation, example: Batch, count: int, generator: torch.Generator
) -> Batch:
    """Return records of normal numbers, each of the example's shape."""

    def draw(tensor: Tensor) -> Tensor:
        return torch.randn((count, *tensor.shape[1:]), generator=generator)

    return example.map(draw)


def keep_whole(preparation: Preparation) -> Preparation:
    """Return the preparation as it is: it cuts nothing off."""
    return preparation


def keep_preparation(preparation: Preparation, tensors: Tensors) -> Preparation:
    """Return the preparation as it is: its JSON says it all."""
    return preparation


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
        draw: (preparation, example, count, generator) → prepared records that a network can take,
            drawn at random: a network is tried with them before any record of a hospital.
        bind: (preparation, tensors) → the preparation with what it needs of its backbone's tensors,
            such as a tokenizer that travels among them.
        whole: a preparation → the same without a margin that it cuts off, for questions about
            places.
        augment_pairs: as `augment`, for records with targets in their own grid, such as masks;
            None: there is none.
        augment_boxes: the same for records with boxes.
    """

    name: str
    plural: str
    read_preparation: Callable[[Mapping[str, Any]], Preparation]
    example: Callable[[Preparation, BackboneSection, TaskSection], Batch]
    augment: Augment
    public: Callable[[Preparation, BackboneSection, TaskSection], Raw] | None = None
    draw: Callable[[Preparation, Batch, int, torch.Generator], Batch] = draw_normal
    bind: Callable[[Preparation, Tensors], Preparation] = keep_preparation
    whole: Callable[[Preparation], Preparation] = keep_whole
    augment_pairs: AugmentPairs | None = None
    augment_boxes: AugmentPairs | None = None
