"""Empirical ε: a lower bound from guesses, to set beside the upper bound that an accountant states.

One training run (Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023): each of m
canaries is in the data by its own fair coin. From what training gave out, an auditor guesses for r of them whether they
were in, and abstains from the others; v guesses are right. If the mechanism is (ε, δ)-DP for one record added or
removed, so many right guesses are unlikely: `p_value` bounds how unlikely. `lower_bound` is the largest ε that this
refutes. Nothing is assumed of the model, of the canaries or of how the guesses are made; that they are made well makes
the bound large, not true.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from common.errors import UserError

CONFIDENCE = 0.95
GUESSED = (1.0, 0.5, 0.2)  # shares of the canaries that are guessed; the best counts, each at a third of the risk


@dataclass(frozen=True)
class Audit:
    """What guesses prove.

    Attributes:
        epsilon: lower bound on ε, at `confidence`; 0 where they prove nothing.
        ceiling: the most that so many canaries could have proved, all guesses being right.
        guesses, correct: of the share of canaries that proved most.
        accuracy: share of right guesses if all canaries are guessed; one half is chance.
    """

    epsilon: float
    ceiling: float
    delta: float
    confidence: float
    canaries: int
    guesses: int
    correct: int
    accuracy: float


def p_value(canaries: int, guesses: int, correct: int, *, epsilon: float, delta: float) -> float:
    """Bound on the probability of `correct` or more right guesses against an (ε, δ)-DP mechanism.

    With W ~ Binomial(r, e^ε / (1 + e^ε)) and f(v) = P[W ≥ v] (Steinke et al. 2023, Corollary 5.4 in arXiv:2305.08846;
    the program in its appendix D computes the same):

        P[correct ≥ v] ≤ f(v) + 2 m δ · max over i = 1 … v of (f(v − i) − f(v)) / i

    Why. δ = 0: let T be the auditor's guesses, and tell the first i − 1 coins, too. Given these, dropping canary i
    or adding it changes P[T] by at most e^ε, and its coin was fair; so by Bayes' rule coin i has either face with
    probability at most e^ε / (1 + e^ε), and guess i is right with no more, whatever the earlier ones were. So the
    number of right guesses is, in distribution, at most W. δ > 0: the bound on the odds may fail. Canary i fails with
    probability at most 2δ on average over its coin, so the number of failures F has mean at most 2 m δ, and the number
    of right guesses is at most W + F. Then P[W + F ≥ v] = f(v) + Σᵢ P[F = i] (f(v − i) − f(v)), each bracket is at most
    i times the largest slope, and Σᵢ i · P[F = i] ≤ 2 m δ.

    Args:
        canaries: m, all of them, guessed or not.
        guesses: r, fixed before the coins were looked at.
        correct: v.

    Raises:
        UserError: numbers that cannot be.
    """
    if not (0 <= correct <= guesses <= canaries and epsilon >= 0 and 0 <= delta <= 1):
        raise UserError(
            f"{correct} of {guesses} guesses right, {canaries} canaries, ε = {epsilon}, δ = {delta}",
            remedy="give correct ≤ guesses ≤ canaries, ε ≥ 0 and δ from 0 to 1",
        )
    right = 1 / (1 + math.exp(-epsilon))
    tail = stats.binom.sf(np.arange(correct, -1, -1) - 1, guesses, right)  # f(v), f(v − 1), … f(0)
    slopes = (tail[1:] - tail[0]) / np.arange(1, correct + 1)
    return float(min(1.0, tail[0] + 2 * canaries * delta * slopes.max(initial=0.0)))


def lower_bound(canaries: int, guesses: int, correct: int, *, delta: float, confidence: float = CONFIDENCE) -> float:
    """The largest ε that so many right guesses refute, at that confidence; 0 if not even ε = 0 is refuted.

    `p_value` rises with ε as long as 2 m δ ≤ 1, so it is found by halving; to 1e-6, on the low side. Beyond that the
    theorem says next to nothing, and neither does this: 0.

    Raises:
        UserError: as `p_value`.
    """
    risk = 1 - confidence
    if 2 * canaries * delta > 1 or p_value(canaries, guesses, correct, epsilon=0.0, delta=delta) > risk:
        return 0.0
    low, high = 0.0, 1.0
    while p_value(canaries, guesses, correct, epsilon=high, delta=delta) <= risk:
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        if p_value(canaries, guesses, correct, epsilon=middle, delta=delta) <= risk:
            low = middle
        else:
            high = middle
    return low


def audit(scores: np.ndarray, included: np.ndarray, *, delta: float, confidence: float = CONFIDENCE) -> Audit:
    """Guess from scores, in both directions, and bound ε.

    A score above the middle (between the means of the highest and of the lowest quarter) is a guess that the canary is
    in, below it that it is out; guesses are given on those furthest from the middle. Which share is guessed is not
    chosen after the fact: all of `GUESSED` are tried, and each has to prove its bound at its part of the risk
    (Bonferroni).

    Args:
        scores: `(m,)`, higher for canaries that seem to be in.
        included: `(m,)` bool, the coins.

    Raises:
        UserError: no canaries, or scores that are not numbers.
    """
    canaries = len(scores)
    if canaries < 4 or len(included) != canaries or np.isnan(scores).any():
        raise UserError(f"{canaries} scores for {len(included)} coins, or one that is no number", remedy="give as many")
    each = 1 - (1 - confidence) / len(GUESSED)
    ordered = np.sort(scores)
    middle = (ordered[: canaries // 4].mean() + ordered[-(canaries // 4) :].mean()) / 2
    right = (scores > middle) == included
    surest = np.argsort(-np.abs(scores - middle), kind="stable")
    tried = []
    for share in GUESSED:
        guesses = int(share * canaries)
        correct = int(right[surest[:guesses]].sum())
        tried.append((lower_bound(canaries, guesses, correct, delta=delta, confidence=each), guesses, correct))
    best, guesses, correct = max(tried, key=lambda one: one[0])
    return Audit(
        epsilon=best,
        ceiling=lower_bound(canaries, canaries, canaries, delta=delta, confidence=each),
        delta=delta,
        confidence=confidence,
        canaries=canaries,
        guesses=guesses,
        correct=correct,
        accuracy=tried[0][2] / tried[0][1],
    )
