"""The lower bound on ε: against exact sums, a linear program, and mechanisms whose ε is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from fedgraft.common.errors import UserError
from fedgraft.simulations.attacks.empirical_epsilon import audit_guesses, lower_bound, p_value


def best_of_all(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """The largest P[v or more of r guesses right] that any (ε, δ)-DP mechanism and any auditor of
    it can reach.

    By brute force, without the theorem: one probability for each of the 2^m coins and each way to
    guess r of them (whatever comes out is turned into guesses, which is post-processing). For each
    coin that is flipped the worst event is all guesses with p > e^ε p′, so that Σ max(0, p − e^ε
    p′) ≤ δ: a linear program.
    """
    coins = list(itertools.product((0, 1), repeat=m))
    ways = [dict(zip(which, said, strict=True)) for which in itertools.combinations(range(m), r)
            for said in itertools.product((0, 1), repeat=r)]  # fmt: skip
    at = {
        (s, t): number
        for number, (s, t) in enumerate(itertools.product(range(len(coins)), range(len(ways))))
    }
    pairs = [
        (s, coins.index((*coin[:i], 1 - coin[i], *coin[i + 1 :])))
        for s, coin in enumerate(coins)
        for i in range(m)
    ]
    size = len(at) + len(pairs) * len(
        ways
    )  # p, and for each pair of neighbours what of it is above e^ε p′
    rows, limits = [], []
    for number, (s, other) in enumerate(pairs):
        start = len(at) + number * len(ways)
        for t in range(len(ways)):
            row = np.zeros(size)
            row[at[s, t]], row[at[other, t]], row[start + t] = 1, -math.exp(epsilon), -1
            rows.append(row)
            limits.append(0.0)
        together = np.zeros(size)
        together[start : start + len(ways)] = 1
        rows.append(together)
        limits.append(delta)
    ones, goal = np.zeros((len(coins), size)), np.zeros(size)
    for (s, t), place in at.items():
        ones[s, place] = 1
        right = sum(coins[s][k] == said for k, said in ways[t].items())
        goal[place] = (right >= v) / len(coins)
    found = linprog(
        -goal, A_ub=np.array(rows), b_ub=limits, A_eq=ones, b_eq=np.ones(len(coins)), bounds=(0, 1)
    )
    return -found.fun


def best_of_alike(m: int, v: int, epsilon: float, delta: float) -> float:
    """The same where every coin is guessed, for many coins.

    Flipping or reordering the coins with the guesses changes no constraint and no goal, and
    mechanisms may be mixed: so one of the best gives all guesses with k wrong ones the same
    probability, P_k in all. Flip a coin, and k is one more where its guess was right, one less
    where it was wrong.
    """
    odds, size = (
        math.exp(epsilon),
        3 * (m + 1),
    )  # P_k; what of it is above e^ε P of one more wrong, of one less
    ways = [math.comb(m, k) for k in range(m + 1)]
    rows, limits, together = [], [], np.zeros(size)
    for k in range(m + 1):
        for step, place, share in ((1, m + 1 + k, (m - k) / m), (-1, 2 * (m + 1) + k, k / m)):
            row = np.zeros(size)
            row[k], row[place] = 1, -1
            # of the sets with k wrong, those in which the flipped coin's guess was right (or wrong)
            if share:
                row[k + step] = -odds * ways[k] / ways[k + step]
            rows.append(row)
            limits.append(0.0)
            together[place] = share
    rows.append(together)
    limits.append(delta)
    goal, ones = np.zeros(size), np.zeros((1, size))
    goal[: m - v + 1], ones[0, : m + 1] = 1, 1
    found = linprog(
        -goal, A_ub=np.array(rows), b_ub=limits, A_eq=ones, b_eq=[1.0], bounds=(0, None)
    )
    return -found.fun


CASES = [(m, r) for m in (1, 2, 3) for r in range(1, m + 1)]


@pytest.mark.parametrize(("m", "r"), CASES)
def test_no_mechanism_at_all_is_wronged(m, r) -> None:
    """A wrong theorem: mechanisms that keep (ε, δ) would be called liars too often.

    Every mechanism over one to three canaries, by brute force; without δ the bound is exactly the
    best of them.
    """
    for odds, delta, v in itertools.product((1.5, 3.0, 20.0), (0.0, 0.01, 0.1), range(1, r + 1)):
        best = best_of_all(m, r, v, math.log(odds), delta)
        bound = p_value(m, r, v, epsilon=math.log(odds), delta=delta)
        assert best <= bound + 1e-7
        if not delta:
            assert best == pytest.approx(bound, abs=1e-7)
        if r == m:
            assert best_of_alike(m, v, math.log(odds), delta) == pytest.approx(best, abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(4, 40),
    share=st.floats(0.5, 1),
    odds=st.sampled_from((1.2, 2.0, 8.0, 50.0)),
    risk=st.sampled_from((0.0, 1e-3, 0.02, 0.2, 1.0)),
)
def test_no_mechanism_over_many_canaries_is_wronged(m, share, odds, risk) -> None:
    """A correction for δ that grows too slowly with the canaries, up to 2 m δ = 1; or one that says
    nothing.
    """
    v, delta = round(share * m), risk / (2 * m)
    best, bound = (
        best_of_alike(m, v, math.log(odds), delta),
        p_value(m, m, v, epsilon=math.log(odds), delta=delta),
    )
    assert best <= bound + 1e-6
    alone = p_value(m, m, v, epsilon=math.log(odds), delta=0.0)
    if bound < 0.1:  # where an audit proves something, most of what is added is needed
        assert bound - alone <= 5 * (best - alone) + 1e-6


def test_failures_may_come_when_they_help_most() -> None:
    """The correction of the paper (as its program has it: m = r = 2, v = 1, ε = log 3, δ = 0.01),
    which gives 0.94.

    A way to guess has probability x = 0.059375 where both are wrong, y = 3 x + 0.01 where one is, 3
    y where none is: in all x + 2 y + 3 y = 1. Flip a coin: 3 y, y, x become y, 3 y, y or y, x, y;
    only y → x is more than a factor of 3, by 0.01 = δ, and for one way to guess.
    """
    x = 0.059375
    y = 3 * x + 0.01
    assert x + 2 * y + 3 * y == pytest.approx(1)
    assert best_of_all(2, 2, 1, math.log(3), 0.01) == pytest.approx(1 - x, abs=1e-9)
    f = [1.0, 1 - 0.25**2]  # of W ~ Binomial(2, 3/4): at least none, at least one
    assert f[1] + 2 * 2 * 0.01 * max((f[0] - f[1]) / i for i in (1, 2)) == pytest.approx(0.94)
    assert p_value(2, 2, 1, epsilon=math.log(3), delta=0.01) == pytest.approx(
        0.9375 + 2 * 0.01 / 4 * (1 + 3 / 4) / 2
    )


def test_all_right_is_worked_by_hand() -> None:
    """δ = 0, all m right: p = q^m, so q = 0.05^(1/m) and ε = log(q / (1 − q))."""
    for m in (10, 100, 1000):
        q = 0.05 ** (1 / m)
        assert lower_bound(m, m, m, delta=0.0) == pytest.approx(math.log(q / (1 - q)), abs=1e-5)
    assert lower_bound(100, 100, 50, delta=0.0) == lower_bound(100, 0, 0, delta=0.0) == 0.0
    assert lower_bound(100, 100, 70, delta=0.05) == 0.0  # δ·m so large that nothing is refuted


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 400), st.floats(0.5, 1), st.sampled_from((0.0, 1e-5, 1e-4, 1e-2)))
def test_the_bound_is_the_last_epsilon_that_is_refuted(m, share, delta) -> None:
    """A search that stops beside the crossing, or below another one."""
    v = int(share * m)
    found = lower_bound(m, m, v, delta=delta)
    tried = np.linspace(0, 8, 60).tolist()
    risks = [p_value(m, m, v, epsilon=epsilon, delta=delta) for epsilon in tried]
    if found:
        assert p_value(m, m, v, epsilon=found, delta=delta) <= 0.05 + 1e-9
        assert p_value(m, m, v, epsilon=found + 1e-4, delta=delta) > 0.05
    assert all(
        risk > 0.05 for epsilon, risk in zip(tried, risks, strict=True) if epsilon > found + 1e-4
    )


@pytest.mark.parametrize(("epsilon", "typical"), [(0.2, 0.0), (1.0, 0.5), (4.0, 2.5)])
def test_randomised_response_is_bounded_from_below_19_times_in_20(epsilon, typical) -> None:
    """A bound that is above the truth too often. Randomised response tells each coin truly with
    e^ε/(1 + e^ε).

    It is the worst that ε-DP allows. Of 200 audits at most 5 % may exceed ε: 19 or more would
    happen once in 170.
    """
    rng, above, found = np.random.default_rng(1), 0, []
    for _ in range(200):
        coins = rng.random(300) < 0.5
        told = coins ^ (rng.random(300) > 1 / (1 + math.exp(-epsilon)))
        found.append(audit_guesses(told + 1e-3 * rng.random(300), coins, delta=0.0).epsilon)
        above += found[-1] > epsilon
    assert above < 19
    assert np.median(found) >= typical  # and it is a bound that says something


def test_a_mechanism_that_tells_all_with_probability_delta_stays_bounded() -> None:
    """(ε, δ): randomised response that gives each coin away with probability δ. Without the
    correction it fails.
    """
    rng, epsilon, delta, m, above = np.random.default_rng(2), 0.5, 1e-3, 200, 0
    for _ in range(200):
        coins = rng.random(m) < 0.5
        truth = rng.random(m) < delta
        told = coins ^ ((rng.random(m) > 1 / (1 + math.exp(-epsilon))) & ~truth)
        score = np.where(told, 1.0, -1.0) * np.where(truth, 2.0, 1.0) + 1e-3 * rng.random(m)
        above += audit_guesses(score, coins, delta=delta).epsilon > epsilon
    assert above < 20


def test_what_cannot_be_is_told() -> None:
    """More right guesses than guesses; a confidence of 95 for 0.95; coins of −1 and 1, which no
    guess would equal.
    """
    with pytest.raises(UserError, match="11 of 10"):
        p_value(20, 10, 11, epsilon=1.0, delta=0.0)
    with pytest.raises(UserError, match="no number"):
        audit_guesses(np.array([math.nan, 1, 2, 3]), np.ones(4, bool), delta=0.0)
    for confidence in (0.0, 1.0, 95.0, math.nan):
        with pytest.raises(UserError, match="confidence"):
            lower_bound(20, 10, 10, delta=0.0, confidence=confidence)
    with pytest.raises(UserError, match="coins are float64"):
        audit_guesses(np.arange(4.0), np.array([1.0, -1.0, 1.0, -1.0]), delta=0.0)
