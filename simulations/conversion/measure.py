"""What ONNX Runtime gives for a model: every tensor, for two sizes of a batch.

Shapes are then known, and what only shapes are computed from needs no operator of its own: it is a
measured number, or a multiple of the records.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgraft.common.errors import UserError
from fedgraft.common.files.mistakes import shown
from fedgraft.simulations.conversion.onnx_file import (
    import_onnx,
    import_runtime,
    read_initializers,
)

BATCHES = (2, 3)
CHANNELS = 3
# what their output tells of their input: its shape
TELL_SHAPES = ("Shape", "Size")


@dataclass(frozen=True)
class ModelInput:
    """The images that a model takes.

    Attributes:
        name: of its input.
        side: pixels.
        channels_last: whether they are (n, H, W, 3).
        batch: how many images at a time it was exported for; None: any number.
    """

    name: str
    side: int
    channels_last: bool
    batch: int | None

    def shape(self, records: int) -> tuple[int, ...]:
        """Return the shape of a batch."""
        if self.channels_last:
            return (records, self.side, self.side, CHANNELS)
        return (records, CHANNELS, self.side, self.side)


@dataclass(frozen=True, eq=False)
class Measured:
    """Tensors by name, for a batch of two and one of three.

    Attributes:
        shapes: of each tensor.
        values: of the tensors that no pixel reaches.
        reached: names of those that pixels reach.
    """

    shapes: tuple[Mapping[str, tuple[int, ...]], ...]
    values: tuple[Mapping[str, np.ndarray], ...]
    reached: frozenset[str]

    def entries(self, name: str) -> list[int]:
        """Return a tensor's shape; −k where it is k times the records.

        Raises:
            UserError: it depends on the records in another way.
        """
        entries: list[int] = []
        for two, three in zip(*(shapes[name] for shapes in self.shapes), strict=True):
            if two == three:
                entries.append(two)
            elif 3 * two == 2 * three:
                entries.append(-(two // 2))
            else:
                what = f"the size of {shown(name)} is no multiple of the batch"
                raise UserError(what, remedy="export the model for batches of any size")
        return entries


def find_input(graph: Any, side: int | None, where: str) -> ModelInput:
    """Return which images a model takes.

    Args:
        side: pixels, where the model does not say it.

    Raises:
        UserError: it takes something else, or no size is said.
    """
    tensors = {tensor.name for tensor in graph.initializer}
    inputs = [given for given in graph.input if given.name not in tensors]
    remedy = "give a model with one input: images (n, 3, H, W) or (n, H, W, 3)"
    if len(inputs) != 1:
        names = ", ".join(shown(given.name) for given in inputs) or "none"
        raise UserError(f"inputs: {names}", where=where, remedy=remedy)
    (given,) = inputs
    dims = given.type.tensor_type.shape.dim
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    is_float = given.type.tensor_type.elem_type == import_onnx().TensorProto.FLOAT
    if len(sizes) != 4 or not is_float or CHANNELS not in (sizes[1], sizes[3]):
        what = f"it takes {'float32' if is_float else 'other'} values of shape {sizes}"
        raise UserError(what, where=where, remedy=remedy + ", float32")
    channels_last = sizes[3] == CHANNELS and sizes[1] != CHANNELS
    sides = sizes[1:3] if channels_last else sizes[2:]
    return ModelInput(given.name, _choose_side(sides, side, where), channels_last, sizes[0])


def _choose_side(sides: Sequence[int | None], side: int | None, where: str) -> int:
    """Return the side of square images, as the model says it or as it is given."""
    said = {value for value in sides if value is not None}
    if len(said) > 1:
        what = f"images of {sides[0]} × {sides[1]} pixels; square ones alone are known"
        raise UserError(what, where=where, remedy="export the model for square images")
    if not said:
        if side is None:
            what = "the model takes images of any size"
            remedy = "say which: --input-size 224"
            raise UserError(what, where=where, remedy=remedy)
        return side
    (fixed,) = said
    if side not in (None, fixed):
        what = f"{side} pixels; this model was exported for {fixed}"
        raise UserError(what, where="--input-size", remedy="leave it out, or export it anew")
    return fixed


def free_batch(model: Any, given: ModelInput) -> Any:
    """Return a copy of a model that takes any number of images of this size.

    Of one that was exported for a single image, reshapes whose first entry is 1 keep the first axis
    instead. Whether records stay apart then is checked later, as of every model.
    """
    onnx = import_onnx()
    model = copy.deepcopy(model)
    graph = model.graph
    del graph.value_info[:]
    for entry in graph.input:
        if entry.name == given.name:
            for dim, size in zip(entry.type.tensor_type.shape.dim, given.shape(1), strict=True):
                dim.Clear()
                dim.dim_value = size
            entry.type.tensor_type.shape.dim[0].dim_param = "records"
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    if given.batch is None:
        return model
    for target in _list_targets(graph, find_reached(graph, given.name)):
        entries = onnx.numpy_helper.to_array(target).copy()
        if entries.ndim == 1 and len(entries) and entries[0] == 1:
            entries[0] = 0
            target.CopyFrom(onnx.numpy_helper.from_array(entries, target.name))
    return model


def _list_targets(graph: Any, reached: set[str]) -> list[Any]:
    """Return the constant shapes that reshapes bring what images reach to."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                constants[node.output[0]] = attribute.t
    targets: dict[str, Any] = {}
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[0] in reached and node.input[1] in constants:
            targets[node.input[1]] = constants[node.input[1]]
    return list(targets.values())


