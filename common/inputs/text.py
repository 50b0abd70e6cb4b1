"""Texts → tokens, as a backbone's own tokenizer cuts them, always padded to one length.

The tokenizer, or the vocabulary of one that cuts words by a rule, is one of the backbone's tensors
(its file's bytes), so it travels with them, is under their fingerprint, and a hospital approves it
with them. A token is a number; padding is −1, so that
one tensor says both which tokens there are and which places count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.material import Input, Preparation, Tensors
from fedgraft.common.inputs.tokenizer_file import bytes_of, count_tokens, open_tokenizer
from fedgraft.common.inputs.word_tokenizer import Vocabulary, open_vocabulary
from fedgraft.common.plan.backbone_section import BackboneSection
from fedgraft.common.plan.task_section import TaskSection

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# the tensor of a backbone that holds the bytes of its tokenizer.json
TOKENIZER = "tokenizer"
# and the one that holds the vocabulary of a network whose texts are cut into words
VOCABULARY = "vocabulary"
# in the place of a token where a text has ended
PADDING = -1
# tokens
DEFAULT_LENGTH = 128
LONGEST = 8192


@dataclass(frozen=True)
class TextPreparation:
    """Texts → tokens, int64 `(n, max_length)`, −1 behind the end of a text.

        preparation = TextPreparation(96, lambda: backbone_state(backbone))
        preparation(["A cough for three weeks.", "Nothing found."])["tokens"].shape  # (2, 96)

    Padding is always to the whole length: another number of positions gives other last bits.

    Attributes:
        max_length: tokens of a text, those that the tokenizer puts around it included; longer
            texts are cut.
        tensors: gives the backbone's tensors; None: not bound to a backbone yet.
    """

    max_length: int
    tensors: Tensors | None = field(default=None, compare=False, repr=False)

    def __call__(self, raw: Sequence[str]) -> Batch:
        """Return the tokens of n texts. Raise `UserError` for anything but texts."""
        if isinstance(raw, str) or not all(isinstance(text, str) for text in raw):
            raise UserError("no list of texts", remedy="give a list of texts, one a record")
        tokens = torch.full((len(raw), self.max_length), PADDING, dtype=torch.int64)
        for row, text in enumerate(raw):
            numbers = self._cut(text)
            # an empty text has one place that counts, or its mean would be none
            numbers = numbers or [0]
            tokens[row, : len(numbers)] = torch.tensor(numbers)
        return Batch({"tokens": tokens})

    def count(self, text: str) -> int:
        """Return how many tokens a text is before it is cut."""
        if self._words is not None:
            return len(self._words.number(text, LONGEST))
        return len(self._shared.encode(text).ids)

    def locate(self, text: str) -> list[tuple[int, int] | None]:
        """Return where each of a text's tokens lies in it, (start, end) in characters, at most
        `max_length`; None for those that the tokenizer puts around it.

        Raises:
            UserError: a backbone whose texts are cut into words by a rule: it does not tell.
        """
        if self._words is not None:
            what = "a backbone whose texts are cut into words, which does not say where they lie"
            remedy = "take a model with a tokenizer.json, such as `backbone: {name: huggingface}`"
            raise UserError(what, where="backbone.name", remedy=remedy)
        cut = self.tokenizer.encode(text)
        places: list[tuple[int, int] | None] = []
        for place, is_special in zip(cut.offsets, cut.special_tokens_mask, strict=True):
            places.append(None if is_special or place[0] >= place[1] else place)
        return places

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The backbone's tokenizer, which cuts at `max_length`."""
        # the one that others use, too, cuts nothing
        tokenizer = type(self._shared).from_str(self._shared.to_str())
        tokenizer.enable_truncation(self.max_length)
        return tokenizer

    @cached_property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        if self._words is not None:
            return len(self._words.tokens)
        return count_tokens(self._shared)

    def _cut(self, text: str) -> list[int]:
        """Return the numbers of a text's tokens, at most `max_length`."""
        if self._words is not None:
            return self._words.number(text, self.max_length)
        return self.tokenizer.encode(text).ids

    @cached_property
    def _words(self) -> Vocabulary | None:
        """The vocabulary of a backbone whose texts are cut into words; None: it has a tokenizer."""
        tensor = self._find(VOCABULARY)
        return None if tensor is None else open_vocabulary(bytes_of(tensor))

    def _find(self, name: str) -> Tensor | None:
        """Return a tensor of the backbone's; None: it has none of this name."""
        if self.tensors is None:
            raise ValueError("texts are prepared with a tokenizer, and no backbone was bound")
        return self.tensors().get(name)

    @property
    def _shared(self) -> Tokenizer:
        tensor = self._find(TOKENIZER)
        if tensor is None:
            remedy = "save the backbone again"
            raise UserError("a backbone for texts without its tokenizer", remedy=remedy)
        return open_tokenizer(bytes_of(tensor))

    def to_json(self) -> dict[str, Any]:
        """Return the length; tokenizer or vocabulary are among the backbone's tensors."""
        return {"max_length": self.max_length}


def read_preparation(data: Mapping[str, Any]) -> TextPreparation:
    """Return the opposite of `TextPreparation.to_json`. Raise `UserError` for anything else."""
    length = data.get("max_length")
    if set(data) == {"max_length"} and type(length) is int and 1 <= length <= LONGEST:
        return TextPreparation(length)
    what = f"a preparation of texts that cannot be: {str(dict(data))[:200]}"
    raise UserError(what, remedy="save the backbone again")


def prepare_texts(name: str, weights: str | None, size: int | None) -> TextPreparation:
    """Return what a family's texts go through: cut to a length."""
    return TextPreparation(size or DEFAULT_LENGTH)


def bind_tokenizer(preparation: Preparation, tensors: Tensors) -> Preparation:
    """Return the preparation of texts with the tokenizer that is among a backbone's tensors."""
    if isinstance(preparation, TextPreparation):
        return replace(preparation, tensors=tensors)
    return preparation


def example_text(preparation: Preparation, backbone: BackboneSection, task: TaskSection) -> Batch:
    """Return one text of the first token alone, as long as a plan's backbone reads."""
    assert isinstance(preparation, TextPreparation)
    return Batch({"tokens": torch.zeros(1, preparation.max_length, dtype=torch.int64)})


def draw_texts(
    preparation: Preparation, example: Batch, count: int, generator: torch.Generator
) -> Batch:
    """Return random tokens, each text of another length."""
    assert isinstance(preparation, TextPreparation)
    shape = (count, example.only.shape[1])
    tokens = torch.randint(0, preparation.vocabulary, shape, generator=generator)
    lengths = torch.randint(1, shape[1] + 1, (count, 1), generator=generator)
    places = torch.arange(shape[1])
    return Batch({"tokens": torch.where(places < lengths, tokens, PADDING)})


def leave_texts(batch: Batch, augment: str, generator: torch.Generator) -> Batch:
    """Return the batch as it is: texts have nothing to flip or crop."""
    return batch


def is_token(tokens: Tensor) -> Tensor:
    """Return which places hold a token, 1 or 0, float32 of the same shape."""
    return (tokens != PADDING).to(torch.float32)


TEXT = Input(
    name="text",
    plural="texts",
    read_preparation=read_preparation,
    example=example_text,
    augment=leave_texts,
    draw=draw_texts,
    bind=bind_tokenizer,
)
