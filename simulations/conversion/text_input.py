"""The texts that a model takes: numbers of tokens, and a mask that says where there are any.

What exporters make of a mask (−∞ where nobody may look, one way or another) is not followed
operator by operator, for they flatten records and places into one axis and take them out again. It
is measured: each such tensor must be one number where there is a token and another where there is
none, in texts of several lengths, and that is what the network then computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.backbones.graph_network import probe_tokens
from fedgraft.common.errors import UserError
from fedgraft.common.files.mistakes import shown
from fedgraft.common.inputs.text import PADDING, is_token
from fedgraft.simulations.conversion.flat_network import FlatStep
from fedgraft.simulations.conversion.onnx_file import import_onnx

IDS = "input_ids"
MASK = "attention_mask"
# of the segment that a token is in: always the first
SEGMENTS = "token_type_ids"
LOWEST = float(np.finfo(np.float32).min)
TEXTS_COMPARED = 4


@dataclass(frozen=True)
class TextInput:
    """The texts that a model takes.

    Attributes:
        names: of its inputs: ids, mask and segments, where it has them.
        length: tokens of a text.
        vocabulary: how many tokens there are.
        batch: how many texts at a time it was exported for: any number.
    """

    names: tuple[str, ...]
    length: int
    vocabulary: int
    batch: ClassVar[None] = None
    plural: ClassVar[str] = "texts"

    @property
    def reaching(self) -> tuple[str, ...]:
        """Names of the inputs that tell a text from another; segments are always zeros."""
        return tuple(name for name in self.names if name != SEGMENTS)

    @property
    def size(self) -> Mapping[str, int]:
        """What the graph says of its input."""
        return {"length": self.length}

    def shapes(self, records: int) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of a batch, by the name of each input."""
        return dict.fromkeys(self.names, (records, self.length))

    def probe(self) -> Tensor:
        """Return as many texts as a network is traced with, without values."""
        return probe_tokens(self.length)

    def draw(self) -> Tensor:
        """Return random tokens, each text of another length."""
        return self._draw(TEXTS_COMPARED, 0)

    def _draw(self, records: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (records, self.length)
        tokens = torch.randint(0, self.vocabulary, shape, generator=generator)
        lengths = torch.randint(1, self.length + 1, (records, 1), generator=generator)
        # a whole text and a short one in every batch, or nothing is told of a mask
        lengths[0] = self.length
        lengths[1] = max(1, self.length // 2)
        tokens[torch.arange(self.length) >= lengths] = PADDING
        return tokens

    def feed(self, records: int, inputs: Tensor | None = None) -> dict[str, np.ndarray]:
        """Return a batch as the model takes it.

        Args:
            inputs: as our networks take them; None: random ones.
        """
        tokens = self._draw(records, records) if inputs is None else inputs
        arrays = {
            IDS: tokens.clamp(min=0).numpy(),
            MASK: is_token(tokens).long().numpy(),
            SEGMENTS: torch.zeros_like(tokens).numpy(),
        }
        return {name: arrays[name] for name in self.names}

    def begin(self) -> tuple[list[FlatStep], dict[str, int]]:
        """Return the steps that make a model's inputs of ours, and their numbers by name."""
        steps = [FlatStep({"op": "token-ids"}, [0]), FlatStep({"op": "token-mask"}, [0])]
        numbers = {IDS: 1, MASK: 2}
        return steps, {name: numbers[name] for name in self.reaching}


def find_texts(graph: Any, length: int, vocabulary: int, where: str) -> TextInput:
    """Return which texts a model takes.

    Args:
        length: tokens of a text.
        vocabulary: how many tokens its tokenizer has.

    Raises:
        UserError: it takes something else, or was exported for another length, or one batch size.
    """
    onnx = import_onnx()
    tensors = {tensor.name for tensor in graph.initializer}
    inputs = [given for given in graph.input if given.name not in tensors]
    names = tuple(given.name for given in inputs)
    remedy = f"export it with the inputs {IDS}, {MASK} and, where it has it, {SEGMENTS}"
    if IDS not in names or MASK not in names or set(names) - {IDS, MASK, SEGMENTS}:
        what = f"inputs: {', '.join(map(shown, names)) or 'none'}"
        raise UserError(what, where=where, remedy=remedy)
    for given in inputs:
        dims = given.type.tensor_type.shape.dim
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        is_whole = given.type.tensor_type.elem_type == onnx.TensorProto.INT64
        if len(sizes) != 2 or not is_whole or sizes[0] is not None:
            what = f"{given.name} has {'int64' if is_whole else 'other'} values of shape {sizes}"
            remedy = "export it in int64, for any number of texts (dynamic_axes: {0: 'n', 1: 'l'})"
            raise UserError(what, where=where, remedy=remedy)
        if sizes[1] not in (None, length):
            what = f"{length} tokens; this model was exported for {sizes[1]}"
            raise UserError(what, where="--max-length", remedy=f"write --max-length {sizes[1]}")
    return TextInput(names, length, vocabulary)


@dataclass(frozen=True)
class OfMask:
    """A tensor that follows from the mask alone.

    Attributes:
        axis: of the tokens.
        here, nowhere: its value where there is a token, and where there is none.
    """

    axis: int
    here: float
    nowhere: float


def fit_mask(arrays: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> OfMask | None:
    """Return how tensors follow from their masks; None: not as one number here and one nowhere.

    Args:
        arrays: the tensor for several batches, records in its first axis.
        masks: the mask of each batch `(n, length)`.
    """
    length = masks[0].shape[1]
    # where two axes have this size, tokens that are looked at are the last
    for axis in range(arrays[0].ndim - 1, 0, -1):
        if arrays[0].shape[axis] != length:
            continue
        found: set[tuple[float, ...]] = set()
        for array, mask in zip(arrays, masks, strict=True):
            shape = [1] * array.ndim
            shape[0], shape[axis] = mask.shape
            is_here = np.broadcast_to(mask.reshape(shape) > 0, array.shape)
            found.add((*np.unique(array[is_here]), np.nan, *np.unique(array[~is_here])))
        values = {tuple(map(str, each)) for each in found}
        if len(values) == 1 and len(next(iter(found))) == 3:
            here, _, nowhere = next(iter(found))
            return OfMask(axis, max(float(here), LOWEST), max(float(nowhere), LOWEST))
    return None
