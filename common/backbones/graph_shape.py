"""What a converted network is, as it travels among its tensors: parts of steps, as JSON.

    stem → groups of blocks → neck → classifier

One tensor passes from part to part, with one row a record. The JSON may come from a server that is
not to be trusted: every number has its bounds, a step takes what came before it in its part and
nothing else, and names are of few forms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedgraft.common.backbones.graph_steps import AnyStep, Constant, Size
from fedgraft.common.errors import UserError
from fedgraft.common.files.mistakes import shown

# of the JSON, bytes
LARGEST_GRAPH = 4_000_000
# of all parts together
MOST_STEPS = 10_000
MOST_CONSTANT_VALUES = 100_000_000
_REMEDY = "convert the model again, with fedgraft convert"


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Part(_Described):
    """Some steps of a network: one tensor in, one out.

    Attributes:
        steps: in order; the last one's output is the part's. None: its input is its output.
        constants: shapes of the tensors beside those of layers, by name.
    """

    steps: Annotated[tuple[AnyStep, ...], Field(max_length=MOST_STEPS)]
    constants: Annotated[
        dict[Constant, Annotated[tuple[Size, ...], Field(max_length=8)]],
        Field(max_length=MOST_STEPS),
    ] = {}

    @model_validator(mode="after")
    def _follows_itself(self) -> Part:
        layers: set[str] = set()
        for number, step in enumerate(self.steps):
            for source in step.inputs:
                if isinstance(source, int) and source > number:
                    raise ValueError(f"step {number} takes what comes behind it")
                if isinstance(source, str) and source not in self.constants:
                    raise ValueError(f"step {number} takes {source}, which is not there")
            if step.layer in layers:
                raise ValueError(f"two layers are called {step.layer}")
            if step.layer is not None:
                layers.add(step.layer)
        for name, shape in self.constants.items():
            count = 1
            for size in shape:
                count *= size
            if count > MOST_CONSTANT_VALUES:
                raise ValueError(f"{name} has {count:,} values")
        return self


class Block(_Described):
    """A part behind which features are read, and adapters go.

    Attributes:
        channels: of its output.
        channels_last: whether that is (n, …, channels) rather than (n, channels, H, W).
    """

    part: Part
    channels: Size
    channels_last: bool = False


class Graph(_Described):
    """A network without its classifier.

    Attributes:
        side: of the images that it takes, pixels; None: it takes texts.
        length: of the texts that it takes, tokens; None: it takes images.
        stem: before the first block.
        groups: blocks whose outputs are of one size.
        neck: behind the last block; its output enters the classifier.
        features: values of that output.
    """

    side: Annotated[int, Field(ge=1, le=4096)] | None = None
    length: Annotated[int, Field(ge=1, le=8192)] | None = None
    stem: Part
    groups: Annotated[
        tuple[Annotated[tuple[Block, ...], Field(min_length=1, max_length=1000)], ...],
        Field(max_length=1000),
    ]
    neck: Part
    features: Size

    def list_parts(self) -> Iterator[tuple[str, Part]]:
        """Yield all parts in order, with the dotted name of each."""
        yield "stem", self.stem
        for number, group in enumerate(self.groups):
            for place, block in enumerate(group):
                yield f"groups.{number}.{place}", block.part
        yield "neck", self.neck

    @model_validator(mode="after")
    def _takes_one_thing(self) -> Graph:
        if (self.side is None) == (self.length is None):
            raise ValueError("it takes either images or texts")
        return self

    @model_validator(mode="after")
    def _is_no_giant(self) -> Graph:
        steps = sum(len(part.steps) for _, part in self.list_parts())
        if steps > MOST_STEPS:
            raise ValueError(f"{steps:,} steps")
        return self


def write_graph(graph: Graph) -> bytes:
    """Return a graph as it travels."""
    return graph.model_dump_json(exclude_defaults=True).encode()


def read_graph(content: bytes, where: str) -> Graph:
    """Return the opposite of `write_graph`. Raise `UserError` for anything else."""
    if len(content) > LARGEST_GRAPH:
        what = f"a graph of {len(content):,} bytes; at most {LARGEST_GRAPH:,} are taken"
        raise UserError(what, where=where, remedy="give a smaller model")
    try:
        return Graph.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(map(str, first["loc"])) or "graph"
        what = f"no graph of a network: {key}: {first['msg']} (there is {shown(first['input'])})"
        raise UserError(what[:500], where=where, remedy=_REMEDY) from error
