"""A stand-in for a card where there is none: torch's device `meta`, and no operation that mixes
devices.

`meta` has shapes and no values. A model that was moved there, and whose inputs come from the host,
shows where a tensor was forgotten on the host: on a card that is an error, and `meta` alone would
let some of it pass. What is brought back from there is zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fedgraft.common.model.meta_walk import META, MetaWalk, aten

CARD = META
# they are for this
COPIES = (aten._to_copy.default, aten.copy_.default)


class MixedDevices(Exception):
    """An operation on tensors of the host and of the card."""


class NoMixing(MetaWalk):
    """Raises where an operation mixes devices; copies between them are what they are for.

    with NoMixing():
        model.move_to(CARD)(inputs)
    """

    def look(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise `MixedDevices` for an operation that mixes them."""
        if func in COPIES:
            return
        devices = {tensor.device for tensor in _list_tensors((args, kwargs))}
        if len(devices) > 1:
            raise MixedDevices(f"{func} on tensors of {', '.join(map(str, devices))}")


def _list_tensors(arguments: Any) -> Iterator[Tensor]:
    """Yield the tensors among arguments; a number in a tensor of the host may stand beside any."""
    for leaf in pytree.tree_leaves(arguments):
        if isinstance(leaf, Tensor) and not (leaf.ndim == 0 and leaf.device.type == "cpu"):
            yield leaf
