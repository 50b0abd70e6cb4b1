"""What predictions of the next token of answers add up to: nats, tokens, and how surprised a model
is by each answer.

An answer's loss is the mean over its tokens: each counts the same, however long it is. Perplexity
is of all tokens together, as it is usual.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.inputs.text import LONGEST
from fedgraft.common.tasks.adding_sums import ROUNDING, add_fields, lies_within
from fedgraft.common.tasks.finite_outputs import take_finite
from fedgraft.common.tasks.flat_sums import (
    MOST,
    check_keys,
    read_count,
    read_counts,
    read_number,
    write_counts,
)

METRICS = ("perplexity", "loss", "next_token_accuracy")
# in the place of a target where none is: a prompt, the end of a text, what was cut
NO_TARGET = -1
# nats that one token can cost here; a uniform guess among a million costs 14
MOST_NATS = 100.0
# of an answer's loss: so many bins of so many nats each, the last one for all above
LOSS_BINS = 48
BIN = 0.25


@dataclass(frozen=True, eq=False)
class AnswerSums:
    """What predictions of answers add up to.

        sums = zero() + sums_of(logits, targets)
        sums.summary()["perplexity"]

    Attributes:
        examples: how many answers, of which a token was asked for.
        tokens: how many tokens of these.
        right: how many of them were the likeliest.
        nats: Σ over tokens of −log p, each at most `MOST_NATS`.
        loss: Σ over answers of the mean of it over their tokens.
        bins: how many answers have which loss, int64 `(LOSS_BINS,)`.
    """

    examples: int
    tokens: int
    right: int
    nats: float
    loss: float
    bins: np.ndarray

    def __add__(self, other: AnswerSums) -> AnswerSums:
        return add_fields(self, other)

    @property
    def cells(self) -> int:
        """Return how many bins of losses there are; an answer is in one."""
        return LOSS_BINS

    def within(self, other: AnswerSums) -> bool:
        """Whether these can be sums of some of the predictions that `other` sums up."""
        return lies_within(
            self, other, counts=("bins", "examples", "tokens", "right"), totals=("nats", "loss")
        )

    def only_counts(self, noise: np.ndarray) -> AnswerSums:
        """Return the bins of losses alone with noise `(cells,)` added, as whole numbers not below
        0; the loss is then that of the middles of the bins, and perplexity that of the loss.
        """
        bins = np.rint(self.bins + noise).clip(0, MOST // LOSS_BINS).astype(np.int64)
        return replace(zero(), bins=bins, examples=int(bins.sum()))

    def counts(self) -> list[list[int]]:
        """Return nothing: answers are no classes."""
        return []

    def summary(self) -> dict[str, float | int | None]:
        """Return the metrics; None where one is undefined.

        perplexity: e to the mean nats of a token; loss: the mean over answers of the nats of a
        token; next_token_accuracy: how often the likeliest token was the right one; examples.
        """
        metrics: dict[str, float | int | None] = dict.fromkeys(METRICS)
        metrics["examples"] = self.examples
        if self.examples == 0:
            return metrics
        if self.tokens == 0:
            middles = (np.arange(LOSS_BINS) + 0.5) * BIN
            metrics["loss"] = float(self.bins @ middles) / self.examples
            # each answer counts the same: how long it is was not told
            metrics["perplexity"] = math.exp(metrics["loss"])
            return metrics
        metrics["perplexity"] = math.exp(self.nats / self.tokens)
        metrics["loss"] = self.loss / self.examples
        metrics["next_token_accuracy"] = self.right / self.tokens
        return metrics

    def to_flat(self) -> dict[str, Any]:
        """Return plain numbers for the wire."""
        flat: dict[str, Any] = {}
        for name in _NUMBERS:
            flat[name] = getattr(self, name)
        return flat | write_counts("bins", self.bins)


_NUMBERS = ("examples", "tokens", "right", "nats", "loss")
_KEYS = (*_NUMBERS, "bins-at", "bins")


def zero() -> AnswerSums:
    """Return the sums of no predictions."""
    return AnswerSums(0, 0, 0, 0.0, 0.0, np.zeros(LOSS_BINS, np.int64))


def list_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return −log p of each target `(n, tokens)`, nats; 0 where there is none.

    All logits `(n, tokens, V)` are gone through, asked for or not: how long it takes does not tell
    how long answers are.
    """
    by_token = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET, reduction="none"
    )
    return by_token.view(targets.shape)


def answer_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits `(n, tokens, V)`, targets `(n, tokens)` or `(n, 1)` → loss of each answer `(n,)`: the
    mean −log p of its tokens, nats; 0 where nothing of an answer is there.
    """
    targets = targets.expand(logits.shape[:2])
    losses = list_losses(logits, targets)
    return losses.sum(1) / (targets >= 0).sum(1).clamp(min=1)


def sums_of(logits: Tensor, targets: Tensor) -> AnswerSums:
    """Return the sums of a batch of predictions, `(n, tokens, V)` and `(n, tokens)`.

    Raises:
        Refused: outputs that are not finite; the model diverged.
    """
    outputs = take_finite(logits)
    truth = targets.detach().to("cpu")
    there = truth >= 0
    lengths = there.sum(1)
    kept = lengths > 0
    nats = list_losses(outputs, truth).clamp(max=MOST_NATS)
    losses = nats.sum(1)[kept] / lengths[kept]
    at = (losses / BIN).floor().clamp(0, LOSS_BINS - 1).long()
    is_right = outputs.argmax(2)[there] == truth[there]
    return AnswerSums(
        examples=int(kept.sum()),
        tokens=int(lengths.sum()),
        right=int(is_right.sum()),
        nats=float(nats.sum()),
        loss=float(losses.sum()),
        bins=np.bincount(at.numpy(), minlength=LOSS_BINS).astype(np.int64),
    )


def sums_from_flat(flat: Mapping[str, Any]) -> AnswerSums:
    """Return the sums that `to_flat` wrote. Raise `ValueError` for what no predictions could
    give.
    """
    check_keys(flat, _KEYS)
    examples = read_count(flat, "examples")
    tokens = read_count(flat, "tokens")
    sums = AnswerSums(
        examples=examples,
        tokens=tokens,
        right=read_count(flat, "right"),
        nats=read_number(flat, "nats", 0.0, MOST_NATS * tokens),
        loss=read_number(flat, "loss", 0.0, MOST_NATS * examples),
        bins=read_counts(flat, "bins", (LOSS_BINS,)),
    )
    if int(sums.bins.sum()) != examples:
        raise ValueError("bins of losses and examples disagree")
    if not (tokens or sums.right or sums.loss):
        # of `only_counts`
        return sums
    if not examples <= tokens <= LONGEST * examples or sums.right > tokens:
        raise ValueError("tokens, those that are right and examples disagree")
    slack = ROUNDING * (1 + MOST_NATS * tokens)
    # each answer has 1 to LONGEST tokens, of its loss on average
    if not sums.loss - slack <= sums.nats <= LONGEST * sums.loss + slack:
        raise ValueError("nats of tokens and losses of answers disagree")
    edges = np.arange(LOSS_BINS + 1) * BIN
    edges[-1] = MOST_NATS
    lowest = float(sums.bins @ edges[:-1])
    highest = float(sums.bins @ edges[1:])
    if not lowest - slack <= sums.loss <= highest + slack:
        raise ValueError("losses and their bins disagree")
    return sums
