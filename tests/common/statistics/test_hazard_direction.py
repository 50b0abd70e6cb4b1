"""Hazards out of sums by outcome: against Cox regression on the pooled people, and known truth."""
# pyright: reportMissingImports=false

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit

from fedgraft.common.statistics.gram_sums import GramSums, Rounding, sum_records
from fedgraft.common.statistics.hazard_direction import find_residuals, solve_proportional
from fedgraft.common.statistics.ridge import solve_ridge, standardise
from fedgraft.common.tasks.life_table import LifeTable
from fedgraft.common.tasks.survival_sums import sums_of
from fedgraft.common.tasks.survival_times import count_intervals, number_outcomes

ROUNDING = Rounding(bound=64.0, bits=20)


def sum_people(features: np.ndarray, targets: np.ndarray, intervals: int) -> GramSums:
    outcomes = np.eye(2 * intervals + 1, dtype=np.int64)[number_outcomes(targets)]
    return sum_records(ROUNDING.to_integers(features), outcomes, ROUNDING.bits)


def solve(sums: GramSums) -> tuple[np.ndarray, np.ndarray]:
    table = LifeTable(sums.targets)
    solution = solve_ridge(standardise(sums, ROUNDING.unit))
    return solve_proportional(solution, table.events, table.reached[1:])


def draw_people(count: int, slopes: np.ndarray, levels: np.ndarray, seed: int = 0):
    """People whose hazards are logistic in their features, a tenth lost in each interval."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, len(slopes)))
    hazards = expit(features @ slopes[:, None] + levels)
    dies = rng.random(hazards.shape) < hazards
    leaves = rng.random(hazards.shape) < 0.1
    targets = np.zeros((count, 2), np.int64)
    for row in range(count):
        targets[row, 0] = len(levels)
        for interval in range(len(levels)):
            if leaves[row, interval] or dies[row, interval]:
                targets[row] = interval, not leaves[row, interval]
                break
    return features, targets


def test_truth_is_found_where_hazards_are_proportional() -> None:
    """Slopes of the wrong sign or size; levels that drift with who is left."""
    slopes = np.array([0.8, -0.4, 0.0, 0.2])
    levels = np.array([-2.5, -2.0, -3.0])
    features, targets = draw_people(40_000, slopes, levels)
    weights, bias = solve(sum_people(features, targets, 3))
    np.testing.assert_allclose(weights[0], weights[2])
    # the information is taken for the same everywhere: right to a tenth
    np.testing.assert_allclose(weights[0], slopes, atol=0.1)
    np.testing.assert_allclose(bias, levels, atol=0.15)


def test_on_real_people_it_is_as_good_as_cox_regression() -> None:
    """Breast cancer (Schumacher et al. 1994), 5-fold: one round against pooled steps of Newton's,
    measured in the same way.
    """
    datasets = pytest.importorskip("lifelines.datasets")
    import pandas as pd
    from lifelines import CoxPHFitter

    people = datasets.load_gbsg2()
    table = pd.get_dummies(people.drop(columns=["time", "cens"]), drop_first=True).astype(float)
    features = ((table - table.mean()) / table.std()).to_numpy()
    events = people["cens"].to_numpy() == 1
    cuts = (365.0, 730.0, 1095.0, 1460.0, 1825.0)
    targets = count_intervals(people["time"].to_numpy(float), events, cuts)
    fold = np.random.default_rng(0).permutation(len(people)) % 5
    ours = []
    theirs = []
    for number in range(5):
        test = fold == number
        weights, bias = solve(sum_people(features[~test], targets[~test], 5))
        logits = torch.from_numpy(features[test] @ weights.T + bias)
        ours.append(sums_of(logits, torch.from_numpy(targets[test]), cuts).summary())
        frame = pd.DataFrame(features[~test]).assign(
            time=people["time"][~test].to_numpy(), event=events[~test]
        )
        cox = CoxPHFitter(penalizer=0.01).fit(frame, "time", "event")
        risk = torch.from_numpy(features[test] @ cox.params_.to_numpy())[:, None]
        # hazards in the proportion of the risk, around Kaplan and Meier's
        known = LifeTable(np.bincount(number_outcomes(targets[~test]), minlength=11))
        levels = torch.logit(torch.from_numpy(known.hazards()))
        logits = levels + risk - risk.mean()
        theirs.append(sums_of(logits, torch.from_numpy(targets[test]), cuts).summary())
    for name in ("concordance", "brier"):
        mine = np.mean([row[name] for row in ours])
        cox_has = np.mean([row[name] for row in theirs])
        assert mine == pytest.approx(cox_has, abs=0.01), name


def test_residuals_are_martingales() -> None:
    """Residuals that do not add up to nothing: everybody at more risk than everybody."""
    _, targets = draw_people(500, np.zeros(2), np.array([-1.0, -2.0, -1.5]))
    table = LifeTable(np.bincount(number_outcomes(targets), minlength=7))
    residuals = find_residuals(table.events, table.reached[1:])
    assert float(table.outcomes @ residuals) == pytest.approx(0, abs=1e-9)


def test_the_same_bits_however_people_are_dealt() -> None:
    """A head that depends on which hospital has whom."""
    features, targets = draw_people(300, np.array([0.5, -1.0]), np.array([-1.0, -1.0]))
    together = solve(sum_people(features, targets, 2))
    parts = sum_people(features[::3], targets[::3], 2)
    for start in (1, 2):
        parts = parts + sum_people(features[start::3], targets[start::3], 2)
    for mine, theirs in zip(solve(parts), together, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_intervals_without_events_have_a_finite_head() -> None:
    """An infinite logit; NaN out of 0 / 0 where nobody is left."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 3))
    targets = np.stack([np.full(40, 1), np.arange(40) % 2], 1)
    for intervals in (2, 4):
        weights, bias = solve(sum_people(features, targets, intervals))
        assert np.isfinite(weights).all()
        assert np.isfinite(bias).all()
        # nobody dies in the first, everybody seen dies in the second
        assert bias[0] < -3
    none = np.stack([np.full(40, 2), np.zeros(40, np.int64)], 1)
    weights, bias = solve(sum_people(features, none, 2))
    assert np.isfinite(weights).all()
    assert (bias < -3).all()
