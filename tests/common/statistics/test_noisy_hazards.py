"""Hazards out of noisy sums: without noise those of the people, with much of it nothing sure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgraft.common.statistics.noisy_hazards import solve_noisy_hazards
from fedgraft.common.statistics.noisy_sums import NoisySums, sum_units
from fedgraft.common.tasks.survival_sums import sums_of
from fedgraft.common.tasks.survival_times import number_outcomes
from tests.common.statistics.test_hazard_direction import draw_people

LEVELS = np.array([-2.5, -2.0, -3.0])
CUTS = (1.0, 2.0, 3.0)


def sum_people(count: int, *, products: bool) -> tuple[NoisySums, torch.Tensor, torch.Tensor]:
    """Sums of people, and what they are of: features of norm 1 at most, and targets."""
    slopes = np.array([1.0, -0.5, 0.0, 0.3])
    features, targets = draw_people(count, slopes, LEVELS)
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 2.0)
    outcomes = np.eye(7)[number_outcomes(targets)]
    shares = np.ones(count)
    sums = sum_units(features, outcomes, outcomes, shares, products=products)
    return sums, torch.from_numpy(features), torch.from_numpy(targets)


@pytest.mark.parametrize("products", [True, False])
def test_without_noise_it_is_as_good_as_the_truth(products: bool) -> None:
    """A direction, or levels, of other people."""
    sums, features, targets = sum_people(5000, products=products)
    weights, bias = solve_noisy_hazards(sums)
    logits = features @ torch.from_numpy(weights.T) + torch.from_numpy(bias)
    found = sums_of(logits, targets, CUTS).summary()
    nothing = sums_of(torch.from_numpy(LEVELS).expand(5000, -1), targets, CUTS).summary()
    assert found["concordance"] is not None
    assert found["concordance"] > 0.68
    assert found["loss"] is not None
    assert nothing["loss"] is not None
    # √d directions are taken for those of all features; with their products nothing is guessed
    assert found["loss"] < nothing["loss"] + (0.0 if products else 0.05)


@pytest.mark.parametrize("products", [True, False])
def test_nothing_but_noise_is_a_flat_curve(products: bool) -> None:
    """Outputs that are infinite, or sure of what nobody has seen."""
    sums, features, _ = sum_people(30, products=products)
    rng = np.random.default_rng(0)

    def draw(sigma: int, count: int) -> np.ndarray:
        return np.rint(rng.normal(size=count) * sigma).astype(np.int64)

    for multiplier in (1, 100):
        weights, bias = solve_noisy_hazards(sums.with_noise(multiplier * 2**20, draw))
        assert np.isfinite(weights).all()
        assert np.isfinite(bias).all()
        logits = features.numpy() @ weights.T
        assert np.abs(logits).max() < 50
