"""Whether tensors that must not change did, without their SHA-256 each time.

A node asks twice a round. The SHA-256 of a ResNet-20 takes 1.4 ms and of a ViT-B/16 0.34 s; whether
the same tensors lie where they lay and have the same 64-bit sums, 0.3 and 15 ms. Torch's own
counters of writes take nothing, and miss what matters most: BatchNorm in train mode moves its
statistics, and `tensor.data` is written, without a count. So the counters are a hint and the sums
decide; what neither sees is a write that torch does not count and that only puts the words of one
tensor into another order. The sums are NumPy's: a hundred small ones in torch hand the interpreter
from thread to thread a hundred times, and watching took a fifth of a run with small nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedgraft.common.files.tensor_files import fingerprint_of


@dataclass(frozen=True, eq=False)
class Seal:
    """What a network's frozen tensors were when their SHA-256 was taken.

        seal = Seal.of(net, names)
        seal.holds(net, read=True)

    Attributes:
        fingerprint: their SHA-256.
        everything: every parameter and buffer of the network in the order of its modules.
        trained: which of these train.
        frozen: those that must not change.
    """

    fingerprint: str
    everything: tuple[Tensor | None, ...]
    trained: tuple[bool, ...]
    frozen: tuple[_Frozen, ...]

    @classmethod
    def of(cls, net: nn.Module, names: Collection[str], fingerprint: str | None = None) -> Seal:
        """Seal tensors of a network as they are.

        Args:
            names: of the tensors that must not change, as in its state dict.
            fingerprint: their SHA-256, if it was just taken.
        """
        state = net.state_dict(keep_vars=True)
        frozen = {name: tensor for name, tensor in state.items() if name in names}
        everything = tuple(_list_tensors(net))
        return cls(
            fingerprint=fingerprint or fingerprint_of(frozen),
            everything=everything,
            trained=tuple(map(_is_trained, everything)),
            frozen=tuple(map(_Frozen.of, frozen.values())),
        )

    def holds(self, net: nn.Module, *, read: bool) -> bool:
        """Whether the network has the same tensors in the same places, and they are as they were.

        Args:
            read: compare the sums of all their bytes, too; else believe torch's counters of writes,
                a hint.
        """
        tensors = tuple(_list_tensors(net))
        # the same ones: tensors cannot be compared by their values here
        if list(map(id, tensors)) != list(map(id, self.everything)):
            return False
        if tuple(map(_is_trained, tensors)) != self.trained:
            return False
        return all(frozen.is_as_it_was(read=read) for frozen in self.frozen)

    def __deepcopy__(self, memo: object) -> Seal:
        """Return the same: it speaks of these tensors, and holds for no copy of them."""
        return self


@dataclass(frozen=True, eq=False)
class _Frozen:
    """A tensor as it was sealed.

    Attributes:
        form: where it lies in memory, and how.
        writes: how often torch was asked to write there.
        numbers: its bytes where they lie, as whole numbers; None if they do not lie together.
        total: their sum modulo 2⁶⁴: every change of one number moves it.
    """

    tensor: Tensor
    form: tuple[Any, ...]
    writes: int
    numbers: np.ndarray | None
    total: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Frozen:
        """Seal a tensor."""
        numbers: np.ndarray | None = None
        if tensor.is_contiguous() and tensor.device.type == "cpu":
            numbers = _numbers(tensor)
        return cls(tensor, _form(tensor), tensor._version, numbers, _total(tensor, numbers))

    def is_as_it_was(self, *, read: bool) -> bool:
        """Whether it lies where it lay, and nothing was written; see `Seal.holds`."""
        if _form(self.tensor) != self.form or self.tensor._version != self.writes:
            return False
        return not read or _total(self.tensor, self.numbers) == self.total


def _list_tensors(net: nn.Module) -> Iterator[Tensor | None]:
    """Yield every parameter and buffer; None where a module could have one and has none."""
    for module in net.modules():
        yield from module._parameters.values()
        yield from module._buffers.values()


def _is_trained(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _numbers(tensor: Tensor) -> np.ndarray:
    """Return the bytes of a contiguous tensor where they lie: eight to a number where that comes
    out even.
    """
    flat = tensor.detach().reshape(-1)
    if flat.nbytes % 8 == 0 and flat.data_ptr() % 8 == 0:
        return flat.view(torch.int64).numpy()
    return flat.view(torch.uint8).numpy()


def _total(tensor: Tensor, numbers: np.ndarray | None) -> int:
    """Return the sum of a tensor's numbers, modulo 2⁶⁴, added up where they lie."""
    if numbers is not None:
        return int(np.add.reduce(numbers))
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.device.type == "cpu":
        return int(np.add.reduce(_numbers(flat)))
    wide = flat.nbytes % 8 == 0 and flat.data_ptr() % 8 == 0
    return int(flat.view(torch.int64 if wide else torch.uint8).sum(dtype=torch.int64))
