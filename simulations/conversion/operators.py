"""ONNX's operators → steps: what each becomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.files.mistakes import shown
from fedgraft.simulations.conversion.flat_network import FlatStep, Operand, constant_tensor
from fedgraft.simulations.conversion.measure import Measured
from fedgraft.simulations.conversion.onnx_file import read_attributes
from fedgraft.simulations.conversion.text_input import MASK, fit_mask

LOWEST = float(np.finfo(np.float32).min)
# operators that are one function of one value
FUNCTIONS = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Erf": "erf",
    "Exp": "exp",
    "Log": "log",
    "Sqrt": "sqrt",
    "Reciprocal": "reciprocal",
    "Neg": "neg",
    "Abs": "abs",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "HardSwish": "hard-swish",
    "Mish": "mish",
    "Floor": "floor",
}
TOGETHER = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Div": "div",
    "Pow": "pow",
    "Max": "max",
    "Min": "min",
    "Sum": "add",
}
REDUCTIONS = {
    "ReduceMean": "mean",
    "ReduceSum": "sum",
    "ReduceMax": "largest",
    "ReduceMin": "smallest",
    "GlobalAveragePool": "mean",
    "GlobalMaxPool": "largest",
}


@dataclass
class Lowering:
    """A network as it is built up, an operator at a time.

    Attributes:
        measured: its tensors.
        opset: version of the operators.
        uses: how many operators take each tensor.
        steps: so far.
        numbers: of tensors that steps give, by name.
    """

    measured: Measured
    opset: int
    uses: Mapping[str, int]
    steps: list[FlatStep] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def emit(
        self,
        op: str,
        inputs: Sequence[Operand],
        tensors: Mapping[str, Tensor] | None = None,
        **fields: Any,
    ) -> int:
        """Add a step and return its number."""
        self.steps.append(FlatStep({"op": op, **fields}, list(inputs), dict(tensors or {})))
        return len(self.steps)

    def operand(self, name: str) -> Operand:
        """Return a tensor as a step takes it: another step's, or a constant."""
        if name in self.numbers:
            return self.numbers[name]
        if self.measured.of_mask and name in self.measured.of_mask[0]:
            return self._follow_mask(name)
        two, three = (values[name] for values in self.measured.values)
        if two.shape == three.shape and np.array_equal(two, three, equal_nan=True):
            return two
        # the same for each record, such as a class token
        entries = self.measured.entries(name)
        axes = [axis for axis, entry in enumerate(entries) if entry == -1]
        if len(axes) == 1 and all(entry == -1 or entry > 0 for entry in entries):
            one = two.take([0], axis=axes[0])
            if np.array_equal(np.broadcast_to(one, three.shape), three):
                return self.emit("expand", [one], shape=tuple(entries))
        what = f"{shown(name)} depends on how many images there are"
        raise UserError(what, remedy="export the model for batches of any size")

    def _follow_mask(self, name: str) -> int:
        """Return the step that gives a tensor which follows from the mask of texts alone."""
        arrays = [values[name] for values in self.measured.of_mask]
        found = fit_mask(arrays, self.measured.masks)
        if found is None or arrays[0].dtype == np.bool_:
            what = f"{shown(name)} follows from the mask in a way that is not known here"
            raise UserError(what, remedy="export the model with plain attention (eager)")
        shape = self.shape(name)
        narrow = [1] * len(shape)
        narrow[0] = -1
        narrow[found.axis] = shape[found.axis]
        number = self.emit("reshape", [self.numbers[MASK]], shape=tuple(narrow))
        if (found.here, found.nowhere) != (1.0, 0.0):
            # 0 where it is nowhere, and then that number
            rise = np.float32(found.here) - np.float32(found.nowhere)
            number = self.emit("mul", [number, np.full(1, rise, np.float32)])
            number = self.emit("add", [number, np.full(1, found.nowhere, np.float32)])
        if narrow != shape:
            number = self.emit("expand", [number], shape=tuple(shape))
        self.numbers[name] = number
        return number

    def constant(self, name: str) -> np.ndarray:
        """Return a constant. Raise `UserError` where the images reach it."""
        value = None if name in self.measured.reached else self.operand(name)
        if not isinstance(value, np.ndarray):
            what = f"{shown(name)} is computed from the images, and is known only as a constant"
            raise UserError(what, remedy="give another model")
        return value

    def has(self, node: Any, place: int) -> bool:
        """Whether an operator has an input in this place."""
        return len(node.input) > place and node.input[place] != ""

    def integers(self, node: Any, place: int, name: str) -> list[int] | None:
        """Return whole numbers that are an operator's input, or in older versions its attribute."""
        if self.has(node, place):
            return [int(value) for value in self.constant(node.input[place]).reshape(-1)]
        value = read_attributes(node).get(name)
        if value is None:
            return None
        return [int(entry) for entry in np.atleast_1d(value)]

    def number(self, node: Any, place: int, name: str) -> float | None:
        """Return a number that is an operator's input, or in older versions its attribute."""
        if self.has(node, place):
            return float(self.constant(node.input[place]).reshape(-1)[0])
        value = read_attributes(node).get(name)
        return None if value is None else float(value)

    def shape(self, name: str) -> list[int]:
        """Return a tensor's shape, −k for k times the records."""
        return self.measured.entries(name)


