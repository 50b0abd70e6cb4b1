"""ε of a whole history, against Google's dp-accounting, hand-worked formulas and a property or
two.
"""

from __future__ import annotations

import math
import random

import dp_accounting as google
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fedgraft.common.errors import UserError
from fedgraft.common.privacy.accounting import Accountant, bound, epsilon, shown, statement
from fedgraft.common.privacy.history import Row, merge_rows
from fedgraft.common.privacy.noise_search import noise_for
from fedgraft.common.privacy.prv_bound import PRV_ERROR
from fedgraft.common.privacy.rdp_bound import ORDERS, bound_by_rdp, renyi_divergence

Accountants = google.PrivacyAccountant


def independent(accountant: Accountants, history: list[Row], delta: float) -> float:
    """ε of the same history by Google's library, add/remove one."""
    for sigma, rate, steps in history:
        step = google.PoissonSampledDpEvent(rate, google.GaussianDpEvent(sigma))
        accountant.compose(google.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(delta))


WHOLE = tuple(order for order in ORDERS if order == int(order))


def random_history(seed: int, most_rows: int) -> tuple[list[Row], float]:
    """What a hospital may have run: several plans, different noise, sampling and length; ε from 0.1
    to 50.
    """
    draw = random.Random(seed)
    rows: list[Row] = []
    for _ in range(draw.randint(1, most_rows)):
        sigma = math.exp(draw.uniform(math.log(0.7), math.log(8)))
        rate = 1.0 if draw.random() < 0.1 else 10 ** draw.uniform(-3.5, -0.7)
        most = 20 if rate == 1 else min(3000, 30 / rate)
        rows.append((sigma, rate, draw.randint(1, max(1, int(most)))))
    return rows, 10 ** draw.uniform(-7, -4)


def against_google(history: list[Row], delta: float) -> None:
    ours = epsilon(history, delta, "rdp")
    # at whole orders; between them Google interpolates, and is higher
    theirs = independent(RdpAccountant(WHOLE), history, delta)
    assert bound_by_rdp(merge_rows(history), delta, WHOLE) == pytest.approx(theirs, rel=1e-3)
    assert ours <= theirs * 1.001

    found = bound(history, delta, "prv")
    truth = independent(
        PLDAccountant(), history, delta
    )  # pessimistic, by less than 1e-3 a composition
    assert found.epsilon <= ours + 1e-12
    assert found.epsilon >= truth - 5e-3, "not an upper bound"
    if found.accountant == "prv":
        assert abs(found.epsilon - PRV_ERROR - truth) <= 5e-3 + 1e-3 * truth


def between_prv_bounds(history: list[Row], delta: float) -> None:
    """Within PRV's own lower and upper end, on the grid that Opacus chooses."""
    found = bound(history, delta, "prv")
    if found.accountant == "rdp":
        return
    from opacus.accountants import PRVAccountant

    counted = PRVAccountant()
    counted.history = list(merge_rows(history))
    whole = counted._get_dprv(eps_error=PRV_ERROR, delta_error=delta / 1000)
    lower, estimate, upper = whole.compute_epsilon(delta, delta / 1000, PRV_ERROR)
    assert lower <= estimate <= found.epsilon <= upper + 1e-3


@pytest.mark.parametrize("seed", range(15))
def test_random_histories_as_google_counts_them(seed: int) -> None:
    """A mistake in the composition of unequal rows is a hospital that spends more than it knows."""
    against_google(*random_history(seed, most_rows=2))


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, marks=pytest.mark.slow if seed < 4 else pytest.mark.exhaustive)
        for seed in range(200)
    ],
)
def test_many_random_histories_as_google_counts_them(seed: int) -> None:
    """The same over 200 longer histories, and PRV between its own bounds."""
    history, delta = random_history(seed, most_rows=5)
    against_google(history, delta)
    between_prv_bounds(history, delta)


