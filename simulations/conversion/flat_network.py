"""A network as one list of steps, as it is built up from operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fedgraft.common.backbones.graph_steps import AnyStep, Step
from fedgraft.common.errors import UserError

_STEP: TypeAdapter[Any] = TypeAdapter(AnyStep)
# a step's number, 0 for what enters the network; or a constant
Operand = int | np.ndarray


@dataclass
class FlatStep:
    """One step, and the tensors of its layer.

    Attributes:
        fields: as `graph_steps.py` has them, without names.
        inputs: numbers of steps from 1, 0 for the network's input; or constants.
        tensors: of its layer, by name.
    """

    fields: dict[str, Any]
    inputs: list[Operand]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def op(self) -> str:
        """Which step it is."""
        return self.fields["op"]

    def sources(self) -> list[int]:
        """Return the steps that it takes from."""
        return [source for source in self.inputs if isinstance(source, int)]


# kinds of layers, as they are called
LAYERS = {
    "conv": "conv",
    "linear": "linear",
    "batch-norm": "norm",
    "layer-norm": "norm",
    "embedding": "table",
}


def name_step(step: FlatStep, number: int, sources: Sequence[int | str], where: str) -> Step:
    """Return a step as it travels. Raise `UserError` for one that is out of its bounds.

    Args:
        number: that its layer is called by.
        sources: what it takes.
    """
    fields: dict[str, Any] = {**step.fields, "inputs": tuple(sources)}
    if step.op in LAYERS:
        fields["name"] = f"{LAYERS[step.op]}{number}"
    try:
        return _STEP.validate_python(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        what = f"a step {step.op} that is out of bounds: {first['loc'][-1]}: {first['msg']}"
        raise UserError(what, where=where, remedy="give a smaller or another model") from error


def constant_tensor(array: np.ndarray) -> Tensor:
    """Return a constant as it travels, float32."""
    return torch.from_numpy(np.array(array, np.float32))


def drop_unused(steps: Sequence[FlatStep], last: int) -> tuple[list[FlatStep], Mapping[int, int]]:
    """Return the steps that lead to one of them, and their new numbers by the old ones.

    A step that takes constants alone stands right before each step that takes it.
    """
    needed = _find_needed(steps, last)
    kept: list[FlatStep] = []
    numbers = {0: 0}
    for number, step in enumerate(steps, start=1):
        if number not in needed or not step.sources():
            continue
        inputs: list[Operand] = []
        for source in step.inputs:
            if not isinstance(source, int):
                inputs.append(source)
            elif source in numbers:
                inputs.append(numbers[source])
            else:
                kept.append(steps[source - 1])
                inputs.append(len(kept))
        kept.append(FlatStep(step.fields, inputs, step.tensors))
        numbers[number] = len(kept)
    return kept, numbers


def _find_needed(steps: Sequence[FlatStep], last: int) -> set[int]:
    needed = {last}
    for number in range(last, 0, -1):
        if number in needed:
            needed.update(steps[number - 1].sources())
    return needed
