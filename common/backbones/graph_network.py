"""A converted network: parts that run their steps, with real layers for adapters to find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedgraft.common.backbones.graph_shape import Block, Graph, Part, write_graph
from fedgraft.common.backbones.graph_steps import Linear
from fedgraft.common.backbones.record_axis import PROBE, Place, Records, is_first
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.tokenizer_file import tensor_of

# the tensor that holds the graph
GRAPH = "graph"
CHANNELS = 3
# values that all steps together give for one record: 4 GB
MOST_VALUES = 1_000_000_000
_TOO_MANY = f"more than {MOST_VALUES:,} values for one record"


class GraphPart(nn.Module):
    """Some steps of a network, (n, …) → (n, …).

        part = GraphPart(description)
        part(x)

    Args:
        part: the steps.

    Attributes:
        rows: of Linear steps whose input has not one row a record: where the records are.
    """

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part
        self.rows: dict[int, Records] = {}
        for step in part.steps:
            if step.layer is not None:
                self.add_module(step.layer, step.build())
        for name, shape in part.constants.items():
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last step gives."""
        records = len(x)
        values = [x]
        for number, step in enumerate(self.part.steps):
            inputs = self.take(step.inputs, values)
            moved = self.rows.get(number)
            if moved is None:
                values.append(step.run(self, inputs, records))
                continue
            # a layer, and whatever adapts it, sees one row a record
            first, shape = _records_first(inputs[0], moved, records)
            values.append(_records_back(step.run(self, [first], records), moved, shape))
        return values[-1]

    def take(self, sources: tuple[int | str, ...], values: list[Tensor]) -> list[Tensor]:
        """Return the inputs of a step."""
        taken: list[Tensor] = []
        for source in sources:
            if isinstance(source, int):
                taken.append(values[source])
            else:
                constant = self._buffers[source]
                assert constant is not None
                taken.append(constant)
        return taken


class _BlockPart(GraphPart):
    """A part whose output is one of the depths of the network.

    Attributes:
        block_channels: channels of its output.
    """

    def __init__(self, block: Block) -> None:
        super().__init__(block.part)
        self.block_channels = block.channels


class ImageBlock(_BlockPart):
    """A block that gives (n, channels, H, W)."""


class TokenBlock(_BlockPart):
    """A block that gives (n, …, channels)."""


class GraphNetwork(nn.Module):
    """The network that a graph describes.

        net = GraphNetwork(graph)
        net(images)  # float32 (n, 3, side, side), on 0–1 → (n, 2)
        # or of texts: int64 (n, length), −1 behind the end of a text

    Raises:
        UserError: steps that do not fit one another, mix records, or are too large.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        # shapes first: what cannot be takes no memory
        rows = trace_records(graph)
        self.stem = GraphPart(graph.stem)
        groups: list[nn.Module] = []
        for group in graph.groups:
            groups.append(nn.Sequential(*map(_build_block, group)))
        self.groups = nn.Sequential(*groups)
        self.neck = GraphPart(graph.neck)
        self.classifier = nn.Linear(graph.features, 2)
        self.register_buffer(GRAPH, tensor_of(write_graph(graph)))
        for name, found in rows.items():
            part = self.get_submodule(name)
            assert isinstance(part, GraphPart)
            part.rows = dict(found)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W), or tokens (n, length) → (n, outputs of the classifier)."""
        return self.classifier(self.neck(self.groups(self.stem(images))))


def _build_block(block: Block) -> nn.Module:
    return TokenBlock(block) if block.channels_last else ImageBlock(block)


# ── does it fit, and does it keep records apart? ──────────────────────────────────────────────────
def trace_records(graph: Graph) -> Mapping[str, Mapping[int, Records]]:
    """Return of each part the Linear steps whose input has not one row a record, and where the
    records are. Shapes alone are computed.

    Raises:
        UserError: a step that does not fit, that mixes records, or that gives too much.
    """
    found: dict[str, Mapping[int, Records]] = {}
    total = 0
    x = probe_inputs(graph)
    for name, part in graph.list_parts():
        trace = trace_part(name, part, x)
        x = trace.values[-1]
        if not is_first(trace.places[-1], x):
            raise _refuse(name, "its output has not one row a record")
        found[name] = trace.rows
        total += trace.total
        if total > MOST_VALUES:
            raise _refuse(name, _TOO_MANY)
        _check_block(name, graph, x)
    if x.shape != (PROBE, graph.features):
        raise _refuse("neck", "its output does not enter the classifier")
    return found


