"""Frozen Linear layers with weights of 8 or 4 bits, so that a large network fits: what is trained
beside them stays in float32 (Dettmers et al. 2023, "QLoRA", arXiv:2305.14314).

    int8   of each output its largest magnitude is 127 (Dettmers et al. 2022, "LLM.int8()",
           section 2.1: vector-wise, without its columns of outliers)
    nf4    of every 64 values the largest magnitude is 1, and each of the 64 the nearest of 16
           quantiles of a normal distribution (QLoRA, section 3; without its second quantization)

A layer's product is computed in its inputs' precision, with weights that are made for it and let go
again: forward, and once more for the gradient of its inputs. So memory holds one layer's weights at
a time. The coordinator quantizes as weights are loaded, and hands out the result: the fingerprint
is of what nodes compute with, and a hand-out is as much smaller.

Quantized is what most of a transformer's values are in: every Linear but the head and those inside
of torch's own MultiheadAttention, which reads their weights by itself.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.errors import UserError

Quantization = Literal["int8", "nf4"]
# values with one scale (nf4), which a weight must be a multiple of
BLOCK = 64
INSTALL = "pip install 'fedgraft[quantized]'"


class QuantizedLinear(nn.Linear):
    """A frozen Linear that keeps no weight, but what one is made of.

        layer = Int8Linear.of(nn.Linear(64, 32))
        layer(x)  # as F.linear(x, layer.weight, layer.bias)

    Attributes:
        codes: name of the buffer that holds the numbers; `weight_scale` holds float32 scales.
    """

    codes: ClassVar[str]

    def __init__(self, inputs: int, outputs: int, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.in_features = inputs
        self.out_features = outputs
        self.register_parameter("bias", bias)

    @classmethod
    def of(cls, layer: nn.Linear) -> QuantizedLinear:
        """Quantize a layer's weight; its bias stays as it is. On `meta` nothing is computed."""
        quantized = cls(layer.in_features, layer.out_features, layer.bias)
        for name, values in cls.quantize(layer.weight.detach()).items():
            quantized.register_buffer(name, values)
        return quantized

    @staticmethod
    @abstractmethod
    def quantize(weight: Tensor) -> Mapping[str, Tensor]:
        """Return buffers by name for a weight `(out, in)`, float32."""

    @abstractmethod
    def make_weight(self, dtype: torch.dtype) -> Tensor:
        """Return the weight `(out, in)` that the numbers stand for."""

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the weight `(out, in)` in float32, made anew."""
        return self.make_weight(torch.float32)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(…, in) → (…, out)."""
        y: Any = _Product.apply(x, self)
        return y if self.bias is None else y + self.bias


class Int8Linear(QuantizedLinear):
    """Weights of 8 bits: 1.004 bytes each, for rows of 1,024."""

    codes = "weight_int8"
    weight_int8: Tensor
    weight_scale: Tensor

    @staticmethod
    def quantize(weight: Tensor) -> Mapping[str, Tensor]:
        """Return int8 `(out, in)` and a scale for each output `(out, 1)`."""
        largest = weight.abs().amax(1, keepdim=True)
        # a row of zeros has any scale
        scale = largest.where(largest > 0, 1.0) / 127
        codes = (weight / scale).round().clamp(-127, 127).to(torch.int8)
        return {"weight_int8": codes, "weight_scale": scale}

    def make_weight(self, dtype: torch.dtype) -> Tensor:
        """Return the weight `(out, in)` that the numbers stand for."""
        return (self.weight_int8.to(torch.float32) * self.weight_scale).to(dtype)


