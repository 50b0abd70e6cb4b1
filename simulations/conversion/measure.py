"""What ONNX Runtime gives for a model: every tensor, for two sizes of a batch.

Shapes are then known, and what only shapes are computed from needs no operator of its own: it is a
measured number, or a multiple of the records.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.backbones.graph_network import probe_images
from fedgraft.common.errors import UserError
from fedgraft.common.files.mistakes import shown
from fedgraft.simulations.conversion.onnx_file import (
    import_onnx,
    import_runtime,
    read_initializers,
)
from fedgraft.simulations.conversion.text_input import IDS, MASK, TextInput

BATCHES = (2, 3)
CHANNELS = 3
IMAGES_COMPARED = 3
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
    plural: ClassVar[str] = "images"

    @property
    def reaching(self) -> tuple[str, ...]:
        """Names of the inputs that tell an image from another."""
        return (self.name,)

    @property
    def size(self) -> Mapping[str, int]:
        """What the graph says of its input."""
        return {"side": self.side}

    def shapes(self, records: int) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of a batch, by the name of each input."""
        if self.channels_last:
            return {self.name: (records, self.side, self.side, CHANNELS)}
        return {self.name: (records, CHANNELS, self.side, self.side)}

    def probe(self) -> Tensor:
        """Return as many images as a network is traced with, without values."""
        return probe_images(self.side)

    def draw(self) -> Tensor:
        """Return random images (n, 3, H, W) on 0–1."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand((IMAGES_COMPARED, CHANNELS, self.side, self.side), generator=generator)

    def feed(self, records: int, inputs: Tensor | None = None) -> dict[str, np.ndarray]:
        """Return a batch as the model takes it.

        Args:
            inputs: as the model takes them; None: normal numbers.
        """
        if inputs is not None:
            return {self.name: inputs.numpy()}
        drawn = np.random.default_rng(records).standard_normal(self.shapes(records)[self.name])
        return {self.name: drawn.astype(np.float32)}


Given = ModelInput | TextInput


@dataclass(frozen=True, eq=False)
class Measured:
    """Tensors by name, for a batch of two and one of three.

    Attributes:
        shapes: of each tensor.
        values: of the tensors that no pixel reaches.
        reached: names of those that pixels, or tokens, reach.
        of_mask: of texts, those that follow from the mask alone: their values for each batch.
        masks: of texts, the mask of each batch.
    """

    shapes: tuple[Mapping[str, tuple[int, ...]], ...]
    values: tuple[Mapping[str, np.ndarray], ...]
    reached: frozenset[str]
    of_mask: tuple[Mapping[str, np.ndarray], ...] = ()
    masks: tuple[np.ndarray, ...] = ()

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


def free_batch(model: Any, given: Given) -> Any:
    """Return a copy of a model that takes any number of images of this size.

    Of one that was exported for a single image, reshapes whose first entry is 1 keep the first axis
    instead. Whether records stay apart then is checked later, as of every model.
    """
    onnx = import_onnx()
    model = copy.deepcopy(model)
    graph = model.graph
    del graph.value_info[:]
    for entry in graph.input:
        shape = given.shapes(1).get(entry.name)
        if shape is not None:
            for dim, size in zip(entry.type.tensor_type.shape.dim, shape, strict=True):
                dim.Clear()
                dim.dim_value = size
            entry.type.tensor_type.shape.dim[0].dim_param = "records"
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    if given.batch is None:
        return model
    for target in _list_targets(graph, find_reached(graph, given.reaching)):
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


def measure(model: Any, given: Given, where: str) -> Measured:
    """Return every tensor of a model for two sizes of a batch.

    Raises:
        UserError: ONNX Runtime cannot run it on several images.
    """
    reached = find_reached(model.graph, given.reaching)
    masked: set[str] = set()
    if isinstance(given, TextInput):
        masked = reached - find_reached(model.graph, [IDS])
    runs = [run_model(model, given, batch, where) for batch in BATCHES]
    initial = read_initializers(model.graph)
    shapes: list[dict[str, tuple[int, ...]]] = []
    values: list[dict[str, np.ndarray]] = []
    for batch, run in zip(BATCHES, runs, strict=True):
        sizes = {name: array.shape for name, array in {**initial, **run}.items()}
        shapes.append({**sizes, **given.shapes(batch)})
        kept = {name: array for name, array in run.items() if name not in reached}
        values.append({**initial, **kept})
    measured = Measured(tuple(shapes), tuple(values), frozenset(reached))
    if not masked:
        return measured
    of_mask = [{name: run[name] for name in masked.intersection(run)} for run in runs]
    masks = [given.feed(batch)[MASK] for batch in BATCHES]
    return replace(measured, of_mask=tuple(of_mask), masks=tuple(masks))


def find_reached(graph: Any, names: Sequence[str]) -> set[str]:
    """Return the tensors that the values of inputs reach: those behind a shape are not."""
    reached = set(names)
    for node in graph.node:
        if node.op_type in TELL_SHAPES:
            continue
        if reached.intersection(node.input):
            reached.update(node.output)
    reached.discard("")
    return reached


def run_model(
    model: Any, given: Given, records: int, where: str, inputs: Tensor | None = None
) -> dict[str, np.ndarray]:
    """Return every tensor that operators of a model give.

    Args:
        inputs: see `feed`; None: random ones.
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
    options = runtime.SessionOptions()
    # nothing is fused, so that every tensor is there
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    # the runtime has error classes of its own
    try:
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        arrays = session.run(names, given.feed(records, inputs))
    except Exception as error:
        first = str(error).splitlines()[0][:300]
        what = f"ONNX Runtime cannot run it on {records} {given.plural}: {first}"
        remedy = "export it with a batch of any size (dynamic_axes, or a None first axis)"
        raise UserError(what, where=where, remedy=remedy) from error
    return dict(zip(names, arrays, strict=True))
