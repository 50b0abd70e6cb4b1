"""What a model does without its values: on torch's device `meta`, where tensors have shapes alone.

Where a value is read there it is 0, so that training steps can be walked through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
aten = torch.ops.aten


class MetaWalk(TorchDispatchMode):
    """Lets values be read that are not there.

    with MetaWalk():
        model.move_to(META)(inputs).sum().item()  # 0
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
        if func is aten._local_scalar_dense.default and args[0].device == META:
            return 0
        if func is aten._to_copy.default and _leaves_meta(args[0], kwargs):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is aten.copy_.default and args[1].device == META != args[0].device:
            return args[0].zero_()
        self.look(func, args, kwargs)
        return self.keep(func(*args, **kwargs))

    def look(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at an operation before it runs."""

    def keep(self, result: Any) -> Any:
        """Look at what an operation gave; return it."""
        return result


def _leaves_meta(tensor: Tensor, options: dict[str, Any]) -> bool:
    device = options.get("device")
    return tensor.device == META and device is not None and torch.device(device) != META
