"""The steps that a converted network may take: a closed list, each with its bounds, what it does,
and where the records of a batch are behind it.

A step is data. It names no code: `op` picks one of the classes here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from fedgraft.common.backbones.record_axis import (
    LARGEST_SIZE,
    Place,
    Records,
    check_axes,
    check_first,
    follow_product,
    follow_reshape,
    follow_together,
    follow_transpose,
)

# of one layer
MOST_WEIGHTS = 500_000_000
Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]
# −k: k times the records of the batch
Entry = Annotated[int, Field(ge=-LARGEST_SIZE, le=LARGEST_SIZE)]
Window = Annotated[int, Field(ge=1, le=1024)]
Margin = Annotated[int, Field(ge=0, le=1024)]
Axis = Annotated[int, Field(ge=0, le=7)]
Axes = Annotated[tuple[Axis, ...], Field(min_length=1, max_length=8)]
Index = Annotated[int, Field(ge=0, le=LARGEST_SIZE)]
Number = Annotated[float, Field(ge=-3.5e38, le=3.5e38)]
Epsilon = Annotated[float, Field(ge=0, le=1)]
Layer = Annotated[str, Field(pattern=r"^(conv|linear|norm|table)\d{1,5}$")]
Constant = Annotated[str, Field(pattern=r"^constant\d{1,5}$")]
# what enters the part is 0, what its first step gives 1, and so on; or a constant's name
Source = Annotated[int, Field(ge=0, le=100_000)] | Constant
One = Annotated[tuple[Source, ...], Field(min_length=1, max_length=1)]
Two = Annotated[tuple[Source, ...], Field(min_length=2, max_length=2)]
Many = Annotated[tuple[Source, ...], Field(min_length=1, max_length=512)]
Pair = tuple[Window, Window]
Margins = tuple[Margin, Margin]


class Step(BaseModel):
    """One step of a part of a network.

    Attributes:
        op: which one it is.
        inputs: what it takes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    op: str
    inputs: Any

    @property
    def layer(self) -> str | None:
        """Name of the layer that it calls; None: it has no tensors of its own."""
        return getattr(self, "name", None)

    def build(self) -> nn.Module:
        """Return the layer, in torch's own initialisation."""
        raise NotImplementedError(self.op)

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        """Return what the step gives."""
        raise NotImplementedError(self.op)

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        """Return where the records are in its output. Raise `ValueError` where it mixes them."""
        raise NotImplementedError(self.op)


# ── layers ────────────────────────────────────────────────────────────────────────────────────────
class _LayerStep(Step):
    """A step that calls a layer of its part."""

    inputs: One

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        return part._modules[str(self.layer)](inputs[0])  # type: ignore[misc]


def _check_weight(values: int) -> None:
    """Raise `ValueError` for a weight of too many values."""
    if values > MOST_WEIGHTS:
        raise ValueError(f"a weight of {values:,} values")


class Conv(_LayerStep):
    """A convolution over images (n, channels, H, W)."""

    op: Literal["conv"]
    name: Layer
    in_channels: Size
    out_channels: Size
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Margins = (0, 0)
    dilation: Pair = (1, 1)
    groups: Size = 1
    bias: bool = True

    @model_validator(mode="after")
    def _has_a_weight(self) -> Conv:
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"{self.groups} groups do not divide its channels")
        inputs = self.in_channels // self.groups
        _check_weight(inputs * self.out_channels * self.kernel[0] * self.kernel[1])
        return self

    def build(self) -> nn.Module:
        return nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias,
        )

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        return check_first(places[0], inputs[0])


class Linear(_LayerStep):
    """A linear layer over the last axis, (…, in) → (…, out)."""

    op: Literal["linear"]
    name: Layer
    in_features: Size
    out_features: Size
    bias: bool = True

    @model_validator(mode="after")
    def _has_a_weight(self) -> Linear:
        _check_weight(self.in_features * self.out_features)
        return self

    def build(self) -> nn.Module:
        return nn.Linear(self.in_features, self.out_features, bias=self.bias)

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        check_axes(places[0], [inputs[0].ndim - 1])
        return places[0]


class BatchNorm(_LayerStep):
    """Normalisation of each channel by what was learnt, (n, channels, …)."""

    op: Literal["batch-norm"]
    name: Layer
    channels: Size
    epsilon: Epsilon = 1e-5
    axes: Literal[2, 3, 4] = 4

    def build(self) -> nn.Module:
        kind = nn.BatchNorm2d if self.axes == 4 else nn.BatchNorm1d
        return kind(self.channels, eps=self.epsilon)

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        return check_first(places[0], inputs[0])


