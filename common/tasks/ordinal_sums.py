"""What answered grades add up to: counts by true and answered grade, and the loss."""

from __future__ import annotations

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

METRICS = ("kappa", "grades_off", "accuracy", "loss")
_KEYS = ("examples", "loss", "confusion-at", "confusion")


@dataclass(frozen=True, eq=False)
class OrdinalSums:
    """What a set of predictions adds up to, for K grades.

        sums = zero(5) + sums_of(outputs, grades)
        sums.summary()["kappa"]

    Attributes:
        loss: sum of the cross-entropies of all thresholds, nats.
        confusion: counts by [true grade, answered grade], int64 `(K, K)`.
    """

    loss: float
    confusion: np.ndarray

    def __add__(self, other: OrdinalSums) -> OrdinalSums:
        if self.confusion.shape != other.confusion.shape:
            raise ValueError("sums over other grades do not add up")
        return add_fields(self, other)

    @property
    def examples(self) -> int:
        """Return how many predictions there are."""
        return int(self.confusion.sum())

    @property
    def cells(self) -> int:
        """Return how many counts there are; an example is in one of them."""
        return self.confusion.size

    def within(self, other: OrdinalSums) -> bool:
        """Whether these can be sums of some of the predictions that `other` sums up."""
        return lies_within(self, other, counts=("confusion",), totals=("loss",))

    def only_counts(self, noise: np.ndarray) -> OrdinalSums:
        """Return the counts alone with noise `(cells,)` added, as whole numbers not below 0."""
        noisy = self.confusion + noise.reshape(self.confusion.shape)
        confusion = np.rint(noisy).clip(0, MOST // self.cells).astype(np.int64)
        return replace(self, loss=0.0, confusion=confusion)

    def counts(self) -> list[list[int]]:
        """Return the counts by true and answered grade."""
        return self.confusion.tolist()

    def summary(self) -> dict[str, float | int | None]:
        """Return the metrics; None where one is undefined.

        kappa: 1 − Σ w·counts / Σ w·expected, w the square of the grades between (Cohen 1968,
        "Weighted kappa"); grades_off: mean of the grades between; accuracy; loss: mean, nats.
        """
        metrics: dict[str, float | int | None] = dict.fromkeys(METRICS)
        metrics["examples"] = self.examples
        if self.examples == 0:
            return metrics
        grades = np.arange(len(self.confusion))
        between = np.abs(grades[:, None] - grades)
        metrics["accuracy"] = float(np.trace(self.confusion)) / self.examples
        metrics["grades_off"] = float((self.confusion * between).sum()) / self.examples
        truth = self.confusion.sum(1).astype(float)
        answers = self.confusion.sum(0).astype(float)
        expected = float((np.outer(truth, answers) * between**2).sum()) / self.examples
        if expected > 0:
            metrics["kappa"] = 1 - float((self.confusion * between**2).sum()) / expected
        if self.loss:
            metrics["loss"] = self.loss / self.examples
        return metrics

    def to_flat(self) -> dict[str, Any]:
        """Return plain numbers for the wire."""
        flat: dict[str, Any] = {"examples": self.examples, "loss": self.loss}
        return flat | write_counts("confusion", self.confusion)


def zero(grades: int) -> OrdinalSums:
    """Return the sums of no predictions."""
    return OrdinalSums(0.0, np.zeros((grades, grades), np.int64))


def threshold_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logits `(n, K − 1)`, grades `(n,)` → the sum over thresholds of the cross-entropy of lying
    above it, `(n,)`, nats.
    """
    thresholds = torch.arange(outputs.shape[1], device=outputs.device)
    above = (targets[:, None] > thresholds).to(outputs.dtype)
    return F.binary_cross_entropy_with_logits(outputs, above, reduction="none").sum(1)


def grade_probabilities(outputs: Tensor) -> Tensor:
    """Logits `(n, K − 1)` → the probability of each grade `(n, K)`: no threshold is likelier passed
    than one below it.
    """
    above = outputs.sigmoid().cummin(1).values
    edges = F.pad(F.pad(above, (1, 0), value=1.0), (0, 1), value=0.0)
    return edges[:, :-1] - edges[:, 1:]


def answer_grades(probabilities: Tensor) -> Tensor:
    """Probabilities `(n, K)` → the median grade of each record `(n,)`: the least that is as likely
    as not to be enough, which is the least grades off.
    """
    upto = probabilities.cumsum(1)[:, :-1]
    return (upto < 0.5).sum(1)


def sums_of(outputs: Tensor, targets: Tensor) -> OrdinalSums:
    """Return the sums of a batch of predictions, `(n, K − 1)` and `(n,)`. Raise `Refused` for
    outputs that are not finite.
    """
    logits = take_finite(outputs)
    truth = targets.detach().to("cpu", torch.int64)
    grades = logits.shape[1] + 1
    answers = answer_grades(grade_probabilities(logits))
    cells = (truth * grades + answers).numpy()
    confusion = np.bincount(cells, minlength=grades**2).reshape(grades, grades)
    loss = float(threshold_losses(logits, truth).sum())
    return OrdinalSums(loss, confusion.astype(np.int64))


def sums_from_flat(flat: Mapping[str, Any], grades: int) -> OrdinalSums:
    """Return the sums that `to_flat` wrote. Raise `ValueError` for what no predictions could
    give.
    """
    check_keys(flat, _KEYS)
    sums = OrdinalSums(read_loss(flat), read_counts(flat, "confusion", (grades, grades)))
    if read_count(flat, "examples") != sums.examples:
        raise ValueError("counts by grade and examples disagree")
    if sums.examples == 0 and sums.loss:
        raise ValueError("a loss without examples")
    return sums
