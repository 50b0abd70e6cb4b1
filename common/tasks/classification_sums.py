"""Metrics as sums that merge across hospitals: two nodes' sums added equal their pooled
predictions' sums.

Confusion counts, cross-entropy and calibration bins merge exactly. AUROC needs ranks, which do not
merge; each node therefore counts its scores in fixed bins. A score is the one-vs-rest log-odds z_k
− log Σ_{j≠k} exp z_j, not the probability: float probabilities of a confident model pile up at 0
and 1 and lose their order. Bins are equal steps of asinh(score): fine around even odds, logarithmic
in the tails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.errors import Code, Refused

BINS = 1024
REACH = 10.0  # of asinh(score): scores up to ±11,013 keep their order
CALIBRATION_BINS = 15
MOST = 2**40  # examples in one report; keeps every sum of counts inside int64
LARGEST_LOSS = 1e30  # so that no sum of many nodes' losses overflows

_KEYS = (
    "examples",
    "loss",
    "confusion-at",
    "confusion",
    "positives-at",
    "positives",
    "negatives-at",
    "negatives",
    "calibration-at",
    "calibration-count",
    "calibration-confidence",
    "calibration-correct",
)


@dataclass(frozen=True, eq=False)
class ClassificationSums:
    """What a set of predictions adds up to, for K classes.

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
            raise ValueError(
                f"sums over {self.classes} and over {other.classes} classes do not add up"
            )
        return ClassificationSums(
            classes=self.classes,
            confusion=self.confusion + other.confusion,
            loss=self.loss + other.loss,
            examples=self.examples + other.examples,
            positives=self.positives + other.positives,
            negatives=self.negatives + other.negatives,
            calibration=self.calibration + other.calibration,
        )

    @property
    def cells(self) -> int:
        """How many counts of true and predicted class there are: one example is in one of them."""
        return self.classes**2

    def within(self, other: ClassificationSums) -> bool:
        """Whether these can be sums of some of the predictions that `other` sums up; 1e-6 for
        rounding.
        """
        pairs = (
            (self.confusion, other.confusion),
            (self.positives, other.positives),
            (self.negatives, other.negatives),
            (self.calibration, other.calibration),
            (np.array(self.loss), np.array(other.loss)),
        )
        return all(bool((some <= all_ + 1e-6 * (1 + all_)).all()) for some, all_ in pairs)

    def only_counts(self, noise: np.ndarray) -> ClassificationSums:
        """The confusion counts alone with noise `(classes²,)` added, as whole numbers not below 0.

        Loss, AUROC and calibration of such sums are undefined.
        """
        counts = np.rint(self.confusion + noise.reshape(self.classes, self.classes))
        confusion = counts.clip(0, MOST // self.classes**2).astype(np.int64)
        return replace(zero(self.classes), confusion=confusion, examples=int(confusion.sum()))

    # ── what is reported to people ────────────────────────────────────────────────────────────────

    def summary(self) -> dict[str, float | int | None]:
        """The metrics; None where one is undefined (no examples; AUROC of one class only).

        accuracy; auroc and f1 of class 1 for two classes, else the unweighted mean over the classes
        for which they are defined (one against the rest); loss: mean cross-entropy, nats;
        calibration_error: expected calibration error over 15 equal bins of confidence (Guo et al.
        2017, eq. 5); examples.
        """
        n = self.examples
        if n == 0:
            undefined: dict[str, float | int | None] = dict.fromkeys(
                ("accuracy", "auroc", "f1", "loss", "calibration_error")
            )
            return undefined | {"examples": 0}
        count, confidence, correct = self.calibration.T
        whole = float(count.sum())  # examples that not only confusion counts were told of
        return {
            "accuracy": float(np.trace(self.confusion)) / n,
            "auroc": self._one_or_mean(self._aurocs()),
            "f1": self._one_or_mean(self._f1s()),
            "loss": self.loss / whole if whole else None,
            "calibration_error": (
                float(np.abs(confidence - correct).sum()) / whole if whole else None
            ),
            "examples": n,
        }

    def auroc_resolution(self) -> float:
        """Largest possible error of the AUROC: half the share of pairs whose two scores fall into
        one bin.
        """
        tied = (self.positives.astype(float) * self.negatives).sum(axis=1)
        pairs = self.positives.sum(axis=1).astype(float) * self.negatives.sum(axis=1)
        errors = [
            0.5 * t / p if p else None for t, p in zip(tied.tolist(), pairs.tolist(), strict=True)
        ]
        return self._one_or_mean(errors) or 0.0

    def _one_or_mean(self, by_class: list[float | None]) -> float | None:
        if self.classes == 2:
            return by_class[1]
        defined = [value for value in by_class if value is not None]
        return math.fsum(defined) / len(defined) if defined else None

    def _aurocs(self) -> list[float | None]:
        """P(positive above negative) + ½ P(equal), by class: the Mann–Whitney statistic over
        bins.
        """
        positives, negatives = self.positives.astype(float), self.negatives.astype(float)
        below = np.cumsum(negatives, axis=1) - negatives
        wins = (positives * (below + 0.5 * negatives)).sum(axis=1)
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        return [w / p if p else None for w, p in zip(wins.tolist(), pairs.tolist(), strict=True)]

    def _f1s(self) -> list[float | None]:
        """2·TP / (2·TP + FP + FN) of each class; None where it neither occurs nor is predicted."""
        hits = np.diag(self.confusion)
        seen = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
        return [2 * h / s if s else None for h, s in zip(hits.tolist(), seen.tolist(), strict=True)]

    # ── what travels ──────────────────────────────────────────────────────────────────────────────

    def to_flat(self) -> dict[str, int | float | list[int] | list[float]]:
        """Plain numbers for the wire; histograms as (positions, counts) of what is not zero."""
        flat: dict[str, int | float | list[int] | list[float]] = {
            "examples": self.examples,
            "loss": self.loss,
        }
        for name, counts in (
            ("confusion", self.confusion),
            ("positives", self.positives),
            ("negatives", self.negatives),
        ):
            at = np.flatnonzero(counts)
            flat[f"{name}-at"] = at.tolist()
            flat[name] = counts.reshape(-1)[at].tolist()
        at = np.flatnonzero(self.calibration[:, 0])
        flat["calibration-at"] = at.tolist()
        flat["calibration-count"] = self.calibration[at, 0].astype(np.int64).tolist()
        flat["calibration-confidence"] = self.calibration[at, 1].tolist()
        flat["calibration-correct"] = self.calibration[at, 2].astype(np.int64).tolist()
        return flat

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any], classes: int) -> ClassificationSums:
        """Read and check what came over the wire.

        Raises:
            ValueError: keys, types, sizes or values that no predictions could give, or totals that
                disagree.
        """
        if set(flat) != set(_KEYS):
            odd = sorted(set(map(str, flat)) ^ set(_KEYS))
            raise ValueError(f"keys missing or unknown: {', '.join(odd)[:200]}")
        examples, loss = flat["examples"], flat["loss"]
        if not _is_count(examples, least=0):
            raise ValueError(f"examples is {examples!r}; a count was agreed on")
        if (
            isinstance(loss, bool)
            or not isinstance(loss, int | float)
            or not 0 <= loss <= LARGEST_LOSS
        ):
            raise ValueError(f"loss is {loss!r}; a finite sum of cross-entropies was agreed on")
        confusion = _dense(flat, "confusion", classes * classes).reshape(classes, classes)
        positives = _dense(flat, "positives", classes * BINS).reshape(classes, BINS)
        negatives = _dense(flat, "negatives", classes * BINS).reshape(classes, BINS)
        sums = cls(
            classes, confusion, float(loss), examples, positives, negatives, _calibration(flat)
        )
        sums._check_totals()
        return sums

    def _check_totals(self) -> None:
        """Every part must tell of the same examples; raises ValueError where it does not."""
        true = self.confusion.sum(axis=1)
        count, confidence, correct = self.calibration.T
        if not (
            count.any() or self.positives.any() or self.negatives.any() or self.loss
        ):  # only_counts
            if int(true.sum()) != self.examples:
                raise ValueError("confusion counts and examples disagree")
            return
        # A bin's mean confidence lies inside the bin, and is never below 1/K; the slack is for
        # rounding.
        slack = 1e-9 * (1 + count)
        low = np.arange(CALIBRATION_BINS) / CALIBRATION_BINS
        outside = (confidence < low * count - slack) | (
            confidence > (low + 1 / CALIBRATION_BINS) * count + slack
        )
        for wrong, what in (
            (int(true.sum()) != self.examples, "confusion counts and examples disagree"),
            (
                (self.positives.sum(axis=1) != true).any(),
                "score histograms and confusion counts disagree",
            ),
            (
                (self.negatives.sum(axis=1) != self.examples - true).any(),
                "score histograms and examples disagree",
            ),
            (int(count.sum()) != self.examples, "calibration bins and examples disagree"),
            (
                int(correct.sum()) != int(np.trace(self.confusion)),
                "calibration bins and confusion counts disagree",
            ),
            (
                (correct > count).any(),
                "a calibration bin has more correct predictions than predictions",
            ),
            (outside.any(), "a calibration bin's confidences lie outside the bin"),
            (self.examples == 0 and self.loss != 0, "a loss without examples"),
        ):
            if wrong:
                raise ValueError(what)


