"""Empirical ε: a lower bound from guesses, to set beside the upper bound that an accountant states.

One training run (Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", NeurIPS
2023): each of m canaries is in the data by its own fair coin. From what training gave out, an
auditor guesses for r of them whether they were in, and abstains from the others; v guesses are
right. If the mechanism is (ε, δ)-DP for one record added or removed, so many right guesses are
unlikely: `p_value` bounds how unlikely. `lower_bound` is the largest ε that this refutes. Nothing
is assumed of the model, of the canaries or of how the guesses are made; that they are made well
makes the bound large, not true.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from fedgraft.common.errors import UserError

CONFIDENCE = 0.95
# shares of the canaries that are guessed; the best counts, each at a third of the risk
GUESSED = (1.0, 0.5, 0.2)
# below the ε at which a bound was computed, so that rounding never raises it
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Audit:
    """What guesses prove.

        audit = audit_guesses(scores, included, delta=1e-5)
        audit.epsilon, audit.ceiling, audit.accuracy

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


# ── the bound ─────────────────────────────────────────────────────────────────────────────────────
def p_value(canaries: int, guesses: int, correct: int, *, epsilon: float, delta: float) -> float:
    """Return a bound on the probability of `correct` or more right guesses against an (ε, δ)-DP
    mechanism.

    With q = e^ε / (1 + e^ε), W ~ Binomial(r, q), and b_j the largest probability of any value of
    Binomial(j, q):

        P[correct ≥ v] ≤ P[W ≥ v] + m δ (1 − q) · mean of b_j over j = 0 … r − 1

    The first term is Steinke et al.'s. For δ they add 2 m δ · max_i P[v > W ≥ v − i] / i, as if
    failures of the bound on the odds came whatever the earlier guesses were. They need not: of two
    canaries, one mechanism with ε = log 3 and δ = 0.01 has a right guess with probability 0.9406,
    and that sum is 0.94 (a test works it out). In the tails that an audit needs, theirs is the
    larger one; the one above is proved for all.

    Let T be the guesses, in a random order, and tell the coins of the earlier ones. If T has
    probability P where coin i fell as guessed and Q where it did not, guess i is right with
    probability P / (P + Q). That is above q by at most (1 − q) (P − e^ε Q)⁺ / (P + Q); times (P +
    Q) / 2, over all T that guess one way, at most (1 − q) δ / 2 by (ε, δ)-DP, and less if fewer
    coins are told, for ⁺ is convex. Both ways and over all canaries: m δ (1 − q). If j guesses
    follow, a right guess in place of a wrong one adds P[Binomial(j, q) = what is still needed] ≤
    b_j to the chance of v right ones, and j is each of 0 … r − 1 equally often. So that chance is
    at most that of r guesses which are right with q each, and m δ (1 − q) times the mean of b_j.

    Args:
        canaries: m, all of them, guessed or not.
        guesses: r, fixed before anything that training gave out was looked at: where δ > 0 a number
            chosen by the scores breaks the bound.
        correct: v.

    Raises:
        UserError: numbers that cannot be.
    """
    counts_fit = 0 <= correct <= guesses <= canaries
    if not (counts_fit and epsilon >= 0 and 0 <= delta <= 1):
        counts = f"{correct} of {guesses} guesses right, {canaries} canaries"
        raise UserError(
            f"{counts}, ε = {epsilon}, δ = {delta}",
            remedy="give correct ≤ guesses ≤ canaries, ε ≥ 0 and δ from 0 to 1",
        )
    right = _right_at_most(epsilon)
    tail = float(stats.binom.sf(correct - 1, guesses, right))
    return min(1.0, tail + _what_delta_adds(canaries, guesses, epsilon, delta))


def _right_at_most(epsilon: float) -> float:
    """Return q: how often a guess is right at most where δ = 0."""
    return 1 / (1 + math.exp(-epsilon))


def _what_delta_adds(canaries: int, guesses: int, epsilon: float, delta: float) -> float:
    """Return m δ (1 − q) · mean of b_j; it falls as ε rises."""
    if not delta or not guesses:
        return 0.0
    right = _right_at_most(epsilon)
    following = np.arange(guesses)
    likeliest = np.minimum(np.floor((following + 1) * right), following)
    mean = float(stats.binom.pmf(likeliest, following, right).mean())
    return canaries * delta * (1 - right) * mean