@pytest.mark.parametrize(
    ("sigma", "rate"), [(0.7, 0.18), (1.4, 0.009), (0.67, 5e-4), (3.0, 0.06), (29.0, 0.3)]
)
def test_renyi_divergence_by_integration(sigma: float, rate: float) -> None:
    """Every order, whole or not, is at least E[(1 − q + q exp((2z−1)/(2σ²)))^α] over z ~ N(0, σ²)
    says.
    """
    orders = (1.05, 1.1, 1.5, 2.0, 2.3, 3.7, 8.4)
    z, width = np.linspace(-15 * sigma, 10 + 15 * sigma, 1_000_001, retstep=True)
    log_ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * z - 1) / (2 * sigma**2))
    for order in orders:
        found = renyi_divergence(sigma, rate, order)
        # less α (ratio − 1), whose mean is 0: nothing is left that could cancel
        terms = norm.pdf(z, 0, sigma) * (np.expm1(order * log_ratio) - order * np.expm1(log_ratio))
        exact = math.log1p(float(np.sum(terms)) * float(width)) / (order - 1)
        assert found == pytest.approx(exact, rel=1e-4, abs=3e-12 / (order - 1))
        assert found > exact - 1e-13 / (order - 1)


@pytest.mark.parametrize("seed", range(12))
def test_the_least_of_all_orders_is_found_without_counting_at_each(seed: int) -> None:
    """A search along the orders that stops at another ε than the least."""
    history, delta = random_history(seed, most_rows=2)
    counted: list[float] = []
    for order in ORDERS:
        renyi = sum(steps * renyi_divergence(sigma, rate, order) for sigma, rate, steps in history)
        counted.append(renyi + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
    assert bound_by_rdp(tuple(history), delta) == min(counted)


@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (4.0, 10), (0.8, 3)])
def test_without_sampling_as_the_formula_says(sigma: float, steps: int) -> None:
    """Gaussian mechanisms compose into one with μ = √steps / σ; ε from Balle and Wang (2018),
    Theorem 8.
    """
    delta, mu = 1e-5, math.sqrt(steps) / sigma

    def off(eps: float) -> float:
        return float(
            norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu) - delta
        )

    exact = float(brentq(off, 0, 100))  # type: ignore[arg-type]
    assert exact <= epsilon([(sigma, 1.0, steps)], delta, "prv") <= exact + 0.012
    assert exact <= epsilon([(sigma, 1.0, steps)], delta, "rdp") <= exact * 1.15


ROWS = st.tuples(
    st.floats(0.4, 20).map(lambda value: round(value, 1)),
    st.sampled_from([1e-4, 0.01, 0.06, 0.3, 1.0]),
    st.integers(0, 2000),
)


@settings(deadline=None, max_examples=25)
@given(history=st.lists(ROWS, max_size=5), more=ROWS, delta=st.sampled_from([1e-7, 1e-5, 1e-3]))
def test_more_never_costs_less(history: list[Row], more: Row, delta: float) -> None:
    """A bound that fell when a row, a step or δ changed for the worse would invite to exploit
    it.
    """
    sigma, rate, steps = more
    now = epsilon([*history, more], delta, "rdp")
    assert epsilon(history, delta, "rdp") <= now
    assert now <= epsilon([*history, (sigma, rate, steps + 10)], delta, "rdp")
    assert now <= epsilon([*history, (sigma * 0.8, rate, steps)], delta, "rdp") + 1e-9
    assert now <= epsilon([*history, (sigma, min(1.0, rate * 1.5), steps)], delta, "rdp") + 1e-9
    assert now <= epsilon([*history, more], delta / 10, "rdp")