class LayerNorm(_LayerStep):
    """Normalisation over the last axis."""

    op: Literal["layer-norm"]
    name: Layer
    width: Size
    epsilon: Epsilon = 1e-5

    def build(self) -> nn.Module:
        return nn.LayerNorm(self.width, eps=self.epsilon)

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        check_axes(places[0], [inputs[0].ndim - 1])
        return places[0]


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────
class Embedding(_LayerStep):
    """The rows of a table that whole numbers name, (…) → (…, width)."""

    op: Literal["embedding"]
    name: Layer
    rows: Annotated[int, Field(ge=1, le=1_000_000)]
    width: Size

    @model_validator(mode="after")
    def _has_a_weight(self) -> Embedding:
        _check_weight(self.rows * self.width)
        return self

    def build(self) -> nn.Module:
        return nn.Embedding(self.rows, self.width)

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        # whatever a server's tokenizer gives
        numbers = inputs[0].long().clamp(0, self.rows - 1)
        return super().run(part, [numbers], records)

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        return places[0]


class Tokens(Step):
    """Of tokens (n, length), −1 where there is none: their numbers, or 1 where there is one."""

    op: Literal["token-ids", "token-mask"]
    inputs: One

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        if self.op == "token-ids":
            return inputs[0].clamp(min=0)
        return (inputs[0] >= 0).to(torch.float32)

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        return check_first(places[0], inputs[0])


# ── value by value ────────────────────────────────────────────────────────────────────────────────
class _ValueStep(Step):
    """A step that takes values one by one."""

    inputs: One

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        return places[0]


FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal,
    "neg": torch.neg,
    "abs": torch.abs,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "hard-swish": F.hardswish,
    "mish": F.mish,
    "gelu": F.gelu,
    "floor": torch.floor,
}


class Function(_ValueStep):
    """A function without numbers of its own."""

    op: Literal[
        "relu",
        "sigmoid",
        "tanh",
        "erf",
        "exp",
        "log",
        "sqrt",
        "reciprocal",
        "neg",
        "abs",
        "softplus",
        "softsign",
        "hard-swish",
        "mish",
        "gelu",
        "floor",
    ]

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        return FUNCTIONS[self.op](inputs[0])


class Clip(_ValueStep):
    """Values between two numbers."""

    op: Literal["clip"]
    low: Number | None = None
    high: Number | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Clip:
        if self.low is None and self.high is None:
            raise ValueError("neither low nor high")
        return self

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        return torch.clamp(inputs[0], self.low, self.high)


class LeakyRelu(_ValueStep):
    """x where it is positive, slope · x elsewhere."""

    op: Literal["leaky-relu"]
    slope: Number = 0.01

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        return F.leaky_relu(inputs[0], self.slope)


class Elu(_ValueStep):
    """x where it is positive, alpha · (eˣ − 1) elsewhere."""

    op: Literal["elu"]
    alpha: Number = 1.0

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        return F.elu(inputs[0], self.alpha)


class HardSigmoid(_ValueStep):
    """slope · x + shift, between 0 and 1."""

    op: Literal["hard-sigmoid"]
    slope: Number = 0.2
    shift: Number = 0.5

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        return (self.slope * inputs[0] + self.shift).clamp(0.0, 1.0)


class Softmax(Step):
    """Probabilities along an axis."""

    op: Literal["softmax"]
    inputs: One
    axis: Axis

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        return inputs[0].softmax(self.axis)

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        check_axes(places[0], [self.axis])
        return places[0]


_TOGETHER: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
    "max": torch.maximum,
    "min": torch.minimum,
}


class Together(Step):
    """Two tensors, value by value."""

    op: Literal["add", "sub", "mul", "div", "pow", "max", "min"]
    inputs: Two

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        return _TOGETHER[self.op](*inputs)

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        return follow_together(places, inputs, output)


class MatMul(Step):
    """A product of matrices, neither of them a layer's weight."""

    op: Literal["matmul"]
    inputs: Two

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        return inputs[0] @ inputs[1]

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        return follow_product(places, inputs, output)


# ── over windows and axes ─────────────────────────────────────────────────────────────────────────
class Pool(Step):
    """The largest value, or the mean, of each window of images (n, channels, H, W)."""

    op: Literal["max-pool", "average-pool"]
    inputs: One
    kernel: Pair
    stride: Pair
    padding: Margins = (0, 0)
    dilation: Pair = (1, 1)
    ceil: bool = False
    counts_padding: bool = False

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        around = (self.kernel, self.stride, self.padding)
        if self.op == "max-pool":
            return F.max_pool2d(inputs[0], *around, self.dilation, ceil_mode=self.ceil)
        return F.avg_pool2d(
            inputs[0], *around, ceil_mode=self.ceil, count_include_pad=self.counts_padding
        )

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        return check_first(places[0], inputs[0])


