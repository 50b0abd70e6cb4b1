"""Metrics as sums that merge across hospitals: two nodes' sums added equal their pooled
predictions' sums.

Confusion counts, cross-entropy and calibration bins merge exactly; what needs ranks (AUROC, AUPRC,
sensitivity at a specificity) by the bins of `score_bins.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.tasks.adding_sums import add_fields, lies_within
from fedgraft.common.tasks.finite_outputs import take_finite
from fedgraft.common.tasks.flat_sums import MOST, write_counts
from fedgraft.common.tasks.score_areas import area_under_roc, average_precision, ratios
from fedgraft.common.tasks.score_bins import BINS, bins_of, log_odds
from fedgraft.common.tasks.score_curves import precision_errors, sensitivities_at

CALIBRATION_BINS = 15
METRICS = (
    "accuracy",
    "auroc",
    "f1",
    "loss",
    "calibration_error",
    "auprc",
    "sensitivity",
    "specificity",
    "sensitivity_at_90",
    "sensitivity_at_95",
)


@dataclass(frozen=True, eq=False)
class ClassificationSums:
    """What a set of predictions adds up to, for K classes.

        sums = zero(classes=2)
        sums = sums + sums_of(logits, labels)
        sums.summary()["accuracy"], sums.summary()["auroc"]

    Attributes:
        classes: K.
        confusion: `(K, K)` int64, counts by [true class, predicted class].
        loss: sum of cross-entropies, nats.
        examples: how many predictions.
        positives: `(K, BINS)` int64, histogram of the class's scores over examples of that class.
        negatives: `(K, BINS)` int64, the same over examples of the other classes.
        calibration: `(15, 3)` float64, by bin of confidence: count, sum of confidences, correct
            predictions.
    """

    classes: int
    confusion: np.ndarray
    loss: float
    examples: int
    positives: np.ndarray
    negatives: np.ndarray
    calibration: np.ndarray

    def __add__(self, other: ClassificationSums) -> ClassificationSums:
        if self.classes != other.classes:
            both = f"{self.classes} and over {other.classes} classes"
            raise ValueError(f"sums over {both} do not add up")
        return add_fields(self, other, but=("classes",))

    @property
    def cells(self) -> int:
        """Return how many counts of true and predicted class there are; an example is in one."""
        return self.classes**2

    def within(self, other: ClassificationSums) -> bool:
        """Whether these can be sums of some of the predictions that `other` sums up."""
        return lies_within(
            self, other, totals=("confusion", "positives", "negatives", "calibration", "loss")
        )

    def only_counts(self, noise: np.ndarray) -> ClassificationSums:
        """Return the confusion counts alone with noise `(classes²,)` added, as whole numbers not
        below 0.

        Loss, AUROC and calibration of such sums are undefined.
        """
        noisy = self.confusion + noise.reshape(self.classes, self.classes)
        confusion = np.rint(noisy).clip(0, MOST // self.cells).astype(np.int64)
        examples = int(confusion.sum())
        return replace(zero(self.classes), confusion=confusion, examples=examples)

    def counts(self) -> list[list[int]]:
        """Return the confusion counts by true and predicted class."""
        return self.confusion.tolist()

    # ── what is reported to people ────────────────────────────────────────────────────────────────
    def summary(self) -> dict[str, float | int | None]:
        """Return the metrics; None where one is undefined (no examples; AUROC of one class only).

        accuracy; loss: mean cross-entropy, nats; calibration_error: expected calibration error over
        15 equal bins of confidence (Guo et al. 2017, eq. 5); examples. All others are of class 1
        for two classes, else the unweighted mean over the classes for which they are defined (one
        against the rest): auroc; f1; auprc: average precision; sensitivity and specificity of the
        answers; sensitivity_at_90: the highest among thresholds of a specificity of 0.90 or more.
        """
        metrics: dict[str, float | int | None] = dict.fromkeys(METRICS)
        metrics["examples"] = self.examples
        if self.examples == 0:
            return metrics
        metrics["accuracy"] = float(np.trace(self.confusion)) / self.examples
        metrics["auroc"] = self._one_or_mean(area_under_roc(self.positives, self.negatives))
        metrics["f1"] = self._one_or_mean(self._f1s())
        metrics |= self._summarise_thresholds()
        count, confidence, correct = self.calibration.T
        # all of the examples, or none where only confusion counts were released
        measured = float(count.sum())
        if measured:
            metrics["loss"] = self.loss / measured
            gaps = np.abs(confidence - correct)
            metrics["calibration_error"] = float(gaps.sum()) / measured
        return metrics

    def auroc_resolution(self) -> float:
        """Return the largest possible error of the AUROC: half the share of pairs whose two scores
        fall into one bin.
        """
        tied = (self.positives.astype(float) * self.negatives).sum(axis=1)
        pairs = self.positives.sum(axis=1).astype(float) * self.negatives.sum(axis=1)
        return self._one_or_mean(ratios(0.5 * tied, pairs)) or 0.0

    def auprc_resolution(self) -> float:
        """Return the largest possible error of the AUPRC, from scores that fall into one bin."""
        errors = precision_errors(self.positives, self.negatives)
        return self._one_or_mean(_known(errors)) or 0.0

    def _summarise_thresholds(self) -> dict[str, float | None]:
        """Return what a rare class is judged by."""
        hits = np.diag(self.confusion)
        of_class = self.confusion.sum(axis=1)
        others = self.examples - of_class
        wrongly = self.confusion.sum(axis=0) - hits
        scores = (self.positives, self.negatives)
        by_class = {
            "auprc": average_precision(*scores),
            "sensitivity": ratios(hits, of_class),
            "specificity": ratios(others - wrongly, others),
            "sensitivity_at_90": _known(sensitivities_at(*scores, 0.90)),
            "sensitivity_at_95": _known(sensitivities_at(*scores, 0.95)),
        }
        return {name: self._one_or_mean(values) for name, values in by_class.items()}

    def _one_or_mean(self, by_class: list[float | None]) -> float | None:
        if self.classes == 2:
            return by_class[1]
        defined = [value for value in by_class if value is not None]
        if not defined:
            return None
        return math.fsum(defined) / len(defined)

    def _f1s(self) -> list[float | None]:
        """Return 2·TP / (2·TP + FP + FN) of each class; None where it neither occurs nor is
        predicted.
        """
        hits = np.diag(self.confusion)
        occurrences = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
        return ratios(2 * hits, occurrences)

    # ── what travels ──────────────────────────────────────────────────────────────────────────────
    def to_flat(self) -> dict[str, Any]:
        """Return plain numbers for the wire; histograms as (positions, counts) of what is not
        zero. `sums_from_wire.py` reads them.
        """
        flat: dict[str, Any] = {"examples": self.examples, "loss": self.loss}
        for name in ("confusion", "positives", "negatives"):
            flat |= write_counts(name, getattr(self, name))
        at = np.flatnonzero(self.calibration[:, 0])
        count, confidence, correct = self.calibration[at].T
        flat["calibration-at"] = at.tolist()
        flat["calibration-count"] = count.astype(np.int64).tolist()
        flat["calibration-confidence"] = confidence.tolist()
        flat["calibration-correct"] = correct.astype(np.int64).tolist()
        return flat


def _known(values: np.ndarray) -> list[float | None]:
    """Return numbers by class; None where there is none (NaN)."""
    known: list[float | None] = []
    for value in values.tolist():
        known.append(None if math.isnan(value) else value)
    return known


def zero(classes: int) -> ClassificationSums:
    """Return the sums of no predictions at all."""
    return ClassificationSums(
        classes=classes,
        confusion=np.zeros((classes, classes), np.int64),
        loss=0.0,
        examples=0,
        positives=np.zeros((classes, BINS), np.int64),
        negatives=np.zeros((classes, BINS), np.int64),
        calibration=np.zeros((CALIBRATION_BINS, 3)),
    )


def sums_of(logits: Tensor, labels: Tensor) -> ClassificationSums:
    """Return the sums of a batch of predictions.

    Args:
        logits: `(n, K)` float, K ≥ 2.
        labels: `(n,)` integers 0 … K−1.

    Raises:
        Refused: logits that are not finite; the model diverged.
    """
    examples, classes = logits.shape
    if examples == 0:
        return zero(classes)
    scores = take_finite(logits)
    truth = labels.detach().to("cpu", torch.int64)
    log_total = torch.logsumexp(scores, dim=1)
    predicted = scores.argmax(dim=1)

    cells = (truth * classes + predicted).numpy()
    confusion = np.bincount(cells, minlength=classes * classes)
    true_scores = scores.gather(1, truth[:, None]).squeeze(1)
    losses = (log_total - true_scores).clamp(min=0.0)
    # (n, K): the place of each score in a histogram (K, BINS), flattened
    at = (bins_of(log_odds(scores)) + torch.arange(classes) * BINS).numpy()
    is_class = F.one_hot(truth, classes).bool().numpy()
    confidence = torch.exp(scores.amax(dim=1) - log_total).clamp(max=1.0)
    return ClassificationSums(
        classes=classes,
        confusion=confusion.reshape(classes, classes).astype(np.int64),
        loss=float(losses.sum()),
        examples=examples,
        positives=_histogram(at[is_class], classes),
        negatives=_histogram(at[~is_class], classes),
        calibration=_calibrate(confidence.numpy(), (predicted == truth).double().numpy()),
    )


def _histogram(at: np.ndarray, classes: int) -> np.ndarray:
    counts = np.bincount(at, minlength=classes * BINS)
    return counts.reshape(classes, BINS).astype(np.int64)


def _calibrate(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Return count, sum of confidences and correct predictions by bin, `(15, 3)`.

    Bin m holds confidences in ((m − 1)/15, m/15], as in Guo et al. 2017.
    """
    inner_edges = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
    bins = np.searchsorted(inner_edges, confidence, side="left")
    columns: list[np.ndarray] = []
    for weights in (np.ones(len(confidence)), confidence, correct):
        columns.append(np.bincount(bins, weights=weights, minlength=CALIBRATION_BINS))
    return np.stack(columns, axis=1)
