"""The predictive variance against scikit-learn's Gaussian process, which is the same regression."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct

from fedgraft.common.statistics.gram_sums import Rounding, sum_records
from fedgraft.common.statistics.predictive_variance import describe_variance
from fedgraft.common.statistics.ridge import solve_ridge, standardise

ROUNDING = Rounding(64.0, 20)


def test_it_is_that_of_a_gaussian_process_with_a_linear_kernel() -> None:
    """A leverage of features that were not centred, or scaled by another's deviation."""
    rng = np.random.default_rng(3)
    features = (rng.normal(size=(200, 5)) * [1, 3, 0.1, 2, 1] + [0, 5, 1, -2, 0]).astype(np.float32)
    answers = rng.integers(0, 2, 200)
    targets = np.eye(2, dtype=np.int64)[answers]
    sums = sum_records(ROUNDING.to_integers(features), targets, ROUNDING.bits)
    solution = solve_ridge(standardise(sums, ROUNDING.unit), ridge=3.0)
    new = (rng.normal(size=(20, 5)) * 4).astype(np.float32)
    found = describe_variance(solution).deviations(torch.from_numpy(new)).numpy()

    # weights of variance 1/λ in units of the noise, on standardised features
    mean, deviation = features.mean(0), features.std(0)
    options: dict[str, Any] = {"alpha": 3.0, "optimizer": None}
    process: Any = GaussianProcessRegressor(DotProduct(0, "fixed"), **options)
    process.fit((features - mean) / deviation, targets[:, 0] - targets[:, 0].mean())
    _, spread = process.predict((new - mean) / deviation, return_std=True)
    noise = solution.noise[0]
    # of the process: λ times the leverage over λ, and the intercept's share is not in it
    expected = np.sqrt(noise * (1 + 1 / 200 + spread**2 / 3.0))
    assert np.allclose(found[:, 0], expected, rtol=1e-3)


def test_intervals_hold_what_they_say() -> None:
    """95 % of new answers lie within 1.96 deviations, near to the training records and far, on the
    average over 20 data sets.
    """
    rng = np.random.default_rng(4)
    held: dict[float, list[float]] = {1.0: [], 10.0: []}
    for _ in range(20):
        weights = rng.normal(size=8) * 3000
        train = rng.normal(size=(200, 8))
        answers = np.rint(train @ weights + rng.normal(size=200) * 1000).astype(np.int64)
        sums = sum_records(ROUNDING.to_integers(train), answers[:, None], ROUNDING.bits)
        solution = solve_ridge(standardise(sums, ROUNDING.unit))
        score, bias = solution.head()
        for scale, shares in held.items():
            new = rng.normal(size=(500, 8)) * scale
            truth = new @ weights + rng.normal(size=500) * 1000
            deviation = describe_variance(solution).deviations(torch.from_numpy(new).float())
            off = np.abs(new @ score[0] + bias[0] - truth)
            shares.append(float((off < 1.96 * deviation.numpy()[:, 0]).mean()))
    assert 0.93 < np.mean(held[1.0]) < 0.97
    assert 0.9 < np.mean(held[10.0]) < 0.98