class Reduce(Step):
    """Mean, sum, largest or smallest along axes."""

    op: Literal["mean", "sum", "largest", "smallest"]
    inputs: One
    axes: Axes
    keep: bool = True

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        (x,) = inputs
        if self.op == "mean":
            return x.mean(self.axes, keepdim=self.keep)
        if self.op == "sum":
            return x.sum(self.axes, keepdim=self.keep)
        if self.op == "largest":
            return x.amax(self.axes, keepdim=self.keep)
        return x.amin(self.axes, keepdim=self.keep)

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        (place,) = places
        check_axes(place, self.axes)
        if place is None or self.keep:
            return place
        before = sum(axis < place.axis for axis in set(self.axes))
        return Records(place.axis - before, place.inside)


class Pad(Step):
    """A value around a tensor: for each axis, how often before and behind."""

    op: Literal["pad"]
    inputs: One
    margins: Annotated[tuple[Margins, ...], Field(min_length=1, max_length=8)]
    value: Number = 0.0

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        around: list[int] = []
        for before, behind in self.margins[::-1]:
            around += [before, behind]
        return F.pad(inputs[0], around, value=self.value)

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        if len(self.margins) != inputs[0].ndim:
            raise ValueError("margins for other axes than its input has")
        padded = [axis for axis, margins in enumerate(self.margins) if margins != (0, 0)]
        check_axes(places[0], padded)
        return places[0]


# ── other shapes ──────────────────────────────────────────────────────────────────────────────────
def _shape_of(entries: Sequence[int], records: int) -> list[int]:
    return [-entry * records if entry < 0 else entry for entry in entries]


Shape = Annotated[tuple[Entry, ...], Field(max_length=8)]


class Reshape(Step):
    """The same values in another shape."""

    op: Literal["reshape"]
    inputs: One
    shape: Shape

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        return inputs[0].reshape(_shape_of(self.shape, records))

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        return follow_reshape(places[0], inputs[0], output)


class Expand(Step):
    """The same values again and again; of a constant, for every record."""

    op: Literal["expand"]
    inputs: One
    shape: Shape

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        return inputs[0].expand(_shape_of(self.shape, records))

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        ours = [axis for axis, entry in enumerate(self.shape) if entry < 0]
        if len(ours) > 1:
            raise ValueError("it mixes the records of a batch")
        if places[0] is not None:
            return follow_together(places, inputs, output)
        if any(self.shape[axis] != -1 for axis in ours):
            raise ValueError("it mixes the records of a batch")
        return Records(ours[0]) if ours else None


class Transpose(Step):
    """Axes in another order."""

    op: Literal["transpose"]
    inputs: One
    axes: Axes

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        return inputs[0].permute(self.axes)

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        return follow_transpose(places[0], self.axes)


class Concat(Step):
    """Tensors one behind the other along an axis."""

    op: Literal["concat"]
    inputs: Many
    axis: Axis

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        return torch.cat(list(inputs), self.axis)

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        (first, *others) = places
        if any(place != first for place in others):
            raise ValueError("records meet other records")
        check_axes(first, [self.axis])
        return first


class Slice(Step):
    """Some of the places of an axis."""

    op: Literal["slice"]
    inputs: One
    axis: Axis
    start: Index
    end: Index
    step: Window = 1

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        before = (slice(None),) * self.axis
        return inputs[0][(*before, slice(self.start, self.end, self.step))]

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        check_axes(places[0], [self.axis])
        return places[0]


class Select(Step):
    """One place of an axis, which goes."""

    op: Literal["select"]
    inputs: One
    axis: Axis
    index: Index

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        return inputs[0].select(self.axis, self.index)

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        (place,) = places
        check_axes(place, [self.axis])
        if place is None:
            return None
        return Records(place.axis - (self.axis < place.axis), place.inside)


class Take(Step):
    """Places of an axis by their numbers."""

    op: Literal["take"]
    inputs: One
    axis: Axis
    indices: Annotated[tuple[Index, ...], Field(min_length=1, max_length=4096)]

    def run(self, part: nn.Module, inputs: Sequence[Tensor], records: int) -> Tensor:
        where = torch.tensor(self.indices, device=inputs[0].device)
        return inputs[0].index_select(self.axis, where)

    def follow(self, places: Sequence[Place], inputs: Sequence[Tensor], output: Tensor) -> Place:
        check_axes(places[0], [self.axis])
        if max(self.indices) >= inputs[0].shape[self.axis]:
            raise ValueError("a place that is not there")
        return places[0]


AnyStep = Annotated[
    Conv
    | Linear
    | BatchNorm
    | LayerNorm
    | Embedding
    | Tokens
    | Function
    | Clip
    | LeakyRelu
    | Elu
    | HardSigmoid
    | Softmax
    | Together
    | MatMul
    | Pool
    | Reduce
    | Pad
    | Reshape
    | Expand
    | Transpose
    | Concat
    | Slice
    | Select
    | Take,
    Field(discriminator="op"),
]
