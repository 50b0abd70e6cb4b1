"""What answers to several questions of yes and no add up to: two nodes' sums added equal those of
their pooled predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.tasks.adding_sums import add_fields, lies_within
from fedgraft.common.tasks.finite_outputs import take_finite
from fedgraft.common.tasks.flat_sums import (
    MOST,
    check_keys,
    read_count,
    read_counts,
    read_loss,
    write_counts,
)
from fedgraft.common.tasks.score_areas import (
    area_under_roc,
    average_precision,
    mean_of_known,
    ratios,
)
from fedgraft.common.tasks.score_bins import BINS, bins_of

METRICS = ("auroc", "auprc", "f1", "accuracy", "loss")
# scores from here on are answered yes
EVEN = BINS // 2
_KEYS = ("examples", "loss", "positives-at", "positives", "negatives-at", "negatives")


@dataclass(frozen=True, eq=False)
class MultilabelSums:
    """What a set of predictions adds up to, for k labels.

        sums = zero(14) + sums_of(logits, targets)
        sums.summary()["auroc"]

    Attributes:
        examples: how many predictions; of some of them labels may not be known.
        loss: sum over examples of the mean cross-entropy over their known labels, nats.
        positives: `(k, BINS)` int64, histogram of the label's scores over records that have it.
        negatives: the same over records that are known not to have it.
    """

    examples: int
    loss: float
    positives: np.ndarray
    negatives: np.ndarray

    def __add__(self, other: MultilabelSums) -> MultilabelSums:
        if self.labels != other.labels:
            raise ValueError(f"sums over {self.labels} and {other.labels} labels do not add up")
        return add_fields(self, other)

    @property
    def labels(self) -> int:
        """Return how many labels there are."""
        return len(self.positives)

    @property
    def cells(self) -> int:
        """Return how many counts there are: by label, truth and answer."""
        return 4 * self.labels

    def counts_by_label(self) -> np.ndarray:
        """Return how many records there are by label, truth and answer, `(k, 2, 2)`."""
        table = np.zeros((self.labels, 2, 2), np.int64)
        for truth, scores in enumerate((self.negatives, self.positives)):
            table[:, truth, 0] = scores[:, :EVEN].sum(1)
            table[:, truth, 1] = scores[:, EVEN:].sum(1)
        return table

    def within(self, other: MultilabelSums) -> bool:
        """Whether these can be sums of some of the predictions that `other` sums up."""
        return lies_within(
            self, other, counts=("positives", "negatives", "examples"), totals=("loss",)
        )

    def only_counts(self, noise: np.ndarray) -> MultilabelSums:
        """Return counts by label, truth and answer with noise `(cells,)` added, as whole numbers
        not below 0: right and wrong answers, no scores.

        A record is in a count of each label: noise is scaled by √k, which is how far that moves
        them.
        """
        noisy = self.counts_by_label() + math.sqrt(self.labels) * noise.reshape(-1, 2, 2)
        table = np.rint(noisy).clip(0, MOST // self.cells).astype(np.int64)
        bare = zero(self.labels)
        for truth, scores in enumerate((bare.negatives, bare.positives)):
            # the lowest and the highest score that there is: no other
            scores[:, 0] = table[:, truth, 0]
            scores[:, -1] = table[:, truth, 1]
        return replace(bare, examples=int(table.sum((1, 2)).max(initial=0)))

    def counts(self) -> list[list[int]]:
        """Return nothing: a record has several answers."""
        return []

    def summary(self) -> dict[str, float | int | None]:
        """Return the metrics, each the plain mean over the labels for which it is defined.

        auroc; auprc: average precision; f1 and accuracy of answers from even odds on; loss: mean
        over records, nats; examples.
        """
        metrics: dict[str, float | int | None] = dict.fromkeys(METRICS)
        metrics["examples"] = self.examples
        table = self.counts_by_label()
        hits = table[:, 1, 1]
        metrics["f1"] = mean_of_known(ratios(2 * hits, 2 * hits + table[:, 0, 1] + table[:, 1, 0]))
        right = table[:, 0, 0] + hits
        metrics["accuracy"] = mean_of_known(ratios(right, table.sum((1, 2))))
        if self._has_only_counts():
            return metrics
        metrics["auroc"] = mean_of_known(area_under_roc(self.positives, self.negatives))
        metrics["auprc"] = mean_of_known(average_precision(self.positives, self.negatives))
        if self.examples:
            metrics["loss"] = self.loss / self.examples
        return metrics

    def by_label(self) -> list[dict[str, float | int | None]]:
        """Return AUROC and AUPRC of each label, where they are defined, and how many records of how
        many have it; nothing where there are counts alone.
        """
        if self._has_only_counts():
            return []
        areas = area_under_roc(self.positives, self.negatives)
        precisions = average_precision(self.positives, self.negatives)
        there = self.positives.sum(1).tolist()
        known = (self.positives.sum(1) + self.negatives.sum(1)).tolist()
        rows: list[dict[str, float | int | None]] = []
        for number, area in enumerate(areas):
            row = {"auroc": area, "auprc": precisions[number]}
            rows.append({**row, "positives": there[number], "examples": known[number]})
        return rows

    def _has_only_counts(self) -> bool:
        """Whether these are sums of `only_counts`."""
        between = self.positives[:, 1:-1].any() or self.negatives[:, 1:-1].any()
        return not (between or self.loss)

    def to_flat(self) -> dict[str, Any]:
        """Return plain numbers for the wire."""
        flat: dict[str, Any] = {"examples": self.examples, "loss": self.loss}
        flat |= write_counts("positives", self.positives)
        return flat | write_counts("negatives", self.negatives)


def zero(labels: int) -> MultilabelSums:
    """Return the sums of no predictions."""
    shape = (labels, BINS)
    return MultilabelSums(0, 0.0, np.zeros(shape, np.int64), np.zeros(shape, np.int64))


def label_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logits and targets `(n, k)` → the mean cross-entropy over known labels of each example
    `(n,)`, nats.

    Args:
        targets: 1: yes; 0: no; below 0: not known.
    """
    known = (targets >= 0).to(outputs.dtype)
    truth = targets.clamp(min=0).to(outputs.dtype)
    losses = F.binary_cross_entropy_with_logits(outputs, truth, reduction="none")
    return (losses * known).sum(1) / known.sum(1).clamp(min=1.0)


