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
    """What every adapter of a single layer offers."""

    parallel: ClassVar[bool]

    @abstractmethod
    def merged(self, weight: Tensor, bias: Tensor | None) -> Affine:
        """Weight and bias of one plain layer that does what the layer and this adapter do
        together.
        """


def place(host: nn.Module, adapter: nn.Module) -> None:
    """Give `host` its adapter. For a MultiheadAttention it serves the projection to queries, keys
    and values.
    """
    host.add_module("adapter", adapter)
    if not isinstance(host, nn.MultiheadAttention):  # that one calls it by itself, see attention.py
        place_hook(host)


def place_hook(host: nn.Module) -> None:
    """Let a layer call its adapter after itself."""
    host.register_forward_hook(call)


def served(host: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The host's output `y` for its input `x`, adapted; `y` itself where there is no adapter."""
    adapter = host._modules.get("adapter")
    if adapter is None:
        return y
    return y + adapter(x) if getattr(adapter, "parallel", False) else adapter(y)


def call(host: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """The forward hook of a layer that has an adapter."""
    return served(host, inputs[0], output)


def take_away(host: nn.Module) -> nn.Module:
    """Remove the adapter and its hook, and return it."""
    adapter = host._modules.pop("adapter")
    host.__dict__.pop("forward", None)  # a fused one
    for key, hook in list(host._forward_hooks.items()):
        if hook is call:
            del host._forward_hooks[key]
    if adapter is None:
        raise KeyError("adapter")
    return adapter


@torch.no_grad()
def merge_into(host: nn.Module) -> None:
    """Fold the adapter of a Linear, Conv2d or MultiheadAttention into new weights of its host, and
    remove it.
    """
    weight_name, bias_name = (
        ("in_proj_weight", "in_proj_bias")
        if isinstance(host, nn.MultiheadAttention)
        else ("weight", "bias")
    )
    adapter = take_away(host)
    assert isinstance(adapter, Adapter)
    weight, bias = adapter.merged(getattr(host, weight_name), getattr(host, bias_name))
    host.register_parameter(weight_name, nn.Parameter(weight.clone(), requires_grad=False))
    host.register_parameter(
        bias_name, None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
    )
