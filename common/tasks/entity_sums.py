"""What answers about entities add up to: two nodes' sums added equal those of their pooled
predictions.

An entity is right where its first token, its last and its type are: the strict matching of the
CoNLL shared tasks, on tokens. Entities behind the end of a text that was cut are in no sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.tasks.adding_sums import add_fields, lies_within
from fedgraft.common.tasks.entity_tags import OUTSIDE, best_tags, count_tags, list_entities
from fedgraft.common.tasks.finite_outputs import take_finite
from fedgraft.common.tasks.flat_sums import MOST

METRICS = ("f1", "precision", "recall", "token_accuracy", "loss")
# integer steps of a record's share
STEP = 2**16
# what a record's share may lie in for each type: right, answered but not there, there but not found
OUTCOMES = 3
# so large that no path leaves "outside" where a token is none of the text's
CERTAIN = 1e4


@dataclass(frozen=True, eq=False)
class EntitySums:
    """What a set of predictions adds up to, for k types of entities.

        sums = zero(4) + sums_of(logits, tags)
        sums.summary()["f1"]

    Attributes:
        examples: how many texts.
        loss: sum over texts of the mean cross-entropy of their tokens, nats.
        tokens, right: how many tokens the texts have, and how many of them got the right tag.
        hits, answered, stated: by type, entities that were found rightly, that were answered, and
            that the data state, int64 `(k,)`.
        shares: by type and outcome, and last of texts with nothing stated and nothing answered,
            int64 `(3 k + 1,)`: each text is `STEP` in all, parted equally among what is right or
            wrong of it.
    """

    examples: int
    loss: float
    tokens: int
    right: int
    hits: np.ndarray
    answered: np.ndarray
    stated: np.ndarray
    shares: np.ndarray

    def __add__(self, other: EntitySums) -> EntitySums:
        if self.types != other.types:
            raise ValueError(f"sums over {self.types} and {other.types} types do not add up")
        return add_fields(self, other)

    @property
    def types(self) -> int:
        """Return how many types of entities there are."""
        return len(self.hits)

    @property
    def cells(self) -> int:
        """Return how many counts there are under noise; a text moves all of them by 1 at most."""
        return OUTCOMES * self.types + 1

    def within(self, other: EntitySums) -> bool:
        """Whether these can be sums of some of the predictions that `other` sums up."""
        return lies_within(self, other, counts=COUNTED, totals=("loss",))

    def only_counts(self, noise: np.ndarray) -> EntitySums:
        """Return the shares with noise `(cells,)` added, as whole steps not below 0.

        A text may hold any number of entities, so it is its share that is told: 1 for each text,
        parted among what is right and wrong of it. However many entities a text has, it moves all
        shares together by 1 at most, in the first norm and so in the second. What is measured of
        them weighs every text alike, not every entity.
        """
        noisy = self.shares + STEP * np.asarray(noise, np.float64)
        shares = np.rint(noisy).clip(0, MOST // self.cells).astype(np.int64)
        examples = -(-int(shares.sum()) // STEP)
        return replace(zero(self.types), examples=examples, shares=shares)

    def counts(self) -> list[list[int]]:
        """Return nothing: a text has several answers."""
        return []

    def summary(self) -> dict[str, float | int | None]:
        """Return the metrics over all types together.

        f1, precision, recall: of entities (micro); token_accuracy; loss: mean over texts, nats;
        examples. Of `only_counts` the first three, every text weighed alike.
        """
        metrics: dict[str, float | int | None] = dict.fromkeys(METRICS)
        metrics["examples"] = self.examples
        hits, answered, stated = self._count_entities()
        metrics |= rate(hits.sum(), answered.sum(), stated.sum())
        if self.tokens:
            metrics["token_accuracy"] = self.right / self.tokens
        if self.examples and not self.has_only_counts:
            metrics["loss"] = self.loss / self.examples
        return metrics

    def by_type(self) -> list[dict[str, float | int | None]]:
        """Return the metrics of each type, and how many entities of it the data state, of how many;
        nothing where there are noisy shares alone.
        """
        if self.has_only_counts:
            return []
        rows: list[dict[str, float | int | None]] = []
        for number in range(self.types):
            row = rate(self.hits[number], self.answered[number], self.stated[number])
            there = {"positives": int(self.stated[number]), "examples": int(self.stated.sum())}
            rows.append({**row, **there})
        return rows

    @property
    def has_only_counts(self) -> bool:
        """Whether these are sums of `only_counts`."""
        return self.tokens == 0 and self.loss == 0

    def _count_entities(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return hits, answered and stated by type; of noisy shares in texts."""
        if not self.has_only_counts:
            return self.hits, self.answered, self.stated
        right, wrong, missed = self.shares[:-1].reshape(self.types, OUTCOMES).T / STEP
        return right, right + wrong, right + missed

    def to_flat(self) -> dict[str, Any]:
        """Return plain numbers for the wire."""
        flat = {name: getattr(self, name) for name in NAMES}
        for name in LISTS:
            flat[name] = flat[name].tolist()
        return flat


