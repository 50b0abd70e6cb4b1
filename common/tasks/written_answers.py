"""Answers as a language model writes them: the likeliest token, and again with it at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.material import Preparation
from fedgraft.common.inputs.text import PADDING, TextPreparation
from fedgraft.common.tasks.answer_tokens import END, SEPARATOR, as_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# prompts that are written on together
AT_ONCE = 8
DEFAULT_TOKENS = 64


@torch.inference_mode()
def write_answers(
    model: Callable[[Batch], Tensor],
    prompts: Sequence[str],
    preparation: Preparation,
    tokens: int | None = None,
) -> list[str]:
    """Return what a model writes behind each prompt, greedily: to the end that it writes itself, or
    so many tokens. Of a prompt that leaves no room for these, the beginning is left out.

    Args:
        tokens: None: `DEFAULT_TOKENS`, but no more than half of what a text may have.

    Raises:
        UserError: fewer tokens than 1, or as many as a text may have and more.
    """
    prepared = as_texts(preparation)
    if tokens is None:
        tokens = min(DEFAULT_TOKENS, prepared.max_length // 2)
    if not 1 <= tokens < prepared.max_length:
        what = f"{tokens}, and a text has {prepared.max_length} tokens here, prompt and all"
        remedy = f"write 1 to {prepared.max_length - 1}"
        raise UserError(what, where="tokens", remedy=remedy)
    written: list[str] = []
    for start in range(0, len(prompts), AT_ONCE):
        some = prompts[start : start + AT_ONCE]
        written += _write_some(model, some, prepared, tokens)
    return written


def _write_some(
    model: Callable[[Batch], Tensor],
    prompts: Sequence[str],
    preparation: TextPreparation,
    tokens: int,
) -> list[str]:
    tokenizer = open_writer(preparation)
    texts = [_cut_prompt(tokenizer, prompt, preparation.max_length - tokens) for prompt in prompts]
    answers: list[list[int]] = [[] for _ in texts]
    end = tokenizer.token_to_id(END)
    open_rows = list(range(len(texts)))
    for _ in range(tokens):
        if not open_rows:
            break
        batch = torch.full((len(open_rows), preparation.max_length), PADDING)
        for place, row in enumerate(open_rows):
            own = texts[row] + answers[row]
            batch[place, : len(own)] = torch.tensor(own)
        logits = model(Batch({"tokens": batch})).cpu()
        still_open: list[int] = []
        for place, row in enumerate(open_rows):
            last = len(texts[row]) + len(answers[row]) - 1
            token = int(logits[place, last].argmax())
            if token != end:
                answers[row].append(token)
                still_open.append(row)
        open_rows = still_open
    return [tokenizer.decode(numbers).strip() for numbers in answers]


def open_writer(preparation: TextPreparation) -> Tokenizer:
    """Return a tokenizer that cuts nothing, puts nothing around a text, and decodes."""
    from tokenizers import decoders

    own = preparation.tokenizer
    tokenizer = type(own).from_str(own.to_str())
    tokenizer.no_truncation()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _cut_prompt(tokenizer: Tokenizer, prompt: str, room: int) -> list[int]:
    """Return the last tokens of a prompt, and of what stands before an answer."""
    text = prompt.rstrip(SEPARATOR) + SEPARATOR
    return tokenizer.encode(text, add_special_tokens=False).ids[-room:]