@settings(deadline=None, max_examples=15)
@given(history=st.lists(ROWS, max_size=6), seed=st.randoms())
def test_order_and_splitting_do_not_matter(history: list[Row], seed: random.Random) -> None:
    """A round more or less in a row, or rows in another order, are the same history."""
    halves = [(s, q, part) for s, q, n in history for part in (n // 2, n - n // 2)]
    seed.shuffle(halves)
    assert merge_rows(halves) == merge_rows(history)
    assert epsilon(halves, 1e-5, "rdp") == epsilon(history, 1e-5, "rdp")


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_extremes(accountant: Accountant) -> None:
    """No noise is no privacy; nothing done costs nothing; nothing here may raise, hang or come out
    as NaN.
    """

    def count(*row: float) -> float:
        return epsilon([row], 1e-5, accountant)  # type: ignore[list-item]

    assert epsilon([], 1e-5, accountant) == count(1.0, 0.5, 0) == count(1.0, 0.0, 10) == 0
    assert count(0.0, 0.5, 1) == count(1e-300, 0.5, 1) == math.inf
    assert 5000 < count(0.01, 1.0, 1) < math.inf  # 1 / (2σ²) and more
    assert 1e6 < count(1.0, 0.01, 10**12) < math.inf
    assert count(1e200, 0.5, 1000) < 0.01
    assert count(math.inf, 0.5, 1000) == 0
    assert 0 <= count(0.3, 1e-12, 100) < 0.1
    assert 0 < epsilon([(1.0, 0.01, 1000)], 1e-14, accountant) < 10


def test_prv_gives_way_to_rdp_and_says_so() -> None:
    """A number under the wrong accountant's name could not be checked by anybody."""
    assert bound([(1.0, 0.01, 100)], 1e-5, "prv").accountant == "prv"
    long = bound([(1.0, 0.01, 10**9)], 1e-5, "prv")
    assert long.accountant == "rdp"
    assert "grid" in long.why
    assert long.epsilon == epsilon([(1.0, 0.01, 10**9)], 1e-5, "rdp")
    assert "grid" in statement([(1.0, 0.01, 10**9)], 1e-5, unit="patient")
    assert "rounding" in bound([(1.0, 0.01, 1000)], 1e-14, "prv").why


@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps", "earlier"),
    [
        (3.0, 1e-5, 0.01, 300, []),
        (1.0, 1e-4, 0.06, 400, []),
        (8.0, 1e-4, 0.2, 60, []),
        (2.0, 1e-5, 1.0, 20, []),
        (3.0, 1e-5, 0.02, 100, [(1.0, 0.01, 300), (2.0, 0.05, 50)]),
    ],
)
@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_noise_keeps_the_promise_by_another_accountant(
    accountant: Accountant,
    target: float,
    delta: float,
    rate: float,
    steps: int,
    earlier: list[Row],
) -> None:
    """The whole point: with this noise ε is within the target, and there is not much more noise
    than needed.
    """
    sigma = noise_for(target, delta, rate, steps, accountant, earlier)
    run = [*earlier, (sigma, rate, steps)]
    assert epsilon(run, delta, accountant) <= target
    assert independent(PLDAccountant(), run, delta) <= target
    less = [*earlier, (sigma * 0.995, rate, steps)]
    assert epsilon(less, delta, accountant) > target


def test_noise_that_cannot_be_enough_is_told() -> None:
    """When the budget is gone no noise helps, and the message says what was spent."""
    with pytest.raises(UserError, match="was spent before"):
        noise_for(1.0, 1e-5, 0.01, 100, "prv", [(1.0, 0.01, 1000)])
    with pytest.raises(UserError, match=r"target ε"):
        noise_for(0.0, 1e-5, 0.01, 100)


@pytest.mark.parametrize(
    "row", [(-1.0, 0.1, 1), (1.0, 1.1, 1), (1.0, 0.1, -1), (math.nan, 0.1, 1), (1.0, 0.1, 0.5)]
)
def test_rows_that_are_none_are_refused(row: Row) -> None:
    """A negative number of steps would give budget back."""
    with pytest.raises(UserError):
        epsilon([row], 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_must_be_one(delta: float) -> None:
    """δ = 1 would permit everything."""
    with pytest.raises(UserError, match="δ"):
        epsilon([(1.0, 0.1, 1)], delta)


def test_a_statement_says_everything() -> None:
    """An ε without unit, neighbours, sampling, δ and accountant means nothing; and it is rounded
    up.
    """
    said = statement([(1.0, 0.01, 1000), (1.0, 1.0, 2)], 1e-5, unit="patient", accountant="rdp")
    for words in ("patient", "added or removed", "Poisson", "1e-05", "RDP", "1002 steps"):
        assert words in said
    assert "all data of one node replaced" in statement([(1.0, 1.0, 2)], 1e-5, unit="node")
    left_out = statement(
        [(1.0, 1.0, 2)], 1e-5, unit="node", neighbours="one node's updates left out"
    )
    assert "left out" in left_out
    assert "replaced" not in left_out
    assert shown(1.23451) == "1.2346"
    assert shown(math.inf) == "∞"
