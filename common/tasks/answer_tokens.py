"""Which tokens a language model is asked for: those of the answer, each at the token before it.

A record is a text whose last part is the answer. At every place the target is the next token, if
that is the answer's; behind the answer's last token it is the end of the text. A prompt, padding,
and what was cut of a long text have none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.material import Preparation
from fedgraft.common.inputs.text import TextPreparation
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.answer_sums import NO_TARGET
from fedgraft.common.tasks.task import LabelledSource

# what GPT-2 and its kin end a text with
END = "<|endoftext|>"
# between the parts of a record, and so between a prompt and its answer
SEPARATOR = "\n"


def align_answers(
    source: LabelledSource, rows: np.ndarray, preparation: Preparation, task: TaskSection
) -> Tensor:
    """Return the token that is asked for at each place of some texts, int64 `(n, max_length)`; −1
    where there is none.
    """
    prepared = as_texts(preparation)
    texts, starts = read_answers(source)
    targets = torch.full((len(rows), prepared.max_length), NO_TARGET, dtype=torch.int64)
    for number, row in enumerate(map(int, rows)):
        text: str = texts[row]
        own = list_targets(prepared, text, starts[row])
        targets[number, : len(own)] = torch.tensor(own, dtype=torch.int64)
    return targets


def list_targets(preparation: TextPreparation, text: str, start: int) -> list[int]:
    """Return the target at each token of a text.

    Args:
        start: where its answer begins, in characters.
    """
    cut = preparation.tokenizer.encode(text)
    targets = [NO_TARGET] * len(cut.ids)
    last: int | None = None
    for place, (_, end) in enumerate(cut.offsets):
        if cut.special_tokens_mask[place]:
            continue
        last = place
        # a line's end has no extent where a tokenizer leaves spaces out of it
        if end > start and place > 0:
            targets[place - 1] = cut.ids[place]
    if last is not None and not cut.overflowing:
        targets[last] = find_end(preparation)
    return targets


def find_end(preparation: TextPreparation) -> int:
    """Return the number of the token that ends a text; −1 where the tokenizer has none."""
    end = preparation.tokenizer.token_to_id(END)
    return NO_TARGET if end is None else end


def read_answers(source: LabelledSource) -> tuple[Sequence[str], Sequence[int]]:
    """Return the texts of a source and where in each its answer begins. Raise `UserError` where
    they are no such texts.
    """
    if source.texts is None or source.answers_at is None:
        what = "records that are no texts with an answer at their end"
        remedy = "write `text: [question, answer]` and `target: answer` under task"
        raise UserError(what, where=source.where, remedy=remedy)
    return source.texts, source.answers_at


def as_texts(preparation: Preparation) -> TextPreparation:
    """Return the preparation of texts. Raise `UserError` for another material's."""
    if isinstance(preparation, TextPreparation):
        return preparation
    what = "answers are written in texts, and this backbone reads something else"
    raise UserError(what, where="backbone.name", remedy="write `name: huggingface`")
