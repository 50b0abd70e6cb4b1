"""Labelled examples as training and evaluation read them, whatever they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from fedgraft.common.inputs.batch import Batch

EVALUATION_BATCH = 256
# of volumes, of which a network's first layers make gigabytes
VOLUMES_AT_ONCE = 32
# axes of a batch of volumes: (n, channels, D, H, W)
_VOLUME_AXES = 5


class Examples(Protocol):
    """Labelled examples: a hospital's split, what is behind a frozen prefix, several splits as one.

    for batch, labels in shuffle_batches(examples, 32, generator):
        loss = task.loss(model(batch), labels)
    """

    @property
    def labels(self) -> Tensor:
        """The targets, `(n, …)`."""
        ...

    def __len__(self) -> int: ...

    def inputs(self, positions: Tensor) -> Batch:
        """Return prepared inputs of these positions `(m,)`, int64."""
        ...

    def through(self, change: Callable[[Examples], Examples]) -> Examples:
        """Return the examples with each split that they are made of changed."""
        ...


def batches_in_order(
    examples: Examples, at_once: int | None = None
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield batches `(inputs, labels)` in their order, for evaluation.

    Args:
        at_once: of so many examples each, see `Task.at_once`; None: as many as their size allows.
    """
    count = len(examples)
    size = at_once or EVALUATION_BATCH
    if count and at_once is None:
        first = examples.inputs(torch.arange(1))
        if any(tensor.ndim >= _VOLUME_AXES for tensor in first.tensors.values()):
            size = VOLUMES_AT_ONCE
    for start in range(0, count, size):
        positions = torch.arange(start, min(start + size, count))
        yield examples.inputs(positions), examples.labels[positions]


def shuffle_batches(
    examples: Examples, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield batches of one epoch in an order drawn from `generator`; the last may be smaller."""
    order = torch.randperm(len(examples), generator=generator)
    for positions in torch.split(order, batch_size):
        yield examples.inputs(positions), examples.labels[positions]
