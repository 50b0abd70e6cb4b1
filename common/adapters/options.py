"""What a method may be told, and random numbers that depend on nothing but a seed and a name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Targets = str | Sequence[str]


@dataclass(frozen=True)
class Options:
    """Options of all methods; each reads its own.

    Attributes:
        rank: of a LoRA update.
        scaling: factor of a LoRA update, alpha / rank.
        width: of a bottleneck.
        targets: "auto", "last-block" or patterns of module names.
        seed: of the initial values.
        freeze_a: A of a LoRA update stays as it was drawn.
    """

    rank: int
    scaling: float
    width: int
    targets: Targets
    seed: int
    freeze_a: bool = False


@torch.no_grad()
def draw(tensor: Tensor, fan_in: int, seed: int, name: str) -> None:
    """Fill with U(−1/√fan_in, 1/√fan_in), what torch gives a new Linear or Conv2d, from `seed` and
    `name` alone.

    So the head begins alike under every method, and one more target changes no other's values.
    """
    derived = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(derived, "big") >> 1)
    bound = 1.0 / math.sqrt(fan_in)
    tensor.uniform_(-bound, bound, generator=generator)


def new_linear(inputs: int, outputs: int, *, bias: bool, seed: int | None, name: str) -> nn.Linear:
    """A trainable Linear drawn by `draw`; zeros where `seed` is None. No global random state."""
    layer = nn.Linear(inputs, outputs, bias=bias, device="meta")
    _fill(layer, inputs, seed, name)
    return layer


def new_conv(
    like: nn.Conv2d | None,
    inputs: int,
    outputs: int,
    *,
    groups: int,
    bias: bool,
    seed: int | None,
    name: str,
) -> nn.Conv2d:
    """A trainable Conv2d with the window of `like` (kernel, stride, padding, …) or 1×1; see
    `new_linear`.
    """
    window: dict[str, Any] = {"kernel_size": 1}
    if like is not None:
        window = {
            "kernel_size": like.kernel_size,
            "stride": like.stride,
            "padding": like.padding,
            "dilation": like.dilation,
            "padding_mode": like.padding_mode,
        }
    layer = nn.Conv2d(inputs, outputs, groups=groups, bias=bias, device="meta", **window)
    _fill(layer, inputs // groups * math.prod(layer.kernel_size), seed, name)
    return layer


def _fill(layer: nn.Module, fan_in: int, seed: int | None, name: str) -> None:
    """Values for a layer on the meta device, where torch's own initialisation costs and draws
    nothing.
    """
    for part, shaped in list(layer.named_parameters()):
        values = torch.zeros(
            shaped.shape
        )  # `to_empty` would import sympy, a second in every process
        if seed is not None:
            draw(values, fan_in, seed, f"{name}.{part}")
        setattr(layer, part, nn.Parameter(values))