class Nf4Linear(QuantizedLinear):
    """Weights of 4 bits: 0.5625 bytes each with their scales."""

    codes = "weight_nf4"
    weight_nf4: Tensor
    weight_scale: Tensor

    @staticmethod
    def quantize(weight: Tensor) -> Mapping[str, Tensor]:
        """Return two numbers to a byte `(out · in / 2,)`, and a scale for every 64 `(…,)`."""
        if weight.device.type == "meta":
            codes = weight.new_empty(weight.numel() // 2, dtype=torch.uint8)
            return {"weight_nf4": codes, "weight_scale": weight.new_empty(weight.numel() // BLOCK)}
        codes, state = _bitsandbytes().quantize_4bit(
            weight.contiguous(), blocksize=BLOCK, quant_type="nf4"
        )
        return {"weight_nf4": codes.reshape(-1), "weight_scale": state.absmax}

    def make_weight(self, dtype: torch.dtype) -> Tensor:
        """Return the weight `(out, in)` that the numbers stand for."""
        shape = (self.out_features, self.in_features)
        if self.weight_nf4.device.type == "meta":
            return self.weight_scale.new_empty(shape, dtype=dtype)
        library = _bitsandbytes()
        state = library.QuantState(
            absmax=self.weight_scale,
            shape=torch.Size(shape),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=torch.float32 if dtype == torch.float64 else dtype,
        )
        return library.dequantize_4bit(self.weight_nf4[:, None], state).to(dtype)


KINDS: Mapping[str, type[QuantizedLinear]] = {"int8": Int8Linear, "nf4": Nf4Linear}


class _Product(torch.autograd.Function):
    """x Wᵀ, whose W is made again for the gradient of x: torch would keep it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, layer: QuantizedLinear) -> Tensor:  # pyright: ignore
        return F.linear(x, layer.make_weight(x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.layer = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return g @ ctx.layer.make_weight(g.dtype), None


# ── layers of a network ───────────────────────────────────────────────────────────────────────────
def choose_layers(net: nn.Module, head_name: str) -> list[str]:
    """Return the names of the layers that are quantized.

    Raises:
        UserError: there are none.
    """
    chosen: list[str] = []
    inside = ""
    for name, module in net.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            inside = f"{name}."
        if name == head_name or (inside and name.startswith(inside)):
            continue
        if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
            continue
        if module.weight.numel() % BLOCK == 0:
            chosen.append(name)
    if not chosen:
        raise UserError(
            "there, and this network has no Linear layers that are frozen",
            where="backbone.quantization",
            remedy="leave it out: it is for transformers",
        )
    return chosen


def quantize_layers(net: nn.Module, head_name: str, kind: Quantization | None) -> None:
    """Quantize every layer that is chosen, in place; None: nothing."""
    if kind is None:
        return
    for name in choose_layers(net, head_name):
        quantize_layer(net, name, kind)


def quantize_layer(net: nn.Module, name: str, kind: str) -> None:
    """Put a quantized layer in the place of a Linear."""
    layer = net.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    net.set_submodule(name, KINDS[kind].of(layer))


def open_quantized(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put quantized layers where a state has the numbers of some, and no weight.

    Raises:
        UserError: a kind that needs a package that is not installed.
    """
    for name, module in list(net.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        for kind, layer in KINDS.items():
            if f"{name}.{layer.codes}" in state:
                check_installed(kind)
                quantize_layer(net, name, kind)


def count_plain_bytes(net: nn.Module) -> int:
    """Return the bytes of a network's parameters, of quantized layers those of their weights in
    float32.
    """
    total = sum(parameter.nbytes for parameter in net.parameters())
    for module in net.modules():
        if isinstance(module, QuantizedLinear):
            total += 4 * module.in_features * module.out_features
    return total


@torch.no_grad()
def widen_layers(net: nn.Module) -> None:
    """Put plain layers in the place of quantized ones, in place, with the weights they stand for;
    an adapter stays on its layer.
    """
    for name, module in list(net.named_modules()):
        if not isinstance(module, QuantizedLinear):
            continue
        plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(module.weight, requires_grad=False)
        plain.register_parameter("bias", module.bias)
        for child, inner in module.named_children():
            plain.add_module(child, inner)
        plain._forward_hooks = module._forward_hooks
        net.set_submodule(name, plain)


def check_installed(kind: str | None) -> None:
    """Raise `UserError` where this machine lacks what weights of a kind are made with."""
    if kind == "nf4" and find_spec("bitsandbytes") is None:
        what = "weights of 4 bits need the package bitsandbytes"
        raise UserError(what, where="backbone.quantization", remedy=INSTALL)


def _bitsandbytes() -> Any:
    """Return the functions of the library that has NF4. Raise `UserError` where it is missing."""
    check_installed("nf4")
    # it misses an optional package for products that are not asked for here
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # takes a second to import
    import bitsandbytes.functional

    return bitsandbytes.functional
