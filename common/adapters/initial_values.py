"""Initial values of new layers: random numbers that depend on nothing but a seed and a name."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.adapters.convolutions import Conv, kind_of_conv

# what a layer's window is made of
WINDOW = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


@torch.no_grad()
def draw(tensor: Tensor, fan_in: int, seed: int, name: str) -> None:
    """Fill a tensor with U(−1/√fan_in, 1/√fan_in), what torch gives a new Linear or convolution.

    It comes from `seed` and `name` alone: the head begins alike under every method, and one more
    target changes no other's values.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    derived = int.from_bytes(digest[:8], "big") >> 1
    generator = torch.Generator().manual_seed(derived)
    bound = 1.0 / math.sqrt(fan_in)
    tensor.uniform_(-bound, bound, generator=generator)


def new_linear(inputs: int, outputs: int, *, bias: bool, seed: int | None, name: str) -> nn.Linear:
    """Return a trainable Linear drawn by `draw`; zeros where `seed` is None. The global random
    state is left alone.
    """
    layer = nn.Linear(inputs, outputs, bias=bias, device="meta")
    _fill(layer, inputs, seed, name)
    return layer


@dataclass(frozen=True)
class ConvShape:
    """The shape of a new convolution.

        new_conv(ConvShape(64, 8, groups=2), seed=7, name="layer1.0.conv1.lora_A", like=layer)

    Attributes:
        inputs, outputs: channels.
        groups: of channels that are convolved apart.
        bias: whether it has one.
    """

    inputs: int
    outputs: int
    groups: int = 1
    bias: bool = False


def new_conv(
    shape: ConvShape,
    *,
    seed: int | None,
    name: str,
    like: Conv | None = None,
    kind: type[Conv] = nn.Conv2d,
) -> Conv:
    """Return a trainable convolution with the window of `like` (kernel, stride, padding, …) or of
    one position; see `new_linear`.

    Args:
        kind: over how many axes, where it is like no other.
    """
    window: dict[str, Any] = {"kernel_size": 1}
    if like is not None:
        window = {key: getattr(like, key) for key in WINDOW}
        kind = kind_of_conv(like)
    options = {"groups": shape.groups, "bias": shape.bias, "device": "meta"}
    layer = kind(shape.inputs, shape.outputs, **window, **options)
    fan_in = shape.inputs // shape.groups * math.prod(layer.kernel_size)
    _fill(layer, fan_in, seed, name)
    return layer


def _fill(layer: nn.Module, fan_in: int, seed: int | None, name: str) -> None:
    """Give a layer on the meta device its values; there torch's own initialisation costs and draws
    nothing.
    """
    for part, shaped in list(layer.named_parameters()):
        # `to_empty` would import sympy, a second in every process
        values = torch.zeros(shaped.shape)
        if seed is not None:
            draw(values, fan_in, seed, f"{name}.{part}")
        setattr(layer, part, nn.Parameter(values))
