"""What predicted survival adds up to: two nodes' sums added equal those of their pooled people.

Outcomes are counted, and give Kaplan and Meier's curve; concordance comes from histograms of scores
by interval; the Brier score's squares are summed by the interval of the event, so that its weights,
which need everybody's losses to follow-up, are put on after merging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.tasks.adding_sums import add_fields, lies_within
from fedgraft.common.tasks.finite_outputs import take_finite
from fedgraft.common.tasks.flat_sums import MOST, write_counts
from fedgraft.common.tasks.hazards import cumulative_hazards, hazard_losses
from fedgraft.common.tasks.life_table import LifeTable
from fedgraft.common.tasks.score_bins import BINS, bins_of
from fedgraft.common.tasks.survival_times import count_outcomes, number_outcomes

METRICS = ("concordance", "brier", "loss", "observed_survival", "predicted_survival")


@dataclass(frozen=True, eq=False)
class SurvivalSums:
    """What a set of predictions adds up to, for K intervals.

        sums = zero(cuts) + sums_of(logits, targets, cuts)
        sums.summary()["concordance"], sums.table.survival()

    Attributes:
        cuts: ends of the intervals, `(K,)`; public.
        outcomes: how many people have each outcome, int64 `(2K + 1,)`, see `survival_times.py`.
        loss: sum of −log likelihoods, nats.
        cases: `(K, BINS)` int64, histogram of the risk up to an interval's end, over those whose
            event is in it.
        controls: `(K, BINS)` int64, the same over those who were seen to survive the interval.
        dead: `(K, K)` float64 by [interval of the event, cut]: Σ S², 0 at cuts before the event.
        alive: `(K,)` float64 by cut, over those who were seen to be alive there: Σ (1 − S)².
        predicted: `(K,)` float64 by cut, over everybody: Σ S.
    """

    cuts: tuple[float, ...]
    outcomes: np.ndarray
    loss: float
    cases: np.ndarray
    controls: np.ndarray
    dead: np.ndarray
    alive: np.ndarray
    predicted: np.ndarray

    def __add__(self, other: SurvivalSums) -> SurvivalSums:
        if self.cuts != other.cuts:
            raise ValueError("sums over other intervals do not add up")
        return add_fields(self, other, but=("cuts",))

    @property
    def examples(self) -> int:
        """Return how many people there are."""
        return int(self.outcomes.sum())

    @property
    def cells(self) -> int:
        """Return how many outcomes there are; a person has one."""
        return len(self.outcomes)

    @property
    def table(self) -> LifeTable:
        """Return what the outcomes tell without any prediction."""
        return LifeTable(self.outcomes)

    def within(self, other: SurvivalSums) -> bool:
        """Whether these can be sums of some of the predictions that `other` sums up."""
        return lies_within(
            self,
            other,
            totals=("outcomes", "cases", "controls", "dead", "alive", "predicted", "loss"),
        )

    def only_counts(self, noise: np.ndarray) -> SurvivalSums:
        """Return the outcomes alone with noise `(2K + 1,)` added, as whole numbers not below 0:
        what happened, and nothing of the predictions.
        """
        counts = np.rint(self.outcomes + noise).clip(0, MOST // self.cells)
        return replace(zero(self.cuts), outcomes=counts.astype(np.int64))

    def counts(self) -> list[list[int]]:
        """Return nothing: answers are no classes."""
        return []

    # ── what is reported to people ────────────────────────────────────────────────────────────────
    def summary(self) -> dict[str, float | int | None]:
        """Return the metrics; None where one is undefined.

        concordance: of pairs of people of whom one had the event while the other was seen to
        survive it, the share in which the former's survival to there was predicted lower, equal
        ones half (Antolini, Boracchi and Biganzoli 2005, eq. 7); brier: mean squared error of the
        predicted survival over the time from 0 to the last cut, see `brier_scores`; loss: mean,
        nats; observed_survival and predicted_survival: the share alive at the last cut, by Kaplan
        and Meier's curve and by the mean prediction.
        """
        metrics: dict[str, float | int | None] = dict.fromkeys(METRICS)
        metrics["examples"] = self.examples
        if self.examples:
            metrics["observed_survival"] = float(self.table.survival()[-1])
        if not (self.cases.any() or self.controls.any()):
            return metrics
        pairs = self._pairs()
        if pairs:
            controls = self.controls.astype(float)
            below = np.cumsum(controls, axis=1) - controls
            metrics["concordance"] = float((self.cases * (below + 0.5 * controls)).sum()) / pairs
        metrics["brier"] = integrate(self.brier_scores(), self.cuts)
        metrics["loss"] = self.loss / self.examples
        metrics["predicted_survival"] = float(self.predicted[-1]) / self.examples
        return metrics

    def concordance_resolution(self) -> float:
        """Return the largest possible error of the concordance: half the share of pairs whose
        scores fall into one bin.
        """
        tied = (self.cases.astype(float) * self.controls).sum()
        return 0.5 * float(tied) / max(self._pairs(), 1.0)

    def brier_scores(self) -> np.ndarray:
        """Return the mean squared error of the predicted survival at each cut `(K,)`; NaN where
        nobody was watched any more.

        Those who were lost before count as those do who were watched as long: each person by one
        over the probability of having been (Graf et al. 1999, section 4), which Kaplan and Meier's
        curve of losses gives. It is that of leaving whatever is predicted; where people leave
        because they are ill, the score is not theirs.
        """
        watched = self.table.watched()
        weights = np.divide(1.0, watched, out=np.full(len(watched), np.nan), where=watched > 0)
        # nobody counts with no weight: a hole where none is
        seen = self.table.events > 0
        of_dead = np.where(seen, weights, 0.0) @ self.dead
        of_alive = np.where(self.table.reached[1:] > 0, weights, 0.0) * self.alive
        scores = (of_dead + of_alive) / max(self.examples, 1)
        return np.where(watched > 0, scores, np.nan)

    def _pairs(self) -> float:
        """Return how many pairs of people can be told apart."""
        return float(self.cases.sum(1).astype(float) @ self.controls.sum(1))

    # ── what travels ──────────────────────────────────────────────────────────────────────────────
    def to_flat(self) -> dict[str, Any]:
        """Return plain numbers for the wire. `survival_from_wire.py` reads them."""
        flat: dict[str, Any] = {"loss": self.loss, "outcomes": self.outcomes.tolist()}
        flat |= write_counts("cases", self.cases)
        flat |= write_counts("controls", self.controls)
        flat["dead"] = self.dead.flatten().tolist()
        flat["alive"] = self.alive.tolist()
        flat["predicted"] = self.predicted.tolist()
        return flat


def integrate(scores: np.ndarray, cuts: Sequence[float]) -> float | None:
    """Return the mean of scores at cuts over the time from 0, where they are 0, to the last, by
    straight lines between them; None where one is not known.
    """
    if np.isnan(scores).any():
        return None
    times = np.concatenate([[0.0], cuts])
    values = np.concatenate([[0.0], scores])
    return float(np.trapezoid(values, times)) / float(times[-1])


def zero(cuts: Sequence[float]) -> SurvivalSums:
    """Return the sums of no predictions."""
    count = len(cuts)
    return SurvivalSums(
        cuts=tuple(cuts),
        outcomes=np.zeros(count_outcomes(count), np.int64),
        loss=0.0,
        cases=np.zeros((count, BINS), np.int64),
        controls=np.zeros((count, BINS), np.int64),
        dead=np.zeros((count, count)),
        alive=np.zeros(count),
        predicted=np.zeros(count),
    )


def sums_of(outputs: Tensor, targets: Tensor, cuts: Sequence[float]) -> SurvivalSums:
    """Return the sums of a batch of predictions.

    Args:
        outputs: logits of hazards `(n, K)`.
        targets: int64 `(n, 2)`, see `count_intervals`.

    Raises:
        Refused: outputs that are not finite; the model diverged.
    """
    logits = take_finite(outputs)
    people = targets.detach().to("cpu", torch.int64)
    count = len(cuts)
    survived, event = people.numpy().T
    # rises as the survival falls, and keeps its order where that is near 0 or 1
    risks = cumulative_hazards(logits)
    places = bins_of(risks.clamp(min=1e-300).log()).numpy()
    curves = torch.exp(-risks).numpy()

    total = zero(cuts)
    for interval in range(count):
        is_case = (survived == interval) & (event == 1)
        is_alive = survived > interval
        total.cases[interval] = np.bincount(places[is_case, interval], minlength=BINS)
        total.controls[interval] = np.bincount(places[is_alive, interval], minlength=BINS)
        total.dead[interval, interval:] = (curves[is_case, interval:] ** 2).sum(0)
        total.alive[interval] = ((1 - curves[is_alive, interval]) ** 2).sum()
    numbers = number_outcomes(people.numpy())
    outcomes = np.bincount(numbers, minlength=count_outcomes(count)).astype(np.int64)
    loss = float(hazard_losses(logits, people).sum())
    return replace(total, outcomes=outcomes, loss=loss, predicted=curves.sum(0))
