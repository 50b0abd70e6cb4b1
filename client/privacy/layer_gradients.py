"""How the gradients of single examples follow from a layer's input and the gradient at its output.

A rule takes a layer, its input x and g = ∂loss/∂y, and gives the gradient of each example for each
of the layer's trained parameters. A convolution with LoRA runs as one with the merged weight
(`common/adapters/fused.py`): the gradients of A and B follow from x and g, and a gradient of the
whole weight is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from fedgraft.client.privacy.example_gradients import Gradient, Products, Rows, norms_are_cheaper
from fedgraft.common.adapters.bias import AddedBias
from fedgraft.common.adapters.convolutions import CONVOLUTIONS, Conv, kind_of_conv
from fedgraft.common.adapters.lora import Lora
from fedgraft.common.adapters.scale_shift import ScaleShift

Rule = Callable[[Any, Tensor, Tensor], list[Gradient]]
_WEIGHT_GRADIENTS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: conv1d_weight,
    nn.Conv2d: conv2d_weight,
    nn.Conv3d: conv3d_weight,
}


def rule_for(layer: nn.Module) -> Rule | None:
    """Return the rule for a layer; None where it is not known here."""
    if isinstance(layer, CONVOLUTIONS) and not _is_padded_by_zeros(layer):
        return None
    return _RULES.get(type(layer))


# ── linear layers ─────────────────────────────────────────────────────────────────────────────────
def _linear(layer: nn.Linear, x: Tensor, g: Tensor) -> list[Gradient]:
    """y = x Wᵀ + b, over any number of positions: x (n, …, in), g (n, …, out)."""
    x = x.reshape(len(x), -1, x.shape[-1])
    g = g.reshape(len(g), -1, g.shape[-1])
    gradients: list[Gradient] = []
    if layer.weight.requires_grad:
        left = g.transpose(1, 2)[:, None]
        right = x.transpose(1, 2)[:, None]
        products = Products(layer.weight, left, right, lambda product: product[:, 0])
        gradients.append(products.cheapest())
    if layer.bias is not None and layer.bias.requires_grad:
        gradients.append(Rows(layer.bias, g.sum(1)))
    return gradients


# ── convolutions ──────────────────────────────────────────────────────────────────────────────────
def _conv(layer: Conv, x: Tensor, g: Tensor) -> list[Gradient]:
    """x (n, in, …), g (n, out, …), over one axis, two or three."""
    gradients: list[Gradient] = []
    if layer.weight.requires_grad:
        gradients.append(_conv_weight(layer, x, g))
    if layer.bias is not None and layer.bias.requires_grad:
        gradients.append(Rows(layer.bias, g.sum(tuple(range(2, g.ndim)))))
    return gradients


def _conv_weight(layer: Conv, x: Tensor, g: Tensor) -> Gradient:
    """As one convolution in which every example is a group (Rochette et al. 2019), or from windows
    of x.

    One convolution is the quicker, up to five times, where torch has a fast one: not in float64,
    nor with more groups.
    """
    inputs = layer.in_channels // layer.groups
    outputs = layer.out_channels // layer.groups
    size = inputs * math.prod(layer.kernel_size)
    single = set(layer.kernel_size) == set(layer.stride) == {1} and not any(_padding(layer))
    grouped = layer.groups == 1 and x.dtype == torch.float32
    positions = g[0, 0].numel()
    if single or not grouped or norms_are_cheaper(positions, outputs, size):
        windows = x if single else _windows(layer, x)
        left = g.reshape(len(x), layer.groups, outputs, -1)
        right = windows.reshape(len(x), layer.groups, size, -1)
        return _products(layer.weight, left, right)
    return _conv_weight_rows(layer, x, g)


def _conv_weight_rows(layer: Conv, x: Tensor, g: Tensor) -> Rows:
    """As one convolution in which every example is a group."""
    n = len(x)
    shape = (n * layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    weight_gradient = _WEIGHT_GRADIENTS[kind_of_conv(layer)]
    rows = weight_gradient(
        x.reshape(1, n * layer.in_channels, *x.shape[2:]),
        shape,  # type: ignore[arg-type]
        g.reshape(1, n * layer.out_channels, *g.shape[2:]),
        layer.stride,  # type: ignore[arg-type]
        _padding(layer),  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        n * layer.groups,
    )
    return Rows(layer.weight, rows.view(n, *layer.weight.shape))


def _windows(layer: Conv, x: Tensor) -> Tensor:
    """Return what each output position sees of x, `(n, in · kernel, positions)`."""
    if isinstance(layer, nn.Conv2d):
        return F.unfold(x, layer.kernel_size, layer.dilation, _padding(layer), layer.stride)
    around: list[int] = []
    for width in reversed(_padding(layer)):
        around += [width, width]
    windows = F.pad(x, around)
    axes = len(layer.kernel_size)
    for axis in range(axes):
        extent = (layer.kernel_size[axis] - 1) * layer.dilation[axis] + 1
        # what a position sees of this axis becomes the last
        windows = windows.unfold(2 + axis, extent, layer.stride[axis])
        windows = windows[..., :: layer.dilation[axis]]
    positions = tuple(range(2, 2 + axes))
    seen = tuple(range(2 + axes, 2 + 2 * axes))
    return windows.permute(0, 1, *seen, *positions).flatten(2 + axes).flatten(1, 1 + axes)


def _products(weight: Tensor, left: Tensor, right: Tensor) -> Gradient:
    def form(product: Tensor) -> Tensor:
        return product.reshape(len(product), *weight.shape)

    return Products(weight, left, right, form).cheapest()


def _is_padded_by_zeros(layer: Conv) -> bool:
    """Return whether a convolution says in numbers how many zeros are around its input."""
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _padding(layer: Conv) -> tuple[int, ...]:
    # `rule_for` knows no layer with padding in words
    assert not isinstance(layer.padding, str)
    return tuple(layer.padding)


def merged_lora(host: Conv, x: Tensor, g: Tensor) -> list[Gradient]:
    """y = (W + s·B A) * x as one convolution: B sees A x, and A sees s·Bᵀ g."""
    adapter = host._modules["adapter"]
    assert isinstance(adapter, Lora)
    down = adapter.lora_A
    up = adapter.lora_B
    assert isinstance(down, CONVOLUTIONS)
    assert isinstance(up, CONVOLUTIONS)
    n = len(x)
    groups = up.groups
    outputs = up.out_channels // groups
    inputs = up.in_channels // groups

    scaled = (g * adapter.scaling).reshape(n, groups, outputs, -1)
    gradients: list[Gradient] = []
    if up.weight.requires_grad:
        reduced = down._conv_forward(x, down.weight, None)
        gradients.append(_products(up.weight, scaled, reduced.reshape(n, groups, inputs, -1)))
    if down.weight.requires_grad:
        matrix = up.weight.view(groups, outputs, inputs)
        through = (matrix.transpose(1, 2) @ scaled).reshape(n, down.out_channels, *g.shape[2:])
        gradients.append(_conv_weight(down, x, through))
    return gradients


# ── adapters that add or scale ────────────────────────────────────────────────────────────────────
def _added_bias(layer: AddedBias, x: Tensor, g: Tensor) -> list[Gradient]:
    return [Rows(layer.bias, _over_positions(g, layer.last))]


def _scale_shift(layer: ScaleShift, x: Tensor, g: Tensor) -> list[Gradient]:
    scales = Rows(layer.scale, _over_positions(x * g, layer.last))
    shifts = Rows(layer.shift, _over_positions(g, layer.last))
    return [scales, shifts]


def _over_positions(values: Tensor, last: bool) -> Tensor:
    """(n, …, channels) or (n, channels, …) → (n, channels)."""
    if last:
        return values.reshape(len(values), -1, values.shape[-1]).sum(1)
    if values.ndim > 2:
        return values.flatten(2).sum(2)
    return values


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    AddedBias: _added_bias,
    ScaleShift: _scale_shift,
}
