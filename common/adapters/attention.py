"""Attention whose projections can be adapted.

torch's MultiheadAttention and torchvision's Swin attention multiply by `layer.weight` without
calling the layer, so that a hook, an adapter or Opacus on it is never heard. These two compute the
same from the same tensors under the same names, and call every projection as a layer. The batch
stays the first axis all the way through, which per-example gradients rest on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.adapters.host import served
from fedgraft.common.adapters.targets import around
from fedgraft.common.errors import UserError

_SWIN = "torchvision.models.swin_transformer"


def open_attention(net: nn.Module, chosen: Mapping[str, nn.Module]) -> None:
    """Open the attention modules that the chosen layers are, or are projections of, in place.

    Raises:
        UserError: an attention whose keys or values have another width, or whose batch is not the
            first axis.
    """
    for name, layer in chosen.items():
        above = around(net, name)
        if isinstance(layer, nn.MultiheadAttention):
            _open_multihead(layer, name)
        elif isinstance(above, nn.MultiheadAttention):
            _open_multihead(above, name.rpartition(".")[0])
        elif type(above).__module__ == _SWIN and type(above).__name__.startswith(
            "ShiftedWindowAttention"
        ):
            above.__class__ = _open_windows(type(above))


def _open_multihead(layer: nn.MultiheadAttention, name: str) -> None:
    if (
        not (layer._qkv_same_embed_dim and layer.batch_first)
        or layer.bias_k is not None
        or layer.add_zero_attn
    ):
        raise UserError(
            "an attention with other widths for keys and values, extra tokens, or a batch that is"
            " not first",
            where=name,
            remedy="leave it out of adapter.targets",
        )
    layer.__class__ = OpenMultiheadAttention


def close_attention(net: nn.Module) -> None:
    """Give attention modules without adapters their own class again."""
    for module in list(net.modules()):
        opened = isinstance(module, OpenMultiheadAttention) or getattr(
            module, "opens_windows", False
        )
        if opened and not _adapted(module):
            module.__class__ = type(module).__mro__[1]


def stays_beside(net: nn.Module, name: str) -> bool:
    """Whether the layer's adapter cannot be merged by shifting its bias: Swin v2 ignores the bias
    of its keys.
    """
    return name.endswith(".qkv") and hasattr(around(net, name), "logit_scale")


def _adapted(module: nn.Module) -> bool:
    return any(name.rpartition(".")[2] == "adapter" for name, _ in module.named_modules())


class OpenMultiheadAttention(nn.MultiheadAttention):
    """Self-attention (Vaswani et al. 2017, section 3.2) with the tensors of
    `nn.MultiheadAttention`.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, None]:  # type: ignore[override]
        """Tokens (n, tokens, channels) → the same shape; attention weights are never returned."""
        if key is not query or value is not query or options.get("need_weights", True):
            raise NotImplementedError("self-attention without returned weights only")
        if options.get("attn_mask") is not None or options.get("key_padding_mask") is not None:
            raise NotImplementedError("self-attention without masks only")
        n, tokens, channels = query.shape
        qkv = served(self, query, F.linear(query, self.in_proj_weight, self.in_proj_bias))
        q, k, v = qkv.view(n, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).reshape(n, tokens, channels)), None


@cache
def _open_windows(base: type[nn.Module]) -> type[nn.Module]:
    """A subclass of one of torchvision's two window attentions, made on first use: a slow
    import.
    """
    return type(
        f"Open{base.__name__}", (base,), {"forward": window_attention, "opens_windows": True}
    )


def window_attention(self: Any, x: Tensor) -> Tensor:
    """Self-attention inside (shifted) windows: Liu et al. 2021, "Swin Transformer", section 3.2;
    with a `logit_scale` the cosine attention of Liu et al. 2022, "Swin Transformer V2", section
    3.2.

    Args:
        x: (n, H, W, channels); H and W are padded with zeros to whole windows.
    """
    _, height, width, _ = x.shape
    window = self.window_size
    padded = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    sides = padded.shape[1], padded.shape[2]
    shift = [0 if window[i] >= sides[i] else self.shift_size[i] for i in (0, 1)]
    if any(shift):
        padded = padded.roll((-shift[0], -shift[1]), (1, 2))
    tokens = _to_windows(padded, window)  # (n, windows, tokens, channels)
    qkv = served(self.qkv, tokens, F.linear(tokens, self.qkv.weight, _qkv_bias(self)))
    q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(
        3, 0, 1, 4, 2, 5
    )  # (n, windows, heads, tokens, d)
    bias = self.get_relative_position_bias().unsqueeze(0)  # (1, 1, heads, tokens, tokens)
    if any(shift):
        bias = bias + _apart(sides, window, shift).to(bias)[:, None]
    if hasattr(self, "logit_scale"):
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        scores = q @ k.transpose(-2, -1) * self.logit_scale.clamp(max=math.log(100.0)).exp()
    else:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    mixed = (scores + bias).softmax(dim=-1) @ v
    y = self.proj(mixed.transpose(2, 3).flatten(-2))
    y = _from_windows(y, window, sides)
    if any(shift):
        y = y.roll((shift[0], shift[1]), (1, 2))
    return y[:, :height, :width].contiguous()


def _qkv_bias(attention: Any) -> Tensor | None:
    """Swin v2 gives its keys no bias, whatever the tensor holds."""
    bias = attention.qkv.bias
    if bias is None or not hasattr(attention, "logit_scale"):
        return bias
    third = bias.numel() // 3
    return torch.cat([bias[:third], torch.zeros_like(bias[:third]), bias[2 * third :]])


def _to_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """(n, H, W, channels) → (n, windows, tokens of a window, channels)."""
    tiles = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _from_windows(x: Tensor, window: Sequence[int], sides: Sequence[int]) -> Tensor:
    """The opposite of `_to_windows`."""
    tiles = x.unflatten(1, (sides[0] // window[0], -1)).unflatten(3, tuple(window))
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _apart(sides: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """−100 between tokens that only the shift brought into one window: (windows, tokens,
    tokens).
    """
    rows, columns = (_regions(sides[i], window[i], shift[i]) for i in (0, 1))
    region = (3 * rows[:, None] + columns[None, :]).view(1, *sides, 1)
    inside = _to_windows(region, window)[0, :, :, 0]
    return torch.where(inside[:, :, None] == inside[:, None, :], 0.0, -100.0)


def _regions(side: int, window: int, shift: int) -> Tensor:
    """Which of three stretches of one axis each position belongs to after the shift."""
    position = torch.arange(side)
    if not shift:
        return torch.zeros_like(position)
    return (position >= side - window).long() + (position >= side - shift).long()
