"""LoRA: a low-rank update beside a frozen weight (Hu et al. 2021, "LoRA", section 4.1).

    y = W x + (alpha / rank) · B A x,   A: rank × in, drawn;   B: out × rank, zero at the beginning

For a convolution, A has the layer's own window and B is 1×1. In a grouped one A and B are grouped,
too, so that the update can be merged: its rank is `rank` rounded up to a multiple of the groups. A
depthwise layer's update has as many values as the layer itself; "auto" leaves those out, a pattern
can name them.

With `freeze_a` only B is trained and travels, and the average of the nodes' updates is the update
of their average (FFA-LoRA: Sun et al. 2024, "Improving LoRA in privacy-preserving federated
learning").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedgraft.common.adapters.attachment import Adapter, Affine, place
from fedgraft.common.adapters.attention import open_attention
from fedgraft.common.adapters.options import Options, Targets, new_conv, new_linear
from fedgraft.common.adapters.targets import around, is_depthwise, layers, select


class Lora(Adapter):
    """B A x, scaled; children `lora_A` and `lora_B` are plain Linear or Conv2d layers without
    bias.
    """

    parallel = True

    lora_A: nn.Linear | nn.Conv2d
    lora_B: nn.Linear | nn.Conv2d

    def __init__(
        self, lora_A: nn.Linear | nn.Conv2d, lora_B: nn.Linear | nn.Conv2d, scaling: float
    ) -> None:
        super().__init__()
        self.lora_A, self.lora_B, self.scaling = lora_A, lora_B, scaling

    def forward(self, x: Tensor) -> Tensor:
        """The layer's input → what is added to its output."""
        return self.lora_B(self.lora_A(x)) * self.scaling

    def merged(self, weight: Tensor, bias: Tensor | None) -> Affine:
        """W + (alpha / rank) · B A, group by group; the bias stays."""
        down, up = self.lora_A.weight, self.lora_B.weight
        if isinstance(self.lora_A, nn.Conv2d):
            groups = self.lora_A.groups
            down = down.reshape(groups, down.shape[0] // groups, -1)
            up = up.reshape(groups, up.shape[0] // groups, -1)
            update = torch.bmm(up, down).reshape(weight.shape)
        else:
            update = up @ down
        return weight + self.scaling * update, bias


def place_lora(net: nn.Module, options: Options) -> None:
    """Put a LoRA update on every target: Linear, Conv2d, and the projections of an attention."""
    chosen = select(_candidates(net, options.targets), options.targets, net)
    open_attention(net, chosen)
    for name, layer in chosen.items():
        adapter = _new_lora(name, layer, options)
        adapter.lora_A.requires_grad_(not options.freeze_a)
        place(layer, adapter)


def _candidates(net: nn.Module, targets: Targets) -> dict[str, nn.Module]:
    """All layers, but for two kinds that must be asked for by name.

    Depthwise convolutions, and the output projection of a MultiheadAttention, to which PEFT 0.21
    adds the update twice (its pull request 3774): what we save would mean something else there.
    """
    patterns = (
        ()
        if targets in ("auto", "last-block")
        else (targets,)
        if isinstance(targets, str)
        else tuple(targets)
    )
    output_named = any(pattern.endswith("out_proj") for pattern in patterns)
    return {
        name: layer
        for name, layer in layers(net).items()
        if not (is_depthwise(layer) and not patterns)
        and not (isinstance(around(net, name), nn.MultiheadAttention) and not output_named)
    }


def _new_lora(name: str, layer: nn.Module, options: Options) -> Lora:
    rank, seed = options.rank, options.seed
    a, b = f"{name}.lora_A", f"{name}.lora_B"
    if isinstance(layer, nn.Conv2d):
        groups = layer.groups
        total = -(-rank // groups) * groups
        down = new_conv(
            layer, layer.in_channels, total, groups=groups, bias=False, seed=seed, name=a
        )
        up = new_conv(None, total, layer.out_channels, groups=groups, bias=False, seed=None, name=b)
        return Lora(down, up, options.scaling)
    if isinstance(layer, nn.MultiheadAttention):
        inputs, outputs = layer.embed_dim, 3 * layer.embed_dim
    else:
        assert isinstance(layer, nn.Linear)
        inputs, outputs = layer.in_features, layer.out_features
    down = new_linear(inputs, rank, bias=False, seed=seed, name=a)
    return Lora(down, new_linear(rank, outputs, bias=False, seed=None, name=b), options.scaling)
