"""The lower bound on ε: against exact sums, a linear program, and mechanisms whose ε is known."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from common.errors import UserError
from simulations.audit import audit, lower_bound, p_value


def tail(v: int, r: int, right: Fraction) -> Fraction:
    """P[Binomial(r, right) ≥ v], in whole numbers."""
    terms = (math.comb(r, k) * right**k * (1 - right) ** (r - k) for k in range(max(v, 0), r + 1))
    return sum(terms, Fraction(0))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_p_value_is_the_worst_case_over_all_failures(data) -> None:
    """A wrong tail, off by one, or a δ correction that is too small.

    Independent: the largest P[W + F ≥ v] over all distributions of F on 0 … m with mean at most 2mδ, by linear
    programming over exact binomial tails. Where 2mδ ≤ 1 the theorem's bound is that maximum.
    """
    m = data.draw(st.integers(2, 25))
    r = data.draw(st.integers(1, m))
    v = data.draw(st.integers(0, r))
    odds = data.draw(st.integers(1, 9))  # e^ε
    delta = data.draw(st.sampled_from((0.0, 1e-6, 1e-3, 0.02)))
    right = Fraction(odds, odds + 1)
    reach = [float(tail(v - failures, r, right)) for failures in range(m + 1)]
    worst = linprog(
        [-p for p in reach],
        A_ub=[list(range(m + 1))],
        b_ub=[2 * m * delta],
        A_eq=[[1.0] * (m + 1)],
        b_eq=[1.0],
        bounds=(0, 1),
    )
    found = p_value(m, r, v, epsilon=math.log(odds), delta=delta)
    assert found == pytest.approx(min(1.0, -worst.fun), rel=1e-6, abs=1e-9)


def test_all_right_is_worked_by_hand() -> None:
    """δ = 0, all m right: p = q^m, so q = 0.05^(1/m) and ε = log(q / (1 − q))."""
    for m in (10, 100, 1000):
        q = 0.05 ** (1 / m)
        assert lower_bound(m, m, m, delta=0.0) == pytest.approx(math.log(q / (1 - q)), abs=1e-5)
    assert lower_bound(100, 100, 50, delta=0.0) == 0.0
    assert lower_bound(100, 100, 100, delta=0.01) == 0.0  # δ·m so large that the theorem is empty


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 400), st.floats(0.5, 1), st.sampled_from((0.0, 1e-5, 1e-4)))
def test_the_bound_is_the_last_epsilon_that_is_refuted(m, share, delta) -> None:
    """A search that stops beside the crossing, or a p-value that does not rise with ε."""
    v = int(share * m)
    found = lower_bound(m, m, v, delta=delta)
    risks = [p_value(m, m, v, epsilon=epsilon, delta=delta) for epsilon in np.linspace(0, 8, 60)]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(risks))
    if found:
        assert p_value(m, m, v, epsilon=found, delta=delta) <= 0.05 + 1e-9
        assert p_value(m, m, v, epsilon=found + 1e-4, delta=delta) > 0.05


@pytest.mark.parametrize(("epsilon", "typical"), [(0.2, 0.0), (1.0, 0.5), (4.0, 2.5)])
def test_randomised_response_is_bounded_from_below_19_times_in_20(epsilon, typical) -> None:
    """A bound that is above the truth too often. Randomised response tells each coin truly with e^ε/(1 + e^ε).

    It is the worst that ε-DP allows. Of 200 audits at most 5 % may exceed ε: 19 or more would happen once in 170.
    """
    rng, above, found = np.random.default_rng(1), 0, []
    for _ in range(200):
        coins = rng.random(300) < 0.5
        told = coins ^ (rng.random(300) > 1 / (1 + math.exp(-epsilon)))
        found.append(audit(told + 1e-3 * rng.random(300), coins, delta=0.0).epsilon)
        above += found[-1] > epsilon
    assert above < 19
    assert np.median(found) >= typical  # and it is a bound that says something


def test_a_mechanism_that_tells_all_with_probability_delta_stays_bounded() -> None:
    """(ε, δ): randomised response that gives each coin away with probability δ. Without the correction it fails."""
    rng, epsilon, delta, m, above = np.random.default_rng(2), 0.5, 1e-3, 200, 0
    for _ in range(200):
        coins = rng.random(m) < 0.5
        truth = rng.random(m) < delta
        told = coins ^ ((rng.random(m) > 1 / (1 + math.exp(-epsilon))) & ~truth)
        score = np.where(told, 1.0, -1.0) * np.where(truth, 2.0, 1.0) + 1e-3 * rng.random(m)
        above += audit(score, coins, delta=delta).epsilon > epsilon
    assert above < 20


def test_what_cannot_be_is_told() -> None:
    """More right guesses than guesses."""
    with pytest.raises(UserError, match="11 of 10"):
        p_value(20, 10, 11, epsilon=1.0, delta=0.0)
    with pytest.raises(UserError, match="no number"):
        audit(np.array([math.nan, 1, 2, 3]), np.ones(4, bool), delta=0.0)