def zero(classes: int) -> ClassificationSums:
    """The sums of no predictions at all."""
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
    """ClassificationSums of a batch of predictions.

    Args:
        logits: `(n, K)` float, K ≥ 2.
        labels: `(n,)` integers 0 … K−1.

    Raises:
        Refused: logits that are not finite; the model diverged.
    """
    n, classes = logits.shape
    if n == 0:
        return zero(classes)
    scores = logits.detach().to("cpu", torch.float64)
    truth = labels.detach().to("cpu", torch.int64)
    if not bool(torch.isfinite(scores).all()):
        raise Refused(
            Code.OUTPUT,
            "the model's outputs are not finite (NaN, infinity): training diverged; lower"
            " train.optimizer.lr",
        )
    log_total = torch.logsumexp(scores, dim=1)
    predicted = scores.argmax(dim=1)
    confidence = torch.exp(scores.amax(dim=1) - log_total).clamp(max=1.0).numpy()

    confusion = np.bincount((truth * classes + predicted).numpy(), minlength=classes * classes)
    at = (
        bins_of(log_odds(scores)) + torch.arange(classes) * BINS
    ).numpy()  # (n, K), into (K, BINS) flattened
    is_class = torch.nn.functional.one_hot(truth, classes).bool().numpy()
    # Bin m holds confidences in ((m − 1)/15, m/15], as in Guo et al. 2017.
    inner_edges = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
    bin_of = np.searchsorted(inner_edges, confidence, side="left")
    per_bin = [
        np.bincount(bin_of, weights=weights, minlength=CALIBRATION_BINS)
        for weights in (np.ones(n), confidence, (predicted == truth).double().numpy())
    ]
    return ClassificationSums(
        classes=classes,
        confusion=confusion.reshape(classes, classes).astype(np.int64),
        loss=float((log_total - scores.gather(1, truth[:, None]).squeeze(1)).clamp(min=0.0).sum()),
        examples=n,
        positives=np.bincount(at[is_class], minlength=classes * BINS)
        .reshape(classes, BINS)
        .astype(np.int64),
        negatives=np.bincount(at[~is_class], minlength=classes * BINS)
        .reshape(classes, BINS)
        .astype(np.int64),
        calibration=np.stack(per_bin, axis=1),
    )


