"""What does it say? Texts that are written on: the next token of an answer, one after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.answer_sums import (
    AnswerSums,
    answer_losses,
    sums_from_flat,
    sums_of,
    zero,
)
from fedgraft.common.tasks.answer_tokens import align_answers, read_answers
from fedgraft.common.tasks.task import LabelledSource, Task
from fedgraft.common.tasks.written_answers import write_answers

# records whose outputs are held at once, a number for each token that there is at each place
AT_ONCE = 8


def measure_answers(source: LabelledSource, task: TaskSection) -> np.ndarray:
    """Return of each text how many characters its answer has, int64 `(n,)`. Raise `UserError` as
    `read_answers`.
    """
    texts, starts = read_answers(source)
    lengths = [len(text) - start for text, start in zip(texts, starts, strict=True)]
    return np.array(lengths, np.int64)


def put_together(targets: np.ndarray, task: TaskSection) -> np.ndarray:
    """Return one stratum for all `(n,)`: no answer is of another kind than others."""
    return np.zeros(len(targets), np.int64)


def read_sums(flat: Mapping[str, Any], task: TaskSection) -> AnswerSums:
    """Return sums from the wire. Raise `ValueError` for what no predictions could give."""
    return sums_from_flat(flat)


def tell_nothing(logits: Tensor, task: TaskSection) -> Tensor:
    """Return no columns `(n, 0)`: what there is to tell is written token by token."""
    return logits.new_zeros(len(logits), 0)


def describe(task: TaskSection) -> str:
    """Return the question for people."""
    prompt = " and ".join(task.prompt)
    return f"to write {task.target} after {prompt}, token by token"


GENERATION = Task(
    name="generation",
    takes="vocabulary",
    # as many as the backbone has tokens: its own head says
    outputs=lambda task: 1,
    loss=lambda outputs, targets: answer_losses(outputs, targets).mean(),
    losses=answer_losses,
    zero=lambda task: zero(),
    sums=lambda outputs, targets, task: sums_of(outputs, targets),
    read_sums=read_sums,
    targets=measure_answers,
    strata=put_together,
    counted=lambda task: ("answers",),
    count=lambda targets, task: np.array([len(targets)], np.int64),
    predict=tell_nothing,
    columns=lambda task: (),
    answer=None,
    answered="answer",
    # the first token everywhere, and the second
    probes=lambda task: torch.tensor([[0], [1]]),
    describe=describe,
    needs_each=False,
    aligned=align_answers,
    at_once=AT_ONCE,
    write=write_answers,
    reports="tokens, right tokens, and losses of answers, and how many have what loss",
)
