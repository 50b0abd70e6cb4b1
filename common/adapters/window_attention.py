"""torchvision's attention inside windows, opened: Swin (Liu et al. 2021, "Swin Transformer",
section 3.2) and Swin v2 (Liu et al. 2022, "Swin Transformer V2", section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.adapters.host import adapt_output

_SWIN = "torchvision.models.swin_transformer"
# what keeps tokens apart in a softmax, as in torchvision
APART = -100.0


def has_windows(module: nn.Module) -> bool:
    """Whether a module is one of torchvision's two window attentions."""
    kind = type(module)
    return kind.__module__ == _SWIN and kind.__name__.startswith("ShiftedWindowAttention")


def open_windows(module: nn.Module) -> None:
    """Let a window attention call its projections as layers, in place."""
    module.__class__ = _opened(type(module))


def is_open(module: nn.Module) -> bool:
    """Whether a module is a window attention that was opened."""
    return getattr(module, "opens_windows", False)


def ignores_bias_of_keys(module: nn.Module) -> bool:
    """Whether an attention is Swin v2's, whose keys have no bias, whatever the tensor holds."""
    return hasattr(module, "logit_scale")


@cache
def _opened(base: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of one of the two, made on first use: a slow import."""
    members = {"forward": window_attention, "opens_windows": True}
    return type(f"Open{base.__name__}", (base,), members)


def window_attention(self: Any, x: Tensor) -> Tensor:
    """Return self-attention inside (shifted) windows; with a `logit_scale` Swin v2's, by cosine.

    Args:
        x: (n, H, W, channels); H and W are padded with zeros to whole windows.
    """
    _, height, width, _ = x.shape
    window = self.window_size
    padded = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    sides = (padded.shape[1], padded.shape[2])
    down = _shift_along(self, 0, sides[0])
    right = _shift_along(self, 1, sides[1])
    is_shifted = bool(down or right)
    if is_shifted:
        padded = padded.roll((-down, -right), (1, 2))

    # (n, windows, tokens, channels)
    tokens = _to_windows(padded, window)
    projected = F.linear(tokens, self.qkv.weight, _qkv_bias(self))
    qkv = adapt_output(self.qkv, tokens, projected)
    # each (n, windows, heads, tokens, d)
    q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
    # (1, 1, heads, tokens, tokens)
    bias = self.get_relative_position_bias().unsqueeze(0)
    if is_shifted:
        bias = bias + _keep_apart(sides, window, (down, right)).to(bias)[:, None]
    mixed = (_scores(self, q, k) + bias).softmax(dim=-1) @ v

    y = self.proj(mixed.transpose(2, 3).flatten(-2))
    y = _from_windows(y, window, sides)
    if is_shifted:
        y = y.roll((down, right), (1, 2))
    return y[:, :height, :width].contiguous()


def _shift_along(attention: Any, axis: int, side: int) -> int:
    """Return by how many tokens windows are shifted; by none along a side that is a single one."""
    if attention.window_size[axis] >= side:
        return 0
    return attention.shift_size[axis]


def _scores(attention: Any, q: Tensor, k: Tensor) -> Tensor:
    """Return how much each token attends to each other one, (n, windows, heads, tokens, tokens)."""
    if not ignores_bias_of_keys(attention):
        return q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    q = F.normalize(q, dim=-1)
    k = F.normalize(k, dim=-1)
    scale = attention.logit_scale.clamp(max=math.log(100.0)).exp()
    return q @ k.transpose(-2, -1) * scale


def _qkv_bias(attention: Any) -> Tensor | None:
    bias = attention.qkv.bias
    if bias is None or not ignores_bias_of_keys(attention):
        return bias
    for_q, for_k, for_v = bias.chunk(3)
    return torch.cat([for_q, torch.zeros_like(for_k), for_v])


# ── windows ───────────────────────────────────────────────────────────────────────────────────────
def _to_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """(n, H, W, channels) → (n, windows, tokens of a window, channels)."""
    tiles = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _from_windows(x: Tensor, window: Sequence[int], sides: Sequence[int]) -> Tensor:
    """Return the opposite of `_to_windows`."""
    tiles = x.unflatten(1, (sides[0] // window[0], -1)).unflatten(3, tuple(window))
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _keep_apart(sides: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Return −100 between tokens that only the shift brought into one window, (windows, tokens,
    tokens).
    """
    rows = _regions(sides[0], window[0], shift[0])
    columns = _regions(sides[1], window[1], shift[1])
    region = (3 * rows[:, None] + columns[None, :]).view(1, *sides, 1)
    inside = _to_windows(region, window)[0, :, :, 0]
    together = inside[:, :, None] == inside[:, None, :]
    return torch.where(together, 0.0, APART)


def _regions(side: int, window: int, shift: int) -> Tensor:
    """Return which of three stretches of one axis each position belongs to after the shift."""
    position = torch.arange(side)
    if not shift:
        return torch.zeros_like(position)
    behind_first = (position >= side - window).long()
    return behind_first + (position >= side - shift).long()
