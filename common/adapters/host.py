"""An adapter on a layer: a child called `adapter`, and a forward hook that calls it.

Parallel adapters see the layer's input and are added to its output (LoRA); serial ones map its
output (He et al. 2022, "Towards a unified view of parameter-efficient transfer learning").
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Affine = tuple[Tensor, Tensor | None]


class Adapter(nn.Module):
    """What every adapter of a single layer offers.

        attach_to(layer, adapter)
        layer(x)  # adapted
        merge_into(layer)  # a plain layer again, with the same outputs

    Attributes:
        parallel: whether it sees the layer's input and is added to its output.
        moves_bias: whether `fold` moves the bias, too.
    """

    parallel: ClassVar[bool]
    moves_bias: ClassVar[bool] = True

    @abstractmethod
    def fold(self, weight: Tensor, bias: Tensor | None) -> Affine:
        """Return weight and bias of one plain layer that does what the layer and this adapter do
        together.
        """


def attach_to(host: nn.Module, adapter: nn.Module) -> None:
    """Give a layer its adapter. For a MultiheadAttention it serves the projection to queries, keys
    and values.
    """
    host.add_module("adapter", adapter)
    # a MultiheadAttention calls its adapter by itself, see attention.py
    if not isinstance(host, nn.MultiheadAttention):
        hook_adapter(host)


def hook_adapter(host: nn.Module) -> None:
    """Let a layer call its adapter after itself."""
    host.register_forward_hook(call_adapter)


def unhook_adapter(host: nn.Module) -> None:
    """Let a layer no longer call its adapter."""
    for key, hook in list(host._forward_hooks.items()):
        if hook is call_adapter:
            del host._forward_hooks[key]


def call_adapter(host: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """Return a layer's output adapted: the forward hook of a layer that has an adapter. Of several
    outputs it is the first.
    """
    if isinstance(output, tuple):
        return adapt_output(host, inputs[0], output[0]), *output[1:]
    return adapt_output(host, inputs[0], output)


def adapt_output(host: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the layer's output `y` for its input `x`, adapted; `y` itself where there is no
    adapter.
    """
    adapter = host._modules.get("adapter")
    if adapter is None:
        return y
    if getattr(adapter, "parallel", False):
        return y + adapter(x)
    return adapter(y)


def detach_from(host: nn.Module) -> nn.Module:
    """Remove the adapter and its hook, and return it. Raise `KeyError` where there is none."""
    adapter = host._modules.pop("adapter")
    if adapter is None:
        raise KeyError("adapter")
    # of a fused one
    host.__dict__.pop("forward", None)
    unhook_adapter(host)
    return adapter


@torch.no_grad()
def merge_into(host: nn.Module) -> None:
    """Fold the adapter of a Linear, convolution or MultiheadAttention into new weights of its
    host, and remove it.
    """
    prefix = ""
    if isinstance(host, nn.MultiheadAttention):
        prefix = "in_proj_"
    adapter = detach_from(host)
    assert isinstance(adapter, Adapter)
    weight = getattr(host, f"{prefix}weight")
    bias = getattr(host, f"{prefix}bias")
    weight, bias = adapter.fold(weight, bias)
    host.register_parameter(f"{prefix}weight", _freeze(weight))
    host.register_parameter(f"{prefix}bias", _freeze(bias))


def _freeze(tensor: Tensor | None) -> nn.Parameter | None:
    if tensor is None:
        return None
    return nn.Parameter(tensor.clone(), requires_grad=False)
