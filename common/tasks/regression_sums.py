"""What predicted numbers add up to: two nodes' sums added equal those of their pooled predictions.

Everything is in parts of the plan's range: −1 is its low end, 1 its high end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.tasks.adding_sums import ROUNDING, add_fields, lies_within
from fedgraft.common.tasks.finite_outputs import take_finite
from fedgraft.common.tasks.flat_sums import (
    MOST,
    check_keys,
    read_count,
    read_counts,
    read_loss,
    read_number,
    write_counts,
)

METRICS = ("mae", "rmse", "r2", "loss")
# of what answers are off, from nothing to the whole range, evenly
ERROR_BINS = 64


@dataclass(frozen=True, eq=False)
class RegressionSums:
    """What a set of predicted numbers adds up to.

        sums = zero(reach=30.0) + sums_of(outputs, targets, reach=30.0)
        sums.summary()["mae"]

    Attributes:
        reach: half of the plan's range, in its unit: what 1 is worth.
        examples: how many.
        loss: sum of squared errors of the outputs as they are.
        off: Σ |e|, e: what the answer is off, within the range.
        squares: Σ e².
        total, total_squares: Σ t and Σ t² of the true numbers.
        bins: how many answers are off by how much, int64 `(ERROR_BINS,)`.
    """

    reach: float
    examples: int
    loss: float
    off: float
    squares: float
    total: float
    total_squares: float
    bins: np.ndarray

    def __add__(self, other: RegressionSums) -> RegressionSums:
        if self.reach != other.reach:
            raise ValueError("sums of numbers of two ranges do not add up")
        return add_fields(self, other, but=("reach",))

    @property
    def cells(self) -> int:
        """Return how many bins of errors there are; an answer is in one."""
        return ERROR_BINS

    def within(self, other: RegressionSums) -> bool:
        """Whether these can be sums of some of the predictions that `other` sums up."""
        return lies_within(
            self,
            other,
            counts=("bins", "examples"),
            totals=("loss", "off", "squares", "total_squares"),
        )

    def only_counts(self, noise: np.ndarray) -> RegressionSums:
        """Return the bins of errors alone with noise `(cells,)` added, as whole numbers not below
        0; MAE and RMSE are then those of the middles of the bins.
        """
        bins = np.rint(self.bins + noise).clip(0, MOST // ERROR_BINS).astype(np.int64)
        return replace(zero(self.reach), bins=bins, examples=int(bins.sum()))

    def counts(self) -> list[list[int]]:
        """Return nothing: answers are no classes."""
        return []

    def summary(self) -> dict[str, float | int | None]:
        """Return the metrics; None where one is undefined.

        mae, rmse: in the number's unit; r2: 1 − Σ e² / Σ (t − mean)², over all records that are
        summed; loss: mean squared error of the outputs in parts of half the range; examples.
        """
        metrics: dict[str, float | int | None] = dict.fromkeys(METRICS)
        metrics["examples"] = self.examples
        if self.examples == 0:
            return metrics
        if self._has_only_counts():
            middles = (np.arange(ERROR_BINS) + 0.5) * (2 / ERROR_BINS)
            metrics["mae"] = self.reach * float(self.bins @ middles) / self.examples
            square = float(self.bins @ middles**2) / self.examples
            metrics["rmse"] = self.reach * math.sqrt(square)
            return metrics
        metrics["mae"] = self.reach * self.off / self.examples
        metrics["rmse"] = self.reach * math.sqrt(self.squares / self.examples)
        metrics["loss"] = self.loss / self.examples
        around = self.total_squares - self.total**2 / self.examples
        if around > ROUNDING * self.examples:
            metrics["r2"] = 1 - self.squares / around
        return metrics

    def _has_only_counts(self) -> bool:
        """Whether these are sums of `only_counts`."""
        return not (self.loss or self.off or self.squares or self.total_squares)

    def to_flat(self) -> dict[str, Any]:
        """Return plain numbers for the wire."""
        flat: dict[str, Any] = {"examples": self.examples}
        for name in _NUMBERS:
            flat[name] = getattr(self, name)
        return flat | write_counts("bins", self.bins)


_NUMBERS = ("loss", "off", "squares", "total", "total_squares")
_KEYS = ("examples", *_NUMBERS, "bins-at", "bins")


def zero(reach: float) -> RegressionSums:
    """Return the sums of no predictions."""
    bins = np.zeros(ERROR_BINS, np.int64)
    return RegressionSums(reach, 0, 0.0, 0.0, 0.0, 0.0, 0.0, bins)


def sums_of(outputs: Tensor, targets: Tensor, reach: float) -> RegressionSums:
    """Return the sums of a batch of predictions.

    Args:
        outputs: `(n, 1)`, in parts of the range.
        targets: `(n, 1)`, within −1 and 1.

    Raises:
        Refused: outputs that are not finite; the model diverged.
    """
    numbers = take_finite(outputs)
    truth = targets.detach().to("cpu", torch.float64)
    errors = (numbers.clamp(-1, 1) - truth).abs()
    at = (errors * (ERROR_BINS / 2)).floor().clamp(0, ERROR_BINS - 1).long().flatten()
    return RegressionSums(
        reach=reach,
        examples=len(truth),
        # float32 may square to infinity; a hundred ranges are as bad as any more
        loss=float((numbers.clamp(-100, 100) - truth).square().sum()),
        off=float(errors.sum()),
        squares=float(errors.square().sum()),
        total=float(truth.sum()),
        total_squares=float(truth.square().sum()),
        bins=np.bincount(at.numpy(), minlength=ERROR_BINS).astype(np.int64),
    )


def sums_from_flat(flat: Mapping[str, Any], reach: float) -> RegressionSums:
    """Return the sums that `to_flat` wrote. Raise `ValueError` for what no predictions could
    give.
    """
    check_keys(flat, _KEYS)
    examples = read_count(flat, "examples")
    sums = RegressionSums(
        reach=reach,
        examples=examples,
        loss=read_loss(flat),
        off=read_number(flat, "off", 0, 2 * examples),
        squares=read_number(flat, "squares", 0, 4 * examples),
        total=read_number(flat, "total", -examples, examples),
        total_squares=read_number(flat, "total_squares", 0, examples),
        bins=read_counts(flat, "bins", (ERROR_BINS,)),
    )
    if int(sums.bins.sum()) != examples:
        raise ValueError("bins of errors and examples disagree")
    if sums._has_only_counts():
        return sums
    slack = ROUNDING * (1 + examples)
    # Cauchy and Schwarz
    if sums.off**2 > examples * sums.squares + slack * (1 + examples):
        raise ValueError("errors and their squares disagree")
    if sums.total**2 > examples * sums.total_squares + slack * (1 + examples):
        raise ValueError("numbers and their squares disagree")
    edges = np.arange(ERROR_BINS + 1) * (2 / ERROR_BINS)
    lowest = float(sums.bins @ edges[:-1])
    highest = float(sums.bins @ edges[1:])
    if not lowest - slack <= sums.off <= highest + slack:
        raise ValueError("errors and their bins disagree")
    return sums