def log_odds(logits: Tensor) -> Tensor:
    """One-vs-rest log-odds `(n, K)` of logits `(n, K)`: log p_k − log(1 − p_k), without forming
    p.
    """
    columns = []
    for k in range(logits.shape[1]):
        rest = torch.cat([logits[:, :k], logits[:, k + 1 :]], dim=1)
        columns.append(logits[:, k] - torch.logsumexp(rest, dim=1))
    return torch.stack(columns, dim=1)


def bins_of(scores: Tensor) -> Tensor:
    """Bin 0 … BINS−1 of each score: equal steps of asinh(score) over ±REACH; the ends take the
    rest.
    """
    position = (torch.asinh(scores) + REACH) * (BINS / (2 * REACH))
    return position.floor().clamp(0, BINS - 1).to(torch.int64)


def _is_count(value: Any, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST


def _positions(values: Any, name: str, size: int) -> np.ndarray:
    """A strictly rising list of positions below `size`."""
    if not isinstance(values, list) or not all(_is_count(value, least=0) for value in values):
        raise ValueError(f"{name} is not a list of positions")
    at = np.array(values, np.int64)
    if len(at) and (at[-1] >= size or (np.diff(at) <= 0).any()):
        raise ValueError(f"{name} has positions out of order or beyond {size - 1}")
    return at


def _counts(values: Any, name: str, length: int, least: int) -> np.ndarray:
    if (
        not isinstance(values, list)
        or len(values) != length
        or not all(_is_count(v, least=least) for v in values)
    ):
        raise ValueError(f"{name} is not a list of {length} counts")
    return np.array(values, np.int64)


def _dense(flat: Mapping[str, Any], name: str, size: int) -> np.ndarray:
    at = _positions(flat[f"{name}-at"], f"{name}-at", size)
    dense = np.zeros(size, np.int64)
    dense[at] = _counts(flat[name], name, len(at), least=1)
    return dense


def _calibration(flat: Mapping[str, Any]) -> np.ndarray:
    at = _positions(flat["calibration-at"], "calibration-at", CALIBRATION_BINS)
    confidence = flat["calibration-confidence"]
    if (
        not isinstance(confidence, list)
        or len(confidence) != len(at)
        or not all(isinstance(value, float) and math.isfinite(value) for value in confidence)
    ):
        raise ValueError(f"calibration-confidence is not a list of {len(at)} finite numbers")
    table = np.zeros((CALIBRATION_BINS, 3))
    table[at, 0] = _counts(flat["calibration-count"], "calibration-count", len(at), least=1)
    table[at, 1] = confidence
    table[at, 2] = _counts(flat["calibration-correct"], "calibration-correct", len(at), least=0)
    return table
