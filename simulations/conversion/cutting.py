"""A list of steps → stem, groups of blocks, neck.

A network is cut where a single tensor passes, with one row a record. Between two cuts lies a single
step, or a piece whose paths part and meet again. A piece with a layer that ends in a sum or in
tensors side by side is a block (residual, dense, inception); activations right behind it belong to
it. Steps between two blocks are a block of their own where a convolution or a linear layer is among
them, else they begin the next one. A network without such pieces is cut before each step that
makes images smaller. Blocks whose outputs are of one size are a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedgraft.common.backbones.graph_network import Trace, trace_part
from fedgraft.common.backbones.graph_shape import Block, Graph, Part
from fedgraft.common.backbones.graph_steps import Step
from fedgraft.common.backbones.record_axis import is_first
from fedgraft.simulations.conversion.flat_network import FlatStep, constant_tensor, name_step

JOINS = ("add", "concat")
WEIGHTS = ("conv", "linear")
ACTIVATIONS = (
    "relu",
    "sigmoid",
    "tanh",
    "hard-swish",
    "mish",
    "gelu",
    "clip",
    "leaky-relu",
    "elu",
    "hard-sigmoid",
    "softplus",
)
SHRINKS = ("conv", "max-pool", "average-pool")


@dataclass(frozen=True)
class Piece:
    """Steps between two cuts, from one number to another, both included."""

    first: int
    last: int

    def __or__(self, other: Piece) -> Piece:
        """Return two that follow one another as one."""
        return Piece(min(self.first, other.first), max(self.last, other.last))


@dataclass(frozen=True, eq=False)
class Cut:
    """A network in parts, and the tensors of all of them by name."""

    graph: Graph
    tensors: dict[str, Tensor]


def cut_network(
    steps: Sequence[FlatStep], probe: Tensor, takes: Mapping[str, int], where: str
) -> Cut:
    """Return the parts of a network whose last step gives its features (n, d).

    Args:
        probe: what it takes, without values.
        takes: what the graph says of that.

    Raises:
        UserError: steps that are out of bounds, that do not fit, or that mix records.
    """
    trace = trace_steps(steps, probe, where)
    pieces = _find_pieces(steps, trace)
    stem, blocks, neck = _find_blocks(steps, pieces, trace)
    tensors: dict[str, Tensor] = {}
    groups: list[list[Block]] = []
    size: tuple[int, ...] | None = None
    for piece in blocks:
        output = trace.values[piece.last]
        last = _is_channels_last(steps, piece, output)
        here = tuple(output.shape[1:-1] if last else output.shape[2:])
        if here != size:
            groups.append([])
            size = here
        name = f"groups.{len(groups) - 1}.{len(groups[-1])}"
        part = build_part(steps, piece, name, tensors, where)
        channels = output.shape[-1] if last else output.shape[1]
        groups[-1].append(Block(part=part, channels=channels, channels_last=last))
    graph = Graph(
        **takes,
        stem=build_part(steps, stem, "stem", tensors, where),
        groups=tuple(map(tuple, groups)),
        neck=build_part(steps, neck, "neck", tensors, where),
        features=trace.values[-1].shape[1],
    )
    return Cut(graph, tensors)


def trace_steps(steps: Sequence[FlatStep], probe: Tensor, where: str) -> Trace:
    """Return the shapes of what all steps give, and where the records are."""
    part = build_part(steps, Piece(1, len(steps)), "", {}, where)
    return trace_part("the network", part, probe)


def build_part(
    steps: Sequence[FlatStep], piece: Piece, name: str, tensors: dict[str, Tensor], where: str
) -> Part:
    """Return some steps as a part, and add its tensors to `tensors` by their full names.

    Args:
        piece: numbers of the steps; an empty one begins behind its end.
    """
    numbers = {piece.first - 1: 0}
    described: list[Step] = []
    constants: dict[str, tuple[int, ...]] = {}
    for number in range(piece.first, piece.last + 1):
        step = steps[number - 1]
        sources: list[int | str] = []
        for source in step.inputs:
            if isinstance(source, int):
                sources.append(numbers[source])
                continue
            constant = f"constant{len(constants)}"
            values = constant_tensor(source)
            constants[constant] = tuple(values.shape)
            tensors[f"{name}.{constant}"] = values
            sources.append(constant)
        described.append(name_step(step, number, sources, where))
        numbers[number] = len(described)
        for key, tensor in step.tensors.items():
            tensors[f"{name}.{described[-1].layer}.{key}"] = tensor
    return Part(steps=tuple(described), constants=constants)  # type: ignore[arg-type]


# ── where a single tensor passes ──────────────────────────────────────────────────────────────────
def _find_pieces(steps: Sequence[FlatStep], trace: Trace) -> list[Piece]:
    """Return the pieces between all places where one tensor passes, one row a record."""
    # the last step that takes each tensor
    taken = [0] * (len(steps) + 1)
    for number, step in enumerate(steps, start=1):
        for source in step.sources():
            taken[source] = number
    pieces: list[Piece] = []
    first = 1
    reach = taken[0]
    for number in range(1, len(steps) + 1):
        passes = reach <= number and is_first(trace.places[number], trace.values[number])
        if passes or number == len(steps):
            pieces.append(Piece(first, number))
            first = number + 1
        reach = max(reach, taken[number])
    return pieces


# ── which of them are blocks ──────────────────────────────────────────────────────────────────────
def _find_blocks(
    steps: Sequence[FlatStep], pieces: Sequence[Piece], trace: Trace
) -> tuple[Piece, list[Piece], Piece]:
    """Return stem, blocks and neck."""
    joined = [piece for piece in pieces if _is_joined(steps, piece, trace)]
    if not joined:
        return _cut_at_sizes(steps, pieces, trace)
    blocks: list[Piece] = []
    begun: Piece | None = None
    stem: Piece | None = None
    for piece in pieces:
        if piece in joined:
            if stem is None:
                stem = begun or Piece(piece.first, piece.first - 1)
                begun = None
            elif begun is not None and _is_map(begun, trace) and _has_weights(steps, begun):
                blocks.append(begun)
                begun = None
            blocks.append(piece if begun is None else begun | piece)
            begun = None
        elif blocks and begun is None and _is_activation(steps, piece, trace):
            blocks[-1] = blocks[-1] | piece
        else:
            begun = piece if begun is None else begun | piece
    assert stem is not None
    end = len(steps)
    return stem, blocks, begun or Piece(end + 1, end)


def _cut_at_sizes(
    steps: Sequence[FlatStep], pieces: Sequence[Piece], trace: Trace
) -> tuple[Piece, list[Piece], Piece]:
    """Return stem, blocks and neck of a network whose paths never part."""
    runs: list[Piece] = []
    for piece in pieces:
        shrinks = len(runs) > 0 and _shrinks(steps, piece, trace)
        if not runs or (shrinks and _has_weights(steps, runs[-1])):
            runs.append(piece)
        else:
            runs[-1] = runs[-1] | piece
    if len(runs) < 3:
        return Piece(1, 0), [], Piece(1, len(steps))
    return runs[0], runs[1:-1], runs[-1]


def _is_joined(steps: Sequence[FlatStep], piece: Piece, trace: Trace) -> bool:
    ends_so = piece.last > piece.first and steps[piece.last - 1].op in JOINS
    return ends_so and _is_map(piece, trace) and _has_weights(steps, piece)


def _is_map(piece: Piece, trace: Trace) -> bool:
    """Whether a piece gives images (n, channels, H, W) or tokens (n, …, channels)."""
    return trace.values[piece.last].ndim in (3, 4)


def _has_weights(steps: Sequence[FlatStep], piece: Piece) -> bool:
    return any(step.op in WEIGHTS for step in steps[piece.first - 1 : piece.last])


def _is_activation(steps: Sequence[FlatStep], piece: Piece, trace: Trace) -> bool:
    """Whether a piece takes values one by one: x · sigmoid(x), too."""
    same = trace.values[piece.last].shape == trace.values[piece.first - 1].shape
    known = {*ACTIVATIONS, "mul", "erf", "add", "div"}
    inside = steps[piece.first - 1 : piece.last]
    if len(inside) == 1:
        return inside[0].op in ACTIVATIONS
    return same and all(step.op in known for step in inside)


def _shrinks(steps: Sequence[FlatStep], piece: Piece, trace: Trace) -> bool:
    before = trace.values[piece.first - 1]
    after = trace.values[piece.last]
    is_smaller = after.ndim == before.ndim == 4 and after.shape[2] < before.shape[2]
    return is_smaller and steps[piece.last - 1].op in SHRINKS


def _is_channels_last(steps: Sequence[FlatStep], piece: Piece, output: Tensor) -> bool:
    if output.ndim == 3:
        return True
    for step in steps[piece.first - 1 : piece.last][::-1]:
        if step.op == "conv":
            return False
        if step.op == "linear":
            width = step.fields["out_features"]
            return output.shape[-1] == width and output.shape[1] != width
    return False