@dataclass(frozen=True, eq=False)
class Trace:
    """What a part's steps give, in shapes alone; the part's input is the first.

    Attributes:
        values: tensors without values.
        places: where their records are.
        rows: of Linear steps whose input has not one row a record: where the records are.
        total: values of one record, in all outputs together.
    """

    values: list[Tensor]
    places: list[Place]
    rows: Mapping[int, Records]
    total: int


def probe_inputs(graph: Graph) -> Tensor:
    """Return as many records as a network is traced with, without values."""
    if graph.side is not None:
        return probe_images(graph.side)
    assert graph.length is not None
    return probe_tokens(graph.length)


def probe_tokens(length: int) -> Tensor:
    """Return as many texts as a network is traced with, without values."""
    return torch.zeros(PROBE, length, dtype=torch.int64, device="meta")


def probe_images(side: int) -> Tensor:
    """Return as many images as a network is traced with, without values."""
    return torch.zeros(PROBE, CHANNELS, side, side, device="meta")


@torch.no_grad()
def trace_part(name: str, part: Part, x: Tensor) -> Trace:
    """Return what a part's steps give, and where the records of a batch are.

    Args:
        name: of the part, for messages.
        x: its input, one row a record.

    Raises:
        UserError: a step that does not fit, that mixes records, or that gives too much.
    """
    with torch.device("meta"):
        module = GraphPart(part).eval()
        return _trace(name, module, x)


def _trace(name: str, module: GraphPart, x: Tensor) -> Trace:
    values = [x]
    places: list[Place] = [Records(0)]
    rows: dict[int, Records] = {}
    total = 0
    for number, step in enumerate(module.part.steps):
        where = f"{name}, step {number} ({step.op})"
        inputs = module.take(step.inputs, values)
        theirs = [places[s] if isinstance(s, int) else None for s in step.inputs]
        try:
            output = step.run(module, inputs, PROBE)
            place = step.follow(theirs, inputs, output)
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise _refuse(where, first[:200]) from error
        if output.numel() == 0:
            raise _refuse(where, "it gives nothing")
        total += output.numel() // PROBE
        if total > MOST_VALUES:
            raise _refuse(where, _TOO_MANY)
        if isinstance(step, Linear) and theirs[0] and not is_first(theirs[0], inputs[0]):
            rows[number] = theirs[0]
        values.append(output)
        places.append(place)
    return Trace(values, places, rows, total)


def _check_block(name: str, graph: Graph, output: Tensor) -> None:
    """Raise `UserError` where a block's output is not what it says."""
    if not name.startswith("groups."):
        return
    _, group, place = name.split(".")
    block = graph.groups[int(group)][int(place)]
    if block.channels_last:
        fits = output.ndim in (3, 4) and output.shape[-1] == block.channels
    else:
        fits = output.ndim == 4 and output.shape[1] == block.channels
    if not fits:
        raise _refuse(name, f"its output is no {block.channels} channels")


def _refuse(where: str, why: str) -> UserError:
    what = f"a graph that cannot be taken: {why}"
    return UserError(what, where=where, remedy="convert the model again, with fedgraft convert")


# ── one row a record ──────────────────────────────────────────────────────────────────────────────
def _records_first(x: Tensor, where: Records, records: int) -> tuple[Tensor, list[int]]:
    """Return a tensor with one row a record, and its shape with that axis taken apart."""
    around = x.shape[where.axis] // (records * where.inside)
    shape = [*x.shape[: where.axis], around, records, where.inside, *x.shape[where.axis + 1 :]]
    return x.reshape(shape).movedim(where.axis + 1, 0), shape


def _records_back(y: Tensor, where: Records, shape: list[int]) -> Tensor:
    """Return the opposite of `_records_first`; the last axis may have another size."""
    axis = where.axis
    moved = y.movedim(0, axis + 1)
    joined = shape[axis] * shape[axis + 1] * shape[axis + 2]
    return moved.reshape([*shape[:axis], joined, *shape[axis + 3 : -1], y.shape[-1]])
