"""ROC, area and intervals against scikit-learn and against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from fedgraft.common.errors import UserError
from fedgraft.simulations.attacks.roc import RocCurve, summarize_scores, trace_roc

SCORES = st.lists(st.integers(-4, 4) | st.floats(-3, 3), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(members=SCORES, others=SCORES)
def test_the_curve_is_scikit_learns(members, others) -> None:
    """Ties that are taken one by one, a corner that is lost, or hits counted as alarms."""
    mine, theirs = np.array(members, float), np.array(others, float)
    truth, scores = np.repeat([1, 0], [len(mine), len(theirs)]), np.r_[mine, theirs]
    curve = trace_roc(mine, theirs)
    wanted_fpr, wanted_tpr, _ = sk.roc_curve(truth, scores, drop_intermediate=False)
    assert curve.fpr == pytest.approx(wanted_fpr)
    assert curve.tpr == pytest.approx(wanted_tpr)
    assert curve.area == pytest.approx(sk.roc_auc_score(truth, scores))
    for rate in (0.001, 0.01, 0.3, 1.0):
        assert curve.hits_at(rate) == pytest.approx(wanted_tpr[wanted_fpr <= rate].max())


def test_few_sure_hits_show_where_the_area_does_not() -> None:
    """One member in ten named with certainty: an area near one half, and a tenth of the members at
    no false alarm.
    """
    rng = np.random.default_rng(0)
    members = np.r_[rng.normal(size=900), np.full(100, 10.0)]
    found = summarize_scores(members, rng.normal(size=1000), seed=0, draws=200)
    assert found["auc"] < 0.6
    assert found["tpr"]["0.001"] >= 0.1
    assert found["tpr_interval"]["0.001"][0] > 0.07


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_intervals_hold_the_truth_as_often_as_they_say(shift) -> None:
    """Intervals that are too narrow: of 100 draws of N(shift, 1) against N(0, 1), some 95 hold
    Φ(shift/√2).

    A binomial of 100 at 0.95 is below 88 once in 400 times.
    """
    from scipy.stats import norm

    rng, truth, held = np.random.default_rng(5), norm.cdf(shift / np.sqrt(2)), 0
    for trial in range(100):
        low, high = summarize_scores(
            rng.normal(shift, 1, 60), rng.normal(0, 1, 60), seed=trial, draws=200
        )["auc_interval"]
        held += low <= truth <= high
    assert held >= 88


def test_a_curve_that_is_kept_has_the_same_area_and_its_left_end() -> None:
    """A thinned curve that bends off, or loses what happens at few false alarms."""
    rng = np.random.default_rng(1)
    members, others = rng.normal(0.5, 1, 5000), rng.normal(size=5000)
    found = summarize_scores(members, others, seed=0, draws=2)
    kept = RocCurve(np.array(found["roc"]["fpr"]), np.array(found["roc"]["tpr"]))
    assert len(kept.fpr) <= 400
    assert kept.area == pytest.approx(found["auc"], abs=1e-3)
    assert kept.hits_at(0.01) == found["tpr"]["0.01"]


def test_nobody_to_tell_apart_is_an_error_in_words() -> None:
    """A NaN in a report, or a traceback, where there is no non-member."""
    with pytest.raises(UserError, match="0 others"):
        trace_roc(np.ones(3), np.ones(0))