NAMES = tuple(field.name for field in fields(EntitySums))
COUNTED = tuple(name for name in NAMES if name != "loss")
LISTS = ("hits", "answered", "stated", "shares")


def rate(hits: float, answered: float, stated: float) -> dict[str, float | int | None]:
    """Return F1, precision and recall; None where one is undefined."""
    return {
        "f1": _ratio(2 * hits, answered + stated),
        "precision": _ratio(hits, answered),
        "recall": _ratio(hits, stated),
    }


def _ratio(part: float, whole: float) -> float | None:
    return float(part) / float(whole) if whole else None


def zero(types: int) -> EntitySums:
    """Return the sums of no predictions."""
    none = np.zeros(types, np.int64)
    shares = np.zeros(OUTCOMES * types + 1, np.int64)
    return EntitySums(0, 0.0, 0, 0, hits=none, answered=none, stated=none, shares=shares)


# ── of predictions ────────────────────────────────────────────────────────────────────────────────
def token_losses(logits: Tensor, tags: Tensor) -> Tensor:
    """Logits `(n, tokens, tags)` and tags `(n, tokens)`, or `(n, 1)` for all tokens → the mean
    cross-entropy over the tokens of each text `(n,)`, nats; tags below 0 do not count.
    """
    tags = tags.expand(logits.shape[:2])
    known = tags >= 0
    truth = tags.clamp(min=0)
    losses = F.cross_entropy(logits.transpose(1, 2), truth, reduction="none")
    return (losses * known).sum(1) / known.sum(1).clamp(min=1)


def answer_tags(logits: Tensor, here: Tensor) -> Tensor:
    """Return the likeliest tags `(n, tokens)`; tokens that are none of the text's are outside.

    Args:
        here: which tokens are the text's, bool `(n, tokens)`.
    """
    outside = torch.zeros(logits.shape[-1], dtype=logits.dtype)
    outside[OUTSIDE] = CERTAIN
    return best_tags(torch.where(here[..., None], logits, outside))


def sums_of(outputs: Tensor, targets: Tensor) -> EntitySums:
    """Return the sums of a batch of predictions.

    Args:
        outputs: logits `(n, tokens, tags)`.
        targets: tags `(n, tokens)`, below 0 where a token is none of the text's.

    Raises:
        Refused: outputs that are not finite; the model diverged.
    """
    logits = take_finite(outputs)
    truth = targets.detach().to("cpu", torch.int64)
    types = logits.shape[-1] // 2
    total = zero(types)
    if not len(logits):
        return total
    here = truth >= 0
    answers = answer_tags(logits, here)
    for row in range(len(truth)):
        own = here[row]
        total = total + compare(truth[row][own].tolist(), answers[row][own].tolist(), types)
    return replace(total, loss=float(token_losses(logits, truth).sum()))


def compare(truth: Sequence[int], answers: Sequence[int], types: int) -> EntitySums:
    """Return the sums of one text, without its loss."""
    assert count_tags(types) > max([OUTSIDE, *truth, *answers])
    stated = set(list_entities(truth))
    answered = set(list_entities(answers))
    by_outcome = (stated & answered, answered - stated, stated - answered)
    counts = np.zeros((types, OUTCOMES), np.int64)
    for outcome, entities in enumerate(by_outcome):
        for entity in entities:
            counts[entity.type, outcome] += 1
    hits, wrong, missed = counts.T
    right = sum(one == other for one, other in zip(truth, answers, strict=True))
    return EntitySums(
        examples=1,
        loss=0.0,
        tokens=len(truth),
        right=right,
        hits=hits,
        answered=hits + wrong,
        stated=hits + missed,
        shares=share_out(counts),
    )


def share_out(counts: np.ndarray) -> np.ndarray:
    """Return a text's share in each type and outcome, and in nothing at all, `(3 k + 1,)`; `STEP`
    in all, or a little less by rounding.
    """
    shares = np.zeros(counts.size + 1, np.int64)
    total = int(counts.sum())
    if total == 0:
        shares[-1] = STEP
    else:
        shares[:-1] = counts.reshape(-1) * STEP // total
    return shares
