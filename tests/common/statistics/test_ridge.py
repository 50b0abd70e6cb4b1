"""The ridge solution against scikit-learn, its evidence against the density that it is of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from fedgraft.common.statistics.class_scores import describe_scores, discriminant
from fedgraft.common.statistics.gram_sums import Rounding, sum_records
from fedgraft.common.statistics.ridge import RIDGES, RidgeSolution, solve_ridge, standardise

ROUNDING = Rounding(16.0, 20)


def draw(seed: int, records: int, features: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Return features of unlike scales on the grid of integers, and classes that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(records, features)) * np.geomspace(0.1, 2, features) + 0.5
    x = ROUNDING.to_integers(x) * ROUNDING.unit
    score = x @ rng.normal(size=(features, 3)) + rng.gumbel(size=(records, 3))
    return x, score.argmax(1)


def solve(x: np.ndarray, y: np.ndarray, ridge: float | None = None) -> RidgeSolution:
    targets = np.eye(3, dtype=np.int64)[y]
    sums = sum_records(ROUNDING.to_integers(x), targets, ROUNDING.bits)
    return solve_ridge(standardise(sums, ROUNDING.unit), ridge)


@pytest.mark.parametrize("ridge", [0.01, 3.0, 1e4])
def test_the_head_is_scikit_learns(ridge: float) -> None:
    """Scaling and centring by the sums must be that by the records."""
    x, y = draw(0, 200)
    weights, bias = solve(x, y, ridge).head()
    scaler = StandardScaler().fit(x)
    known = Ridge(alpha=ridge).fit(scaler.transform(x), np.eye(3)[y])
    np.testing.assert_allclose(x @ weights.T + bias, known.predict(scaler.transform(x)), atol=1e-8)


def test_the_evidence_is_the_density_of_the_targets() -> None:
    """A wrong constant would still look plausible; here it is compared with the density itself."""
    x, y = draw(1, 40)
    inputs = StandardScaler().fit_transform(x)
    answers = np.eye(3)[y] - np.eye(3)[y].mean(0)

    def log_density(ridge: float) -> float:
        solution = solve(x, y, ridge)
        shape = np.eye(len(x)) + inputs @ inputs.T / ridge
        return sum(
            float(multivariate_normal(cov=noise * shape).logpdf(answers[:, k]))
            for k, noise in enumerate(solution.noise)
        )

    ours = solve(x, y, 0.5).evidence - solve(x, y, 50.0).evidence
    assert ours == pytest.approx(log_density(0.5) - log_density(50.0), rel=1e-9)
    best = max(RIDGES, key=log_density)
    assert solve(x, y).ridge == pytest.approx(best)


def test_the_mean_leverage_is_that_of_the_hat_matrix() -> None:
    """Probabilities rest on it."""
    x, y = draw(2, 30)
    inputs = StandardScaler().fit_transform(x)
    hat = inputs @ np.linalg.solve(inputs.T @ inputs + 2.0 * np.eye(6), inputs.T)
    assert solve(x, y, 2.0).leverage == pytest.approx(1 / 30 + np.trace(hat) / 30)


def test_a_feature_that_never_varies_is_left_out() -> None:
    """It would be divided by nothing."""
    x, y = draw(3, 100)
    x[:, 2] = 1.0
    weights, bias = solve(x, y).head()
    assert np.isfinite(weights).all()
    assert np.isfinite(bias).all()
    assert not weights[:, 2].any()


def test_without_a_ridge_the_classes_are_those_of_linear_discriminant_analysis() -> None:
    """Ridge, LDA and class means are points of one family; this end is known."""
    x, y = draw(4, 3000)
    solution = replace(solve(x, y, 1e-6), leverage=0.0)
    classes = describe_scores(solution)
    onto, shift = discriminant(classes, classes.counts / classes.counts.sum())
    weights, bias = solution.head()
    logits = (x @ weights.T + bias) @ onto.T + shift
    ours = np.exp(logits - logits.max(1, keepdims=True))
    ours /= ours.sum(1, keepdims=True)
    known = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y).predict_proba(x)
    np.testing.assert_allclose(ours, known, atol=5e-3)


def test_few_records_and_many_features_do_not_give_certain_answers() -> None:
    """In the sample such a head is always right; on new records it is not, and must know it."""
    rng = np.random.default_rng(5)
    x = ROUNDING.to_integers(rng.normal(size=(2000, 60))) * ROUNDING.unit
    y = (x[:, 0] + 1.5 * rng.normal(size=2000) > 0).astype(int)
    solution = solve(x[:80], y[:80])
    classes = describe_scores(solution)
    onto, shift = discriminant(classes, np.array([0.5, 0.5, 1e-12]))
    weights, bias = solution.head()
    logits = ((x[80:] @ weights.T + bias) @ onto.T + shift)[:, :2]
    certain = 1 / (1 + np.exp(-np.abs(logits[:, 0] - logits[:, 1])))
    right = (logits.argmax(1) == y[80:]).mean()
    assert abs(certain.mean() - right) < 0.1


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_few_records_told_apart_without_a_mistake_give_no_giant(scale: float) -> None:
    """More features than records, and classes that never meet: a head of 26,000,000 was refused by
    every node, and a hospital alone was sure of mistakes by 10 million nats.
    """
    rng = np.random.default_rng(5)
    y = np.arange(24) % 3
    x = rng.normal(size=(24, 200)) * 0.02 + 2 * np.eye(3)[y] @ rng.normal(size=(3, 200))
    x = ROUNDING.to_integers(scale * x) * ROUNDING.unit
    classes = describe_scores(solution := solve(x, y))
    onto, shift = discriminant(classes, np.full(3, 1 / 3))
    weights, bias = solution.head()
    logits = x @ (onto @ weights).T + onto @ bias + shift
    assert (logits.argmax(1) == y).all()
    gaps = np.sort(logits, axis=1)
    assert (gaps[:, -1] - gaps[:, -2]).max() < 100
    assert np.abs(onto @ weights).max() < 1e4