def measure(model: Any, given: ModelInput, where: str) -> Measured:
    """Return every tensor of a model for two sizes of a batch.

    Raises:
        UserError: ONNX Runtime cannot run it on several images.
    """
    reached = find_reached(model.graph, given.name)
    runs = [run_model(model, given, batch, where) for batch in BATCHES]
    initial = read_initializers(model.graph)
    shapes: list[dict[str, tuple[int, ...]]] = []
    values: list[dict[str, np.ndarray]] = []
    for batch, run in zip(BATCHES, runs, strict=True):
        sizes = {name: array.shape for name, array in {**initial, **run}.items()}
        shapes.append({**sizes, given.name: given.shape(batch)})
        kept = {name: array for name, array in run.items() if name not in reached}
        values.append({**initial, **kept})
    return Measured(tuple(shapes), tuple(values), frozenset(reached))


def find_reached(graph: Any, name: str) -> set[str]:
    """Return the tensors that the pixels of an input reach: those behind a shape are not."""
    reached = {name}
    for node in graph.node:
        if node.op_type in TELL_SHAPES:
            continue
        if reached.intersection(node.input):
            reached.update(node.output)
    reached.discard("")
    return reached


def run_model(
    model: Any, given: ModelInput, records: int, where: str, images: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return every tensor that operators of a model give.

    Args:
        images: as the model takes them; None: normal numbers.
    """
    onnx = import_onnx()
    runtime = import_runtime()
    model = copy.deepcopy(model)
    declared = {output.name for output in model.graph.output}
    taken = {name for node in model.graph.node for name in node.input}
    names: list[str] = []
    for node in model.graph.node:
        for number, name in enumerate(node.output):
            # further outputs are often not made at all
            if name and (number == 0 or name in taken or name in declared):
                names.append(name)
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in declared
    )
    if images is None:
        images = np.random.default_rng(records).standard_normal(given.shape(records))
    options = runtime.SessionOptions()
    # nothing is fused, so that every tensor is there
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    # the runtime has error classes of its own
    try:
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        arrays = session.run(names, {given.name: images.astype(np.float32)})
    except Exception as error:
        first = str(error).splitlines()[0][:300]
        what = f"ONNX Runtime cannot run it on {records} images: {first}"
        remedy = "export it with a batch of any size (dynamic_axes, or a None first axis)"
        raise UserError(what, where=where, remedy=remedy) from error
    return dict(zip(names, arrays, strict=True))
