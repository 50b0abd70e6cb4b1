"""A batch: named tensors of the same examples, as a network takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Named tensors `(n, …)` of the same n examples.

        batch = Batch({"image": torch.zeros(32, 3, 28, 28)})
        len(batch), batch["image"].shape, len(batch[:8])

    Attributes:
        tensors: by name, at least one; the first axis of each is the example.
    """

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: Tensor | slice) -> Batch:
        """Return some of the examples."""
        return self.map(lambda tensor: tensor[rows])

    @property
    def only(self) -> Tensor:
        """Return the tensor of a batch that has just one. Raise `ValueError` for another."""
        tensors = list(self.tensors.values())
        if len(tensors) != 1:
            names = ", ".join(self.tensors)
            raise ValueError(f"a batch of {names}; one tensor was expected")
        return tensors[0]

    @property
    def joined(self) -> Tensor:
        """Return what a network is called with: the only tensor, or of several all values of an
        example one after the other `(n, values)`, in the batch's order.
        """
        tensors = list(self.tensors.values())
        if len(tensors) == 1:
            return tensors[0]
        return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)

    @property
    def nbytes(self) -> int:
        """Return the size of all tensors, bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with every tensor changed in the same way."""
        return Batch({name: change(tensor) for name, tensor in self.tensors.items()})

    def empty_like(self, examples: int) -> Batch:
        """Return a batch of so many examples with room for values of this shape and type."""

        def empty(tensor: Tensor) -> Tensor:
            shape = (examples, *tensor.shape[1:])
            return torch.empty(shape, dtype=tensor.dtype)

        return self.map(empty)

    def write(self, at: slice, values: Batch) -> None:
        """Copy the values of some examples into this batch."""
        for name, tensor in values.tensors.items():
            self.tensors[name][at] = tensor


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Return the examples of several batches, one after the other."""
    together: dict[str, Tensor] = {}
    for name in batches[0].tensors:
        parts = [batch.tensors[name] for batch in batches]
        together[name] = torch.cat(parts)
    return Batch(together)
