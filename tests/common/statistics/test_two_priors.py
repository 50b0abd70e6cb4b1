"""Two groups of features, one constant each."""

from __future__ import annotations

import numpy as np

from fedgraft.common.statistics.ridge import StandardSums, solve_ridge
from fedgraft.common.statistics.two_priors import VARIANCES, solve_two_groups, weigh

MANY = 120
FEW = 3


def records(seed: int = 0, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return features, most of them of no use, and targets that two of the last tell."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(count, MANY + FEW))
    targets = features[:, -1] - features[:, -2] + draw.normal(size=count)
    return features, targets[:, None]


def sums_of(features: np.ndarray, targets: np.ndarray) -> StandardSums:
    """Return the sums of features of mean 0 and deviation 1."""
    features = (features - features.mean(0)) / features.std(0)
    targets = targets - targets.mean(0)
    width = features.shape[1]
    return StandardSums(
        records=len(features),
        mean=np.zeros(width),
        deviation=np.ones(width),
        gram=features.T @ features,
        cross=features.T @ targets,
        target_mean=np.zeros(1),
        target_squares=np.square(targets).sum(0),
    )


def test_weighing_is_scaling_the_features() -> None:
    """Sums that are weighed otherwise than features would be solved for a head that is none."""
    features, targets = records()
    sums = sums_of(features, targets)
    solution = solve_ridge(weigh(sums, FEW, 16.0), ridge=50.0)
    weights, _ = solution.head()

    standard = (features - features.mean(0)) / features.std(0)
    standard[:, -FEW:] *= 4.0
    direct = np.linalg.solve(
        standard.T @ standard + 50.0 * np.eye(MANY + FEW), standard.T @ (targets - targets.mean(0))
    )
    direct[-FEW:] *= 4.0
    np.testing.assert_allclose(weights[0], direct[:, 0], atol=1e-9)


def test_the_few_are_not_drowned_by_the_many() -> None:
    """One constant for both shrinks what the few say, and new records are told worse."""
    sums = sums_of(*records())
    features, targets = records(seed=1)
    chosen = solve_two_groups(sums, FEW)
    together = solve_ridge(sums)
    errors = []
    for solution in (chosen, together):
        weights, _ = solution.head()
        errors.append(float(np.square(features @ weights.T - targets).mean()))
    assert chosen.evidence > together.evidence
    assert errors[0] < errors[1]
    assert chosen.sums.deviation[-1] in [1 / np.sqrt(variance) for variance in VARIANCES]