Lower = Callable[[Lowering, Any, dict[str, Any]], int]


def lower(lowering: Lowering, node: Any) -> None:
    """Add the steps of one operator that images reach. Raise `UserError` where it cannot be."""
    name = node.name or node.output[0]
    try:
        if node.op_type == "Split":
            _lower_split(lowering, node)
            return
        number = OPERATORS[node.op_type](lowering, node, read_attributes(node))
    except UserError as error:
        what = f"{node.op_type} {shown(name)}: {error.what}"
        raise UserError(what, where=error.where, remedy=error.remedy) from error
    except KeyError as error:
        what = f"{node.op_type} {shown(name)} of images or of what is computed from them"
        remedy = "it is known only where it tells shapes; give another model"
        raise UserError(what, remedy=remedy) from error
    lowering.numbers[node.output[0]] = number


def _bad(what: str) -> UserError:
    return UserError(what, remedy="give another model, or export it in another way")


def _input(lowering: Lowering, node: Any, place: int = 0) -> int:
    """Return the step that an operator takes images from."""
    operand = lowering.operand(node.input[place])
    if isinstance(operand, int):
        return operand
    raise _bad("a constant where images are needed")


# ── layers ────────────────────────────────────────────────────────────────────────────────────────
def _conv(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    weight = lowering.constant(node.input[1])
    if weight.ndim != 4:
        raise _bad(f"a convolution over {weight.ndim - 2} axes; two are known")
    kernel = weight.shape[2:]
    tensors = {"weight": constant_tensor(weight)}
    if lowering.has(node, 2):
        tensors["bias"] = constant_tensor(lowering.constant(node.input[2]))
    stride = _pair(attributes.get("strides"), 1)
    dilation = _pair(attributes.get("dilations"), 1)
    pads = _margins(lowering, node, attributes, kernel, stride, dilation)
    groups = int(attributes.get("group", 1))
    x, padding = _pad_unevenly(lowering, _input(lowering, node), pads, 0.0)
    return lowering.emit(
        "conv",
        [x],
        tensors,
        in_channels=weight.shape[1] * groups,
        out_channels=weight.shape[0],
        kernel=_pair(kernel, 1),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias="bias" in tensors,
    )


def _gemm(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    if attributes.get("transA"):
        raise _bad("a first factor that is transposed")
    weight = np.asarray(lowering.constant(node.input[1]), np.float32)
    if not attributes.get("transB"):
        weight = weight.T
    bias: np.ndarray | None = None
    if lowering.has(node, 2):
        bias = np.asarray(lowering.constant(node.input[2]), np.float32)
        bias = bias * float(attributes.get("beta", 1.0))
    return _linear(lowering, _input(lowering, node), weight * attributes.get("alpha", 1.0), bias)


def _linear(lowering: Lowering, x: int, weight: np.ndarray, bias: np.ndarray | None) -> int:
    tensors = {"weight": constant_tensor(weight)}
    if bias is not None:
        tensors["bias"] = constant_tensor(np.broadcast_to(bias.reshape(-1), weight.shape[:1]))
    return lowering.emit(
        "linear",
        [x],
        tensors,
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        bias=bias is not None,
    )


def _matmul(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    left, right = (lowering.operand(name) for name in node.input)
    if isinstance(left, int) and isinstance(right, np.ndarray) and right.ndim == 2:
        return _linear(lowering, left, np.asarray(right, np.float32).T, None)
    return lowering.emit("matmul", [left, right])


def _batch_norm(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    if attributes.get("training_mode"):
        raise _bad("a normalisation that trains; export the model for inference")
    names = ("weight", "bias", "running_mean", "running_var")
    tensors: dict[str, Tensor] = {}
    for name, given in zip(names, node.input[1:5], strict=True):
        tensors[name] = constant_tensor(lowering.constant(given))
    # a counter of training steps, as torch's own layer has it
    tensors["num_batches_tracked"] = torch.tensor(0)
    return lowering.emit(
        "batch-norm",
        [_input(lowering, node)],
        tensors,
        channels=len(tensors["weight"]),
        epsilon=float(attributes.get("epsilon", 1e-5)),
        axes=len(lowering.shape(node.input[0])),
    )


def _layer_norm(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    axes = len(lowering.shape(node.input[0]))
    if attributes.get("axis", -1) not in (-1, axes - 1):
        raise _bad("a normalisation over more than the last axis")
    weight = constant_tensor(lowering.constant(node.input[1]))
    bias = torch.zeros_like(weight)
    if lowering.has(node, 2):
        bias = constant_tensor(lowering.constant(node.input[2]))
    return lowering.emit(
        "layer-norm",
        [_input(lowering, node)],
        {"weight": weight, "bias": bias},
        width=len(weight),
        epsilon=float(attributes.get("epsilon", 1e-5)),
    )


# ── value by value ────────────────────────────────────────────────────────────────────────────────
def _function(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    return lowering.emit(FUNCTIONS[node.op_type], [_input(lowering, node)])


def _gelu(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    if attributes.get("approximate", "none") != "none":
        raise _bad("an approximate Gelu")
    return lowering.emit("gelu", [_input(lowering, node)])


def _same(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    return _input(lowering, node)


def _cast(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    x = _input(lowering, node)
    # whole numbers, of tokens
    if attributes.get("to") in (6, 7) and lowering.steps[x - 1].op == "token-ids":
        return x
    # 1 is float32 in ONNX's numbers
    if attributes.get("to") != 1:
        raise _bad("values of another type than float32")
    return x


def _clip(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    bounds: dict[str, Any] = {}
    for place, name, key in ((1, "min", "low"), (2, "max", "high")):
        value = lowering.number(node, place, name)
        if value is not None and abs(value) < -LOWEST:
            bounds[key] = value
    x = _input(lowering, node)
    return lowering.emit("clip", [x], **bounds) if bounds else x


def _with_numbers(op: str, **names: tuple[str, float]) -> Lower:
    """Return what lowers a function with numbers of its own, named otherwise there."""

    def lower_function(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
        fields: dict[str, Any] = {
            key: float(attributes.get(name, usual)) for key, (name, usual) in names.items()
        }
        return lowering.emit(op, [_input(lowering, node)], **fields)

    return lower_function


def _softmax(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    axes = len(lowering.shape(node.input[0]))
    axis = int(attributes.get("axis", -1 if lowering.opset >= 13 else 1)) % axes
    if lowering.opset < 13 and axis != axes - 1:
        raise _bad("a Softmax over several axes")
    return lowering.emit("softmax", [_input(lowering, node)], axis=axis)


def _together(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    operands = [lowering.operand(name) for name in node.input]
    if node.op_type == "Add":
        merged = _merge_bias(lowering, node, operands)
        if merged is not None:
            return merged
    op = TOGETHER[node.op_type]
    number = operands[0]
    for operand in operands[1:]:
        number = lowering.emit(op, [number, operand])
    if not isinstance(number, int):
        raise _bad("a constant where images are needed")
    return number


def _merge_bias(lowering: Lowering, node: Any, operands: list[Operand]) -> int | None:
    """Return the layer whose bias an addition is; None: it is none."""
    for (number, name), added in zip(
        zip(operands, node.input, strict=True), operands[::-1], strict=True
    ):
        if not isinstance(number, int) or isinstance(added, int) or number == 0:
            continue
        step = lowering.steps[number - 1]
        outputs = step.fields.get("out_features")
        if step.op != "linear" or "bias" in step.tensors or lowering.uses.get(name, 0) != 1:
            continue
        if added.shape[-1:] == (outputs,) and added.size == outputs:
            step.tensors["bias"] = constant_tensor(added.reshape(-1))
            step.fields["bias"] = True
            return number
    return None


# ── windows ───────────────────────────────────────────────────────────────────────────────────────
def _pool(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    kernel = _pair(attributes["kernel_shape"], 1)
    stride = _pair(attributes.get("strides"), 1)
    dilation = _pair(attributes.get("dilations"), 1)
    pads = _margins(lowering, node, attributes, kernel, stride, dilation)
    counts = bool(attributes.get("count_include_pad", 0))
    is_largest = node.op_type == "MaxPool"
    if not is_largest and dilation != (1, 1):
        raise _bad("a mean of windows with holes")
    even = pads[0] == pads[2] and pads[1] == pads[3]
    if not (is_largest or even or counts):
        raise _bad("a mean of windows with more around them on one side")
    fits = 2 * pads[0] <= kernel[0] and 2 * pads[1] <= kernel[1]
    x = _input(lowering, node)
    if even and fits:
        padding = pads[:2]
    else:
        x, padding = _pad_here(lowering, x, pads, LOWEST if is_largest else 0.0), (0, 0)
    more: dict[str, Any] = {"counts_padding": counts}
    if is_largest:
        more = {"dilation": dilation}
    return lowering.emit(
        "max-pool" if is_largest else "average-pool",
        [x],
        kernel=kernel,
        stride=stride,
        padding=tuple(padding),
        ceil=bool(attributes.get("ceil_mode", 0)),
        **more,
    )


def _pair(values: Sequence[int] | None, usual: int) -> tuple[int, int]:
    if values is None:
        return (usual, usual)
    if len(values) != 2:
        raise _bad(f"a window over {len(values)} axes; two are known")
    return (int(values[0]), int(values[1]))


def _margins(
    lowering: Lowering,
    node: Any,
    attributes: dict[str, Any],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Return what is around images: above, left, below, right."""
    auto = attributes.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return tuple(int(value) for value in attributes.get("pads", (0, 0, 0, 0)))
    if auto == "VALID":
        return (0, 0, 0, 0)
    sides = lowering.shape(node.input[0])[2:]
    before: list[int] = []
    behind: list[int] = []
    for side, window, step, hole in zip(sides, kernel, stride, dilation, strict=True):
        missing = max((math.ceil(side / step) - 1) * step + (window - 1) * hole + 1 - side, 0)
        less, more = missing // 2, missing - missing // 2
        before.append(less if auto == "SAME_UPPER" else more)
        behind.append(more if auto == "SAME_UPPER" else less)
    return (*before, *behind)


def _pad_unevenly(
    lowering: Lowering, x: int, pads: Sequence[int], value: float
) -> tuple[int, tuple[int, int]]:
    """Return the step to take, and what the layer itself is to pad."""
    if pads[0] == pads[2] and pads[1] == pads[3]:
        return x, (pads[0], pads[1])
    return _pad_here(lowering, x, pads, value), (0, 0)


def _pad_here(lowering: Lowering, x: int, pads: Sequence[int], value: float) -> int:
    above, left, below, right = pads
    margins = ((0, 0), (0, 0), (above, below), (left, right))
    return lowering.emit("pad", [x], margins=margins, value=value)


def _pad(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    if attributes.get("mode", "constant") != "constant":
        raise _bad(f"padding by {shown(attributes['mode'])}")
    pads = lowering.integers(node, 1, "pads") or []
    axes = len(lowering.shape(node.input[0]))
    chosen = lowering.integers(node, 3, "axes") or list(range(axes))
    if min(pads, default=0) < 0 or len(pads) != 2 * len(chosen):
        raise _bad("padding that cuts")
    margins = [(0, 0)] * axes
    for place, axis in enumerate(chosen):
        margins[axis % axes] = (pads[place], pads[place + len(chosen)])
    value = lowering.number(node, 2, "value") or 0.0
    # as far as float32 goes
    value = max(value, LOWEST)
    x = _input(lowering, node)
    if not any(map(any, margins)):
        return x
    return lowering.emit("pad", [x], margins=tuple(margins), value=value)


def _reduce(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    count = len(lowering.shape(node.input[0]))
    axes: list[int] | None = list(range(2, count))
    keep = True
    if node.op_type.startswith("Reduce"):
        axes = lowering.integers(node, 1, "axes")
        keep = bool(attributes.get("keepdims", 1))
    if not axes:
        raise _bad("a reduction over all axes, the images of a batch among them")
    chosen = tuple(sorted(axis % count for axis in axes))
    return lowering.emit(REDUCTIONS[node.op_type], [_input(lowering, node)], axes=chosen, keep=keep)


# ── shapes ────────────────────────────────────────────────────────────────────────────────────────
def _reshape(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    x = _input(lowering, node)
    shape = lowering.shape(node.output[0])
    if shape == lowering.shape(node.input[0]):
        return x
    return lowering.emit("reshape", [x], shape=tuple(shape))


def _expand(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    x = _input(lowering, node)
    shape = lowering.shape(node.output[0])
    if shape == lowering.shape(node.input[0]):
        return x
    return lowering.emit("expand", [x], shape=tuple(shape))


def _transpose(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    count = len(lowering.shape(node.input[0]))
    axes = attributes.get("perm") or range(count)[::-1]
    return lowering.emit("transpose", [_input(lowering, node)], axes=tuple(map(int, axes)))


def _concat(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    axis = int(attributes["axis"]) % len(lowering.shape(node.output[0]))
    operands = [lowering.operand(name) for name in node.input]
    return lowering.emit("concat", operands, axis=axis)


def _slice(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    starts = lowering.integers(node, 1, "starts") or []
    ends = lowering.integers(node, 2, "ends") or []
    shape = lowering.shape(node.input[0])
    axes = lowering.integers(node, 3, "axes") or list(range(len(starts)))
    steps = lowering.integers(node, 4, "steps") or [1] * len(starts)
    x = _input(lowering, node)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(shape)
        size = shape[axis]
        if size < 0:
            raise _bad("a slice of the images of a batch")
        places = range(size)[slice(start, end, step)]
        if places == range(size):
            continue
        if not places:
            raise _bad("a slice of nothing")
        if step > 0:
            more: dict[str, Any] = {"step": step} if step != 1 else {}
            x = lowering.emit("slice", [x], axis=axis, start=places[0], end=places[-1] + 1, **more)
        else:
            x = lowering.emit("take", [x], axis=axis, indices=tuple(places))
    return x


def _gather(lowering: Lowering, node: Any, attributes: dict[str, Any]) -> int:
    shape = lowering.shape(node.input[0])
    axis = int(attributes.get("axis", 0)) % len(shape)
    table = lowering.operand(node.input[0])
    if isinstance(table, np.ndarray) and node.input[1] in lowering.measured.reached:
        return _embed(lowering, table, _input(lowering, node, 1), axis)
    indices = lowering.constant(node.input[1])
    size = shape[axis]
    if size < 0 or indices.ndim > 1:
        raise _bad("places that are taken from the images of a batch, or a table of places")
    x = _input(lowering, node)
    if indices.ndim == 0:
        return lowering.emit("select", [x], axis=axis, index=int(indices) % size)
    places = tuple(int(index) % size for index in indices)
    return lowering.emit("take", [x], axis=axis, indices=places)


def _embed(lowering: Lowering, table: np.ndarray, numbers: int, axis: int) -> int:
    """Return the step that takes the rows of a table which tokens name."""
    if table.ndim != 2 or axis != 0 or lowering.steps[numbers - 1].op != "token-ids":
        raise _bad("rows of a table that something else than tokens names")
    rows, width = table.shape
    return lowering.emit(
        "embedding", [numbers], {"weight": constant_tensor(table)}, rows=rows, width=width
    )


def _lower_split(lowering: Lowering, node: Any) -> None:
    """Add a slice for each output."""
    x = _input(lowering, node)
    attributes = read_attributes(node)
    shape = lowering.shape(node.input[0])
    axis = int(attributes.get("axis", 0)) % len(shape)
    sizes = lowering.integers(node, 1, "split")
    if sizes is None:
        count = len(node.output)
        part = math.ceil(shape[axis] / count)
        sizes = [part] * (count - 1) + [shape[axis] - part * (count - 1)]
    start = 0
    for name, size in zip(node.output, sizes, strict=True):
        fields: dict[str, Any] = {"axis": axis, "start": start, "end": start + size}
        lowering.numbers[name] = lowering.emit("slice", [x], **fields)
        start += size


OPERATORS: Mapping[str, Lower] = {
    **dict.fromkeys(FUNCTIONS, _function),
    **dict.fromkeys(TOGETHER, _together),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Gelu": _gelu,
    "Identity": _same,
    "Dropout": _same,
    "Cast": _cast,
    "Clip": _clip,
    "LeakyRelu": _with_numbers("leaky-relu", slope=("alpha", 0.01)),
    "Elu": _with_numbers("elu", alpha=("alpha", 1.0)),
    "HardSigmoid": _with_numbers("hard-sigmoid", slope=("alpha", 0.2), shift=("beta", 0.5)),
    "Softmax": _softmax,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "Pad": _pad,
    "Expand": _expand,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Gather": _gather,
}