def lower_bound(
    canaries: int, guesses: int, correct: int, *, delta: float, confidence: float = CONFIDENCE
) -> float:
    """Return the largest ε that so many right guesses refute, at that confidence; 0 if they refute
    none.

    Whoever keeps a smaller ε keeps this one, too, so that is refuted with it. From above: the ε at
    which the tail alone is the risk less what δ adds at the ε before (Clopper and Pearson 1934); to
    1e-6 or so, on the low side.

    Raises:
        UserError: as `p_value`; a confidence that is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        remedy = "give a number between 0 and 1, such as 0.95"
        raise UserError(f"confidence = {confidence}", remedy=remedy)
    # whether the numbers can be
    p_value(canaries, guesses, correct, epsilon=0.0, delta=delta)

    risk = 1 - confidence
    epsilon = math.inf
    while True:
        left = risk - _what_delta_adds(canaries, guesses, epsilon, delta)
        right = _least_right(guesses, correct, left)
        if right <= 0.5:
            return 0.0
        epsilon = math.log(right / (1 - right)) - _ROUNDING
        if epsilon <= 0:
            return 0.0
        if p_value(canaries, guesses, correct, epsilon=epsilon, delta=delta) <= risk:
            return epsilon


def _least_right(guesses: int, correct: int, risk: float) -> float:
    """Return the least probability of a right guess that so many right ones leave possible."""
    if risk <= 0 or not correct:
        return 0.0
    return float(stats.beta.ppf(risk, correct, guesses - correct + 1))


def correct_for_choice(audit: Audit, several: int) -> Audit:
    """Return an audit as one of several of which the best is told: its bound at that part of the
    risk (Bonferroni).

    The share of guesses stays; another may prove more at this confidence, so the bound is on the
    low side.
    """
    confidence = 1 - (1 - audit.confidence) / len(GUESSED) / several
    canaries = audit.canaries
    delta = audit.delta
    epsilon = lower_bound(
        canaries, audit.guesses, audit.correct, delta=delta, confidence=confidence
    )
    ceiling = lower_bound(canaries, canaries, canaries, delta=delta, confidence=confidence)
    return replace(audit, epsilon=epsilon, ceiling=ceiling)


# ── guesses ───────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class _Proof:
    """What so many right guesses prove."""

    epsilon: float
    guesses: int
    correct: int


def audit_guesses(
    scores: np.ndarray,
    included: np.ndarray,
    *,
    delta: float,
    confidence: float = CONFIDENCE,
    shares: tuple[float, float, float] = GUESSED,
) -> Audit:
    """Guess from scores, in both directions, and bound ε.

    A score above the middle (between the means of the highest and of the lowest quarter) is a guess
    that the canary is in, below it that it is out; guesses are given on those furthest from the
    middle. Which share is guessed is not chosen after the fact: all of `shares` are tried, and each
    has to prove its bound at its part of the risk (Bonferroni).

    Args:
        scores: `(m,)`, higher for canaries that seem to be in.
        included: `(m,)` bool, the coins.
        shares: of the canaries that are guessed; as many as `GUESSED`, and fixed beforehand.

    Raises:
        UserError: fewer than four canaries, scores that are not numbers, coins that are not bool
            (−1 and 1 would all count as wrong guesses, and prove nothing).
    """
    _check_scores(scores, included)
    canaries = len(scores)
    each = 1 - (1 - confidence) / len(GUESSED)
    is_right = _order_guesses(scores, included)

    proofs = []
    for share in shares:
        guesses = int(share * canaries)
        correct = int(is_right[:guesses].sum())
        epsilon = lower_bound(canaries, guesses, correct, delta=delta, confidence=each)
        proofs.append(_Proof(epsilon, guesses, correct))
    best = max(proofs, key=lambda proof: proof.epsilon)

    all_right = int(is_right.sum())
    ceiling = lower_bound(canaries, canaries, canaries, delta=delta, confidence=each)
    return Audit(
        epsilon=best.epsilon,
        ceiling=ceiling,
        delta=delta,
        confidence=confidence,
        canaries=canaries,
        guesses=best.guesses,
        correct=best.correct,
        accuracy=all_right / canaries,
    )


def _check_scores(scores: np.ndarray, included: np.ndarray) -> None:
    if included.dtype != np.bool_:
        remedy = "give bool, True for a canary that is in the data"
        raise UserError(f"the coins are {included.dtype}", remedy=remedy)
    canaries = len(scores)
    if canaries < 4 or len(included) != canaries or np.isnan(scores).any():
        what = f"{canaries} scores for {len(included)} coins, or one that is no number"
        raise UserError(what, remedy="give as many")


def _order_guesses(scores: np.ndarray, included: np.ndarray) -> np.ndarray:
    """Return which guesses are right, bool `(m,)`, the surest first."""
    ordered = np.sort(scores)
    quarter = len(scores) // 4
    low = ordered[:quarter].mean()
    high = ordered[-quarter:].mean()
    middle = (low + high) / 2
    is_right = (scores > middle) == included
    surest = np.argsort(-np.abs(scores - middle), kind="stable")
    return is_right[surest]
