"""What is counted quicker than Opacus counts it, to Opacus's bits."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants.analysis import prv
from opacus.accountants.analysis.rdp import compute_rdp

from fedgraft.common.privacy.prv_loss import PrivacyLoss
from fedgraft.common.privacy.rdp_bound import ORDERS
from fedgraft.common.privacy.renyi_step import divergence_of_step

SIGMAS = st.floats(0.05, 60)
RATES = st.floats(1e-6, 1)
SPREADS = st.floats(4, 40)


@given(sigma=SIGMAS, rate=RATES, order=st.sampled_from(ORDERS))
def test_a_step_s_divergence_has_opacus_s_bits(sigma: float, rate: float, order: float) -> None:
    """An ε that is not that of the published accountant: too low, it promises too much."""
    if sigma > 30:
        # series of other orders take minutes there, and are not asked for
        order = float(math.ceil(order))
    theirs = _counted_by_opacus(sigma, rate, order)
    try:
        ours = divergence_of_step(sigma, rate, order)
    except (ArithmeticError, ValueError):
        ours = None
    if theirs is not None and math.isnan(theirs):
        assert ours is not None
        assert math.isnan(ours)
        return
    assert ours == theirs


def _counted_by_opacus(sigma: float, rate: float, order: float) -> float | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            counted = compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=[order])
        except (ArithmeticError, ValueError):
            return None
    return float(np.asarray(counted)[0])


@pytest.mark.parametrize(
    ("sigma", "rate", "expected"), [(0.0, 0.1, math.inf), (1.0, 0.0, 0.0), (2.0, 1.0, 8 / 8)]
)
def test_a_step_at_the_ends(sigma: float, rate: float, expected: float) -> None:
    """No noise that costs something finite; nobody drawn who costs something; all drawn, and not
    α / 2σ² of the Gaussian mechanism.
    """
    assert divergence_of_step(sigma, rate, 8.0) == expected


@given(sigma=st.floats(0.3, 8), rate=st.floats(0.001, 0.5), reach=SPREADS)
def test_a_mean_has_opacus_s_bits(sigma: float, rate: float, reach: float) -> None:
    """Values that are computed beforehand and not those that are asked for."""
    loss = prv.PoissonSubsampledGaussianPRV(rate, sigma)
    theirs = prv.TruncatedPrivacyRandomVariable(loss, -reach, reach)
    assert PrivacyLoss(loss, -reach, reach).mean() == theirs.mean()


def test_most_of_a_mean_is_known_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another SciPy or Opacus that asks elsewhere: the same mean, and as slow as theirs."""
    asked = []
    base = prv.TruncatedPrivacyRandomVariable
    one_by_one = base.cdf

    def count(self: prv.TruncatedPrivacyRandomVariable, t: Any) -> Any:
        asked.append(np.ndim(t))
        return one_by_one(self, t)

    monkeypatch.setattr(base, "cdf", count)
    loss = prv.PoissonSubsampledGaussianPRV(0.05, 1.0)
    base(loss, -20.0, 20.0).mean()
    theirs = asked.count(0)
    asked.clear()
    PrivacyLoss(loss, -20.0, 20.0).mean()
    assert asked.count(0) < theirs / 5
