"""Clipped sums of single examples' gradients, in one pass backwards.

    forward: each trained layer keeps its input x  →  one pass backwards to the outputs: g =
        ∂loss/∂y →  the norm of each example's gradient from x and g  →  the sum over examples, each
        scaled by its factor

The book-keeping of Bu et al. 2022 ("Differentially private optimization on large model at small
cost", section 4): no gradient of a parameter is asked of torch, so none is computed for nothing,
and no second pass is needed. For a linear map an example's gradient is a product of two matrices,
Σ_t g_t x_tᵀ over its positions t (pixels, tokens). It is multiplied out where that is cheaper; else
its norm is had from the two alone, ‖·‖² = Σ (GᵀG ∘ XᵀX) (Goodfellow 2015; Li et al. 2022, section
4), and the sum is one product over all examples.

A convolution with LoRA runs as one with the merged weight (`common/adapters/fused.py`), here
however small: the gradients of A and B follow from x and g, and a gradient of the whole weight is
not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from fedgraft.common.adapters.bias import AddedBias
from fedgraft.common.adapters.fused import fuse, unfuse
from fedgraft.common.adapters.lora import Lora
from fedgraft.common.adapters.scale_shift import ScaleShift
from fedgraft.common.model.grafted_model import GraftedModel


# ── one parameter's gradients ─────────────────────────────────────────────────────────────────────
@dataclass
class Rows:
    """A gradient for each example, `(n, *shape of the parameter)`."""

    parameter: Tensor
    values: Tensor

    def squared_norms(self) -> Tensor:
        """`(n,)`."""
        return self.values.flatten(1).square().sum(1)

    def rows(self) -> Tensor:
        """`(n, *shape)`."""
        return self.values

    def drop(self, which: Tensor) -> None:
        """Set the gradients of some examples `(n,)` to zero."""
        self.values = self.values.masked_fill(which.view(-1, *[1] * (self.values.ndim - 1)), 0.0)

    def total(self, factors: Tensor) -> Tensor:
        """Their sum, each times its factor `(n,)`."""
        return (factors @ self.values.flatten(1)).view_as(self.parameter)


@dataclass
class Products:
    """Gradients that are a product of two matrices each, not multiplied out.

    Attributes:
        left: `(n, groups, a, t)`, right: `(n, groups, b, t)`; an example's gradient is left @
            rightᵀ.
        form: `(n, groups, a, b)` → `(n, *shape of the parameter)`.
    """

    parameter: Tensor
    left: Tensor
    right: Tensor
    form: Callable[[Tensor], Tensor]

    def cheapest(self) -> Rows | Products:
        """Multiplied out, unless the norms cost less without."""
        by_norms = _by_norms(self.left.shape[-1], self.left.shape[-2], self.right.shape[-2])
        return self if by_norms else Rows(self.parameter, self.rows())

    def rows(self) -> Tensor:
        """`(n, *shape)`."""
        return self.form(self.left @ self.right.transpose(-1, -2))

    def squared_norms(self) -> Tensor:
        """`(n,)`. In float64 where terms can cancel: a norm that comes out too small would be
        clipped too little.
        """
        left, right = self.left, self.right
        if left.shape[-1] == 1:
            return (left.square().sum((-2, -1)) * right.square().sum((-2, -1))).sum(-1)
        left, right = left.double(), right.double()
        grams = (left.transpose(-1, -2) @ left) * (right.transpose(-1, -2) @ right)
        return grams.sum((1, 2, 3)).clamp(min=0.0).to(self.left.dtype)

    def drop(self, which: Tensor) -> None:
        """Set the gradients of some examples `(n,)` to zero."""
        left_out = which.view(-1, 1, 1, 1)
        self.left, self.right = (
            self.left.masked_fill(left_out, 0.0),
            self.right.masked_fill(left_out, 0.0),
        )

    def total(self, factors: Tensor) -> Tensor:
        """Their sum, each times its factor `(n,)`."""
        left = (
            (self.left * factors.view(-1, 1, 1, 1)).permute(1, 2, 0, 3).flatten(2)
        )  # (groups, a, n·t)
        return self.form((left @ self.right.permute(1, 0, 3, 2).flatten(1, 2))[None])[0]


Gradient = Rows | Products


def clip_and_sum(found: Sequence[Gradient], max_norm: float) -> dict[Tensor, Tensor]:
    """The sum over examples of each one's gradient, clipped to `max_norm` over all parameters
    together.

    An example whose gradient is not finite counts as zero.
    """
    norms = torch.stack([each.squared_norms() for each in found]).sum(0).sqrt()
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)  # as Opacus has it
    broken = ~torch.isfinite(norms)
    if bool(broken.any()):
        factors = factors.masked_fill(broken, 0.0)
        for each in found:  # zero times infinity is no zero
            each.drop(broken)
    return {each.parameter: each.total(factors) for each in found}


def _by_norms(positions: int, a: int, b: int) -> bool:
    """Whether norms cost less than products: matrices (a, positions) and (b, positions).

    By multiplications: two Gram matrices in float64, twice as dear, against the product and what is
    done with it after.
    """
    return positions == 1 or 4 * positions**2 * (a + b) < a * b * (positions + 8)


# ── the layers that are known ─────────────────────────────────────────────────────────────────────
def _linear(layer: nn.Linear, x: Tensor, g: Tensor) -> list[Gradient]:
    """y = x Wᵀ + b, over any number of positions: x (n, …, in), g (n, …, out)."""
    x, g = x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
    found: list[Gradient] = []
    if layer.weight.requires_grad:
        left, right = g.transpose(1, 2)[:, None], x.transpose(1, 2)[:, None]
        found.append(Products(layer.weight, left, right, lambda product: product[:, 0]).cheapest())
    if layer.bias is not None and layer.bias.requires_grad:
        found.append(Rows(layer.bias, g.sum(1)))
    return found


def _conv(layer: nn.Conv2d, x: Tensor, g: Tensor) -> list[Gradient]:
    """x (n, in, H, W), g (n, out, H', W')."""
    found: list[Gradient] = []
    if layer.weight.requires_grad:
        found.append(_conv_weight(layer, layer.weight, x, g))
    if layer.bias is not None and layer.bias.requires_grad:
        found.append(Rows(layer.bias, g.sum((2, 3))))
    return found


def _conv_weight(layer: nn.Conv2d, weight: Tensor, x: Tensor, g: Tensor) -> Gradient:
    """As one convolution in which every example is a group (Rochette et al. 2019), or from windows
    of x.

    One convolution is the quicker, up to five times, where torch has a fast one: not in float64,
    nor with more groups.
    """
    n, groups, kernel = len(x), layer.groups, layer.kernel_size
    inputs, outputs = layer.in_channels // groups, layer.out_channels // groups
    single = kernel == layer.stride == (1, 1) and layer.padding == (0, 0)
    grouped = groups == 1 and x.dtype == torch.float32
    if single or not grouped or _by_norms(g[0, 0].numel(), outputs, inputs * kernel[0] * kernel[1]):
        windows = (
            x if single else F.unfold(x, kernel, layer.dilation, _padding(layer), layer.stride)
        )
        left, right = (
            g.reshape(n, groups, outputs, -1),
            windows.reshape(n, groups, inputs * kernel[0] * kernel[1], -1),
        )
        return Products(
            weight, left, right, lambda product: product.reshape(len(product), *weight.shape)
        ).cheapest()
    rows = conv2d_weight(
        x.reshape(1, n * layer.in_channels, *x.shape[2:]),
        (n * layer.out_channels, inputs, *kernel),  # type: ignore[arg-type]
        g.reshape(1, n * layer.out_channels, *g.shape[2:]),
        layer.stride,  # type: ignore[arg-type]
        _padding(layer),  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        n * groups,
    )
    return Rows(weight, rows.view(n, *weight.shape))


def _merged_lora(host: nn.Conv2d, x: Tensor, g: Tensor) -> list[Gradient]:
    """y = (W + s·B A) * x as one convolution: B sees A x, and A sees s·Bᵀ g."""
    adapter = host._modules["adapter"]
    assert isinstance(adapter, Lora)
    down, up = adapter.lora_A, adapter.lora_B
    assert isinstance(down, nn.Conv2d)
    assert isinstance(up, nn.Conv2d)
    groups, n = up.groups, len(x)
    scaled = (g * adapter.scaling).reshape(n, groups, up.out_channels // groups, -1)
    found: list[Gradient] = []
    if up.weight.requires_grad:
        inner = down._conv_forward(x, down.weight, None).reshape(
            n, groups, up.in_channels // groups, -1
        )
        shape = up.weight.shape
        product = Products(
            up.weight, scaled, inner, lambda product: product.reshape(len(product), *shape)
        )
        found.append(product.cheapest())
    if down.weight.requires_grad:
        matrix = up.weight.view(groups, up.out_channels // groups, up.in_channels // groups)
        through = (matrix.transpose(1, 2) @ scaled).reshape(n, down.out_channels, *g.shape[2:])
        found.append(_conv_weight(down, down.weight, x, through))
    return found


def _added_bias(layer: AddedBias, x: Tensor, g: Tensor) -> list[Gradient]:
    return [Rows(layer.bias, _over_positions(g, layer.last))]


def _scale_shift(layer: ScaleShift, x: Tensor, g: Tensor) -> list[Gradient]:
    return [
        Rows(layer.scale, _over_positions(x * g, layer.last)),
        Rows(layer.shift, _over_positions(g, layer.last)),
    ]


def _over_positions(values: Tensor, last: bool) -> Tensor:
    """(n, …, channels) or (n, channels, …) → (n, channels)."""
    if last:
        return values.reshape(len(values), -1, values.shape[-1]).sum(1)
    return values.flatten(2).sum(2) if values.ndim > 2 else values


_RULES: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], list[Gradient]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    AddedBias: _added_bias,
    ScaleShift: _scale_shift,
}


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(layer.padding, str)
    return layer.padding[0], layer.padding[1]


def _known(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d) and (
        isinstance(layer.padding, str) or layer.padding_mode != "zeros"
    ):
        return False
    return type(layer) in _RULES


# ── the model ─────────────────────────────────────────────────────────────────────────────────────
def takes(model: GraftedModel) -> bool:
    """Whether every layer that the model trains is one of those known here."""
    return all(map(_known, _trained(model)))


class Tape:
    """Keeps the inputs and outputs of a model's trained layers while it is attached."""

    def __init__(self, model: GraftedModel) -> None:
        self.model = model
        self._seen: list[tuple[Callable[..., list[Gradient]], nn.Module, Tensor, Tensor]] = []
        self._hooks: list[Any] = []
        fuse(model.net, always=True)
        merged = [host for host in model.net.modules() if "forward" in host.__dict__]
        inside = {id(layer) for host in merged for layer in host.modules() if layer is not host}
        for host in merged:
            self._attach(host, _merged_lora)
        for layer in _trained(model):
            if id(layer) not in inside:
                self._attach(layer, _RULES[type(layer)])

    def clipped_sums(
        self, losses: Tensor, max_norm: float, owners: Tensor | None = None
    ) -> dict[Tensor, Tensor]:
        """Sum over examples of the gradient of each one's loss, clipped to `max_norm` over all
        parameters together.

        An example whose gradient is not finite counts as zero.

        Args:
            losses: `(n,)`, of a forward pass while attached.
            owners: `(n,)` numbers from 0; then each owner's mean is clipped instead.

        Raises:
            RuntimeError: a layer that was called more than once, or whose first axis is not the
                examples.
        """
        seen, self._seen = self._seen, []
        if len({id(layer) for _, layer, _, _ in seen}) < len(seen):
            raise RuntimeError("a trained layer is called more than once")
        outputs = [y for _, _, _, y in seen]
        grads = torch.autograd.grad(losses.sum(), outputs, allow_unused=True)
        with torch.no_grad():
            found: list[Gradient] = []
            for (rule, layer, x, _), g in zip(seen, grads, strict=True):
                if g is None:
                    continue
                if len(x) != len(losses) or len(g) != len(losses):
                    raise RuntimeError(
                        "a trained layer does not have the examples as its first axis"
                    )
                found += rule(layer, x.contiguous(), g.contiguous())
            if owners is not None:
                found = [Rows(each.parameter, mean_by_owner(each.rows(), owners)) for each in found]
            return clip_and_sum(found, max_norm)

    def forget(self) -> None:
        """Drop what a forward pass left, if no `clipped_sums` came after it."""
        self._seen.clear()

    def detach(self) -> None:
        """Leave the model as it was."""
        self.forget()
        for hook in self._hooks:
            hook.remove()
        unfuse(self.model.net)

    def _attach(self, layer: nn.Module, rule: Callable[..., list[Gradient]]) -> None:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if torch.is_grad_enabled():
                self._seen.append((rule, module, inputs[0].detach(), output))

        self._hooks.append(layer.register_forward_hook(keep))


def mean_by_owner(gradients: Tensor, owners: Tensor) -> Tensor:
    """(n, …) by example → (owners, …): the mean over each owner's examples."""
    sums = torch.zeros((int(owners.max()) + 1, *gradients.shape[1:]), dtype=gradients.dtype)
    sums.index_add_(0, owners, gradients)
    return sums / owners.bincount().view(-1, *[1] * (gradients.ndim - 1))


def _trained(model: GraftedModel) -> list[nn.Module]:
    """Modules that hold trainable parameters of their own."""
    return [
        module
        for module in model.net.modules()
        if any(p is not None and p.requires_grad for p in module._parameters.values())
    ]