def sums_of(outputs: Tensor, targets: Tensor) -> MultilabelSums:
    """Return the sums of a batch of predictions.

    Args:
        outputs: logits `(n, k)`.
        targets: `(n, k)`, see `label_losses`.

    Raises:
        Refused: outputs that are not finite; the model diverged.
    """
    scores = take_finite(outputs)
    truth = targets.detach().to("cpu")
    labels = scores.shape[1]
    at = bins_of(scores) + torch.arange(labels) * BINS
    counts = []
    for value in (1, 0):
        chosen = at[truth == value].numpy()
        histogram = np.bincount(chosen, minlength=labels * BINS)
        counts.append(histogram.reshape(labels, BINS).astype(np.int64))
    positives, negatives = counts
    loss = float(label_losses(scores, truth).sum())
    return MultilabelSums(len(scores), loss, positives, negatives)


def sums_from_flat(flat: Mapping[str, Any], labels: int) -> MultilabelSums:
    """Return the sums that `to_flat` wrote. Raise `ValueError` for what no predictions could
    give.
    """
    check_keys(flat, _KEYS)
    sums = MultilabelSums(
        examples=read_count(flat, "examples"),
        loss=read_loss(flat),
        positives=read_counts(flat, "positives", (labels, BINS)),
        negatives=read_counts(flat, "negatives", (labels, BINS)),
    )
    known = sums.positives.sum(1) + sums.negatives.sum(1)
    if (known > sums.examples).any():
        raise ValueError("a label is known of more records than there are")
    if not known.any() and (sums.loss or sums.examples):
        raise ValueError("records of which no label is known")
    return sums
