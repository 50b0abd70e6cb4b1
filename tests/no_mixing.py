"""A stand-in for a card where there is none: torch's device `meta`, and no operation that mixes
devices.

`meta` has shapes and no values. A model that was moved there, and whose inputs come from the host,
shows where a tensor was forgotten on the host: on a card that is an error, and `meta` alone would
let some of it pass. What is brought back from there is zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

CARD = torch.device("meta")
aten = torch.ops.aten
# they are for this
COPIES = (aten._to_copy.default, aten.copy_.default)


class MixedDevices(Exception):
    """An operation on tensors of the host and of the card."""


class NoMixing(TorchDispatchMode):
    """Raises where an operation mixes devices; copies between them are what they are for.

    with NoMixing():
        model.move_to(CARD)(inputs)
    """

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, or what stands for it where a value is read."""
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and args[0].device == CARD:
            return 0
        if func is aten._to_copy.default and _leaves_card(args[0], kwargs):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is aten.copy_.default and args[1].device == CARD != args[0].device:
            return args[0].zero_()
        if func not in COPIES:
            devices = {tensor.device for tensor in _list_tensors((args, kwargs))}
            if len(devices) > 1:
                raise MixedDevices(f"{func} on tensors of {', '.join(map(str, devices))}")
        return func(*args, **kwargs)


def _leaves_card(tensor: Tensor, options: dict[str, Any]) -> bool:
    device = options.get("device")
    return tensor.device == CARD and device is not None and torch.device(device) != CARD


def _list_tensors(arguments: Any) -> Iterator[Tensor]:
    """Yield the tensors among arguments; a number in a tensor of the host may stand beside any."""
    for leaf in pytree.tree_leaves(arguments):
        if isinstance(leaf, Tensor) and not (leaf.ndim == 0 and leaf.device.type == "cpu"):
            yield leaf
