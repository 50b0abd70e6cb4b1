"""LoRA: a low-rank update beside a frozen weight (Hu et al. 2021, "LoRA", section 4.1).

    y = W x + (alpha / rank) · B A x,   A: rank × in, drawn;   B: out × rank, zero at the beginning

For a convolution, over one axis, two or three, A has the layer's own window and B one position. In
a grouped one A and B are grouped, too, so that the update can be merged: its rank is `rank` rounded
up to a multiple of the groups. A depthwise layer's update has as many values as the layer itself;
"auto" leaves those out, a pattern can name them.

With `freeze_a` only B is trained and travels, and the average of the nodes' updates is the update
of their average (FFA-LoRA: Sun et al. 2024, "Improving LoRA in privacy-preserving federated
learning").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedgraft.common.adapters.attention import open_attention
from fedgraft.common.adapters.convolutions import CONVOLUTIONS, Conv, kind_of_conv
from fedgraft.common.adapters.host import Adapter, Affine, attach_to
from fedgraft.common.adapters.initial_values import ConvShape, new_conv, new_linear
from fedgraft.common.adapters.method import Attachment, Method, Targets
from fedgraft.common.adapters.peft_layout import PEFT_LAYOUT
from fedgraft.common.adapters.targets import (
    find_layers,
    is_depthwise,
    list_patterns,
    parent_of,
    select,
)
from fedgraft.common.errors import UserError


@dataclass(frozen=True)
class LoraOptions:
    """Options of `adapter.method: lora`.

    Attributes:
        rank: of the added matrices.
        alpha: the update is scaled by alpha / rank; None gives 2 · rank.
    """

    rank: int = 8
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            what = f"{self.rank} is too small"
            raise UserError(what, where="adapter.rank", remedy="give 1 or more")
        if not (math.isfinite(self.numerator) and self.numerator > 0):
            what = f"{self.numerator} is no scale"
            raise UserError(what, where="adapter.alpha", remedy="give a number above 0")

    @property
    def numerator(self) -> float:
        """Return alpha, the plan's or its default."""
        if self.alpha is None:
            return 2.0 * self.rank
        return float(self.alpha)

    @property
    def scaling(self) -> float:
        """Return the factor of an update, alpha / rank."""
        return self.numerator / self.rank


class Lora(Adapter):
    """B A x, scaled; children `lora_A` and `lora_B` are plain Linear or convolution layers
    without bias.

            down = nn.Linear(64, 8, bias=False)
        up = nn.Linear(8, 32, bias=False)
        attach_to(layer, Lora(down, up, scaling=2.0))

    Args:
        scaling: alpha / rank.
    """

    parallel = True
    moves_bias = False

    lora_A: nn.Linear | Conv
    lora_B: nn.Linear | Conv

    def __init__(self, lora_A: nn.Linear | Conv, lora_B: nn.Linear | Conv, scaling: float) -> None:
        super().__init__()
        self.lora_A = lora_A
        self.lora_B = lora_B
        self.scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the layer's output for its input."""
        return self.lora_B(self.lora_A(x)) * self.scaling

    def fold(self, weight: Tensor, bias: Tensor | None) -> Affine:
        """Return W + (alpha / rank) · B A, group by group, and the bias as it is."""
        down = self.lora_A.weight
        up = self.lora_B.weight
        if isinstance(self.lora_A, CONVOLUTIONS):
            groups = self.lora_A.groups
            down = down.reshape(groups, down.shape[0] // groups, -1)
            up = up.reshape(groups, up.shape[0] // groups, -1)
            update = torch.bmm(up, down).reshape(weight.shape)
        else:
            update = up @ down
        return weight + self.scaling * update, bias


def attach_lora(net: nn.Module, attachment: Attachment) -> None:
    """Put a LoRA update on every target: Linear, convolutions, projections of an attention."""
    targets = attachment.targets
    chosen = select(_candidates(net, targets), targets, net)
    open_attention(net, chosen)
    for name, layer in chosen.items():
        adapter = _new_lora(name, layer, attachment)
        adapter.lora_A.requires_grad_(not attachment.freeze_drawn)
        attach_to(layer, adapter)


def _candidates(net: nn.Module, targets: Targets) -> dict[str, nn.Module]:
    """Return all layers, but for two kinds that must be asked for by name.

    Depthwise convolutions, and the output projection of a MultiheadAttention, to which PEFT 0.21
    adds the update twice (its pull request 3774): what we save would mean something else there.
    """
    patterns = list_patterns(targets)
    output_named = any(pattern.endswith("out_proj") for pattern in patterns)
    candidates: dict[str, nn.Module] = {}
    for name, layer in find_layers(net).items():
        if is_depthwise(layer) and not patterns:
            continue
        if isinstance(parent_of(net, name), nn.MultiheadAttention) and not output_named:
            continue
        candidates[name] = layer
    return candidates


def _new_lora(name: str, layer: nn.Module, attachment: Attachment) -> Lora:
    options: LoraOptions = attachment.options
    if isinstance(layer, CONVOLUTIONS):
        return _new_conv_lora(name, layer, attachment)
    if isinstance(layer, nn.MultiheadAttention):
        inputs = layer.embed_dim
        outputs = 3 * layer.embed_dim
    elif isinstance(layer, nn.Linear):
        inputs = layer.in_features
        outputs = layer.out_features
    else:
        raise TypeError(f"{type(layer).__name__} is no layer that LoRA serves")
    seed = attachment.seed
    down = new_linear(inputs, options.rank, bias=False, seed=seed, name=f"{name}.lora_A")
    up = new_linear(options.rank, outputs, bias=False, seed=None, name=f"{name}.lora_B")
    return Lora(down, up, options.scaling)


def _new_conv_lora(name: str, layer: Conv, attachment: Attachment) -> Lora:
    options: LoraOptions = attachment.options
    groups = layer.groups
    # rounded up to a multiple of the groups
    rank = -(-options.rank // groups) * groups
    down = new_conv(
        ConvShape(layer.in_channels, rank, groups),
        seed=attachment.seed,
        name=f"{name}.lora_A",
        like=layer,
    )
    up = new_conv(
        ConvShape(rank, layer.out_channels, groups),
        seed=None,
        name=f"{name}.lora_B",
        kind=kind_of_conv(layer),
    )
    return Lora(down, up, options.scaling)


LORA = Method(
    "lora",
    attach_lora,
    describe=lambda options: f"LoRA adapter of rank {options.rank} and the classifier",
    options=LoraOptions,
    layout=PEFT_LAYOUT,
)
