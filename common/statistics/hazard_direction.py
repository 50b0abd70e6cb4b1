"""Hazards by interval from sums over records whose targets are one-hot outcomes: one direction of
risk for all intervals, and each interval's level.

The direction is a ridge regression on what a person had more of than everybody of the same time:
the residual event − Λ(t) of the curve without features, Λ the sum of hazards up to there (Barlow
and Prentice 1988, "Residuals for relative risk regression"; regressing on it is a step of Newton's
from no effect, the information taken for the same everywhere: Therneau, Grambsch and Fleming 1990).
A residual is a number for each outcome, so the regression on it follows from the sums by outcome
once everybody's are added: no second round is needed.

Those who die in an interval and those who survive it are Gaussians of one variance in that risk;
their distance, the mean over intervals by how many there are of both, is the slope of all logits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedgraft.common.statistics.ridge import RidgeSolution, StandardSums, solve_ridge

# events that an interval without any has, so that its logit is finite; survivors likewise
LEAST_COUNT = 0.5
# log-odds between two people, at most: where few records are told apart without a mistake
MOST_SLOPE = 50.0


def solve_proportional(
    solution: RidgeSolution, events: np.ndarray, survived: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights `(K, d)`, the same for each interval, and bias `(K,)` of the logits of
    hazards, on features as they are.

    Args:
        solution: of one-hot outcomes `2 · survived + event`, `2K + 1` targets.
        events: people with the event in each interval `(K,)`.
        survived: people who were seen to survive each interval `(K,)`.
    """
    sums = solution.sums
    residuals = find_residuals(events, survived)
    own = solve_ridge(regress_on(sums, residuals))
    direction = own.weights[:, 0]

    counts = sums.records * sums.target_mean
    centred = residuals - sums.target_mean @ residuals
    # where each outcome lies in the risk, its records' own pull taken out (Allen 1974)
    kept = 1.0 - own.leverage
    pull = own.leverage * centred
    middles = (direction @ sums.cross / np.maximum(counts, 1.0) - pull) / kept
    spread = _variance_within(sums, direction, counts)

    apart, centre = _place(middles, counts, events, survived)
    slope = max(apart, 0.0) / max(spread / kept**2, 1e-300)
    slope = min(slope, MOST_SLOPE / max(abs(middles).max(), 1e-300))
    # the middle between both, from that of all at risk
    skew = (survived - events) / np.maximum(2 * (survived + events), 1.0)
    level = np.log((events + LEAST_COUNT) / (survived + LEAST_COUNT))
    level -= slope * (centre + apart * skew)

    weights = slope * direction / sums.deviation
    bias = level - weights @ sums.mean
    return np.tile(weights, (len(events), 1)), bias


def find_residuals(events: np.ndarray, survived: np.ndarray) -> np.ndarray:
    """Return event − Λ(t) of each outcome, `(2K + 1,)`; Λ by Nelson (1972) and Aalen (1978)."""
    hazards = events / np.maximum(events + survived, 1)
    before = np.concatenate([[0.0], np.cumsum(hazards)])
    residuals = np.zeros(2 * len(events) + 1)
    residuals[::2] = -before
    residuals[1::2] = 1.0 - before[1:]
    return residuals


def regress_on(sums: StandardSums, residuals: np.ndarray) -> StandardSums:
    """Return the sums with one target, the number of each record's outcome."""
    counts = sums.records * sums.target_mean
    mean = float(sums.target_mean @ residuals)
    squares = float(counts @ residuals**2) - sums.records * mean**2
    return replace(
        sums,
        cross=(sums.cross @ residuals)[:, None],
        target_mean=np.array([mean]),
        target_squares=np.array([squares]),
    )


def _variance_within(sums: StandardSums, direction: np.ndarray, counts: np.ndarray) -> float:
    """Return the variance of the risk among people of one outcome."""
    middles = direction @ sums.cross / np.maximum(counts, 1.0)
    whole = float(direction @ sums.gram @ direction)
    return max(whole - float(counts @ middles**2), 0.0) / sums.records


def _place(
    middles: np.ndarray, counts: np.ndarray, events: np.ndarray, survived: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return how far those who die lie from those who survive, over all intervals, and where all at
    risk lie in each `(K,)`.
    """
    totals = counts * middles
    of_events = totals[1::2]
    # everything behind an interval's two outcomes was survived
    behind = np.cumsum(totals[::-1])[::-1]
    of_survivors = behind[2::2]
    centre = (of_events + of_survivors) / np.maximum(events + survived, 1)
    distance = of_events / np.maximum(events, 1) - of_survivors / np.maximum(survived, 1)
    weights = events * survived / np.maximum(events + survived, 1)
    return float(weights @ distance) / max(float(weights.sum()), 1e-300), centre
