"""Attention whose projections can be adapted.

torch's MultiheadAttention and torchvision's Swin attention multiply by `layer.weight` without
calling the layer, so that a hook, an adapter or Opacus on it is never heard. These two compute the
same from the same tensors under the same names, and call every projection as a layer. The batch
stays the first axis all the way through, which per-example gradients rest on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.adapters.host import adapt_output
from fedgraft.common.adapters.targets import parent_of
from fedgraft.common.adapters.window_attention import (
    has_windows,
    ignores_bias_of_keys,
    is_open,
    open_windows,
)
from fedgraft.common.errors import UserError


def open_attention(net: nn.Module, chosen: Mapping[str, nn.Module]) -> None:
    """Open the attention modules that the chosen layers are, or are projections of, in place.

    Raises:
        UserError: an attention whose keys or values have another width, or whose batch is not the
            first axis.
    """
    for name, layer in chosen.items():
        parent = parent_of(net, name)
        if isinstance(layer, nn.MultiheadAttention):
            _open_multihead(layer, name)
        elif isinstance(parent, nn.MultiheadAttention):
            _open_multihead(parent, name.rpartition(".")[0])
        elif has_windows(parent):
            open_windows(parent)


def open_plain_attention(net: nn.Module) -> None:
    """Open every attention of torch's that can be, in place; one that cannot stays as it is."""
    for module in list(net.modules()):
        if type(module) is nn.MultiheadAttention and _can_open(module):
            module.__class__ = OpenMultiheadAttention


def _can_open(layer: nn.MultiheadAttention) -> bool:
    """Whether an attention has one width, its batch first, and no extra tokens."""
    has_extra_tokens = layer.bias_k is not None or layer.add_zero_attn
    return layer._qkv_same_embed_dim and layer.batch_first and not has_extra_tokens


def _open_multihead(layer: nn.MultiheadAttention, name: str) -> None:
    if not _can_open(layer):
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
        opened = isinstance(module, OpenMultiheadAttention) or is_open(module)
        if opened and not _is_adapted(module):
            module.__class__ = type(module).__mro__[1]


def cannot_merge_bias(net: nn.Module, name: str) -> bool:
    """Whether the layer's adapter cannot be merged by shifting its bias: Swin v2 ignores the bias
    of its keys.
    """
    return name.endswith(".qkv") and ignores_bias_of_keys(parent_of(net, name))


def _is_adapted(module: nn.Module) -> bool:
    return any(name.rpartition(".")[2] == "adapter" for name, _ in module.named_modules())


class OpenMultiheadAttention(nn.MultiheadAttention):
    """Self-attention (Vaswani et al. 2017, section 3.2) with the tensors of
    `nn.MultiheadAttention`.

        layer.__class__ = OpenMultiheadAttention
        attach_to(layer, adapter)
        y, _ = layer(x, x, x, need_weights=False)
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
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        qkv = adapt_output(self, query, projected)
        by_head = qkv.view(n, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = by_head.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        together = mixed.transpose(1, 2).reshape(n, tokens, channels)
        return self.out_proj(together), None
