"""A head out of noisy sums by class: Gaussian classes of one variance in the directions that part
them, around means that are shrunk by what of them is noise.

With z noisy and τ = 1 − (expected square of the noise) / |z|², τ z is the James-Stein estimate of a
mean (Efron and Morris 1973); norms in thresholds are those of the means, noise taken out.
"""

from __future__ import annotations

import numpy as np

from fedgraft.common.statistics.noisy_sums import COUNT_STEP, SCALE, NoisySums, simplex

# counts below so many deviations of their noise are taken for that
LEAST_COUNT = 2.0
# features of norm 1 keep at least this part of their square for the scatter within classes
LEAST_SCATTER = 0.05


def solve_counted(noisy: NoisySums, prior: str) -> tuple[np.ndarray, np.ndarray]:
    """Return weights `(classes, d)` and bias `(classes,)` where every class was counted.

    Args:
        prior: "shares" of the classes as counted, or "equal".
    """
    deviation = noisy.variance**0.5
    counts = estimate_counts(noisy)
    means = (noisy.sums / SCALE / counts).T
    centre = (noisy.sums.sum(1) / SCALE) / counts.sum()
    classes = len(counts)
    apart = means - centre
    # a class is part of the centre, too
    noise = (deviation / SCALE) ** 2 * (1 / counts**2 - 2 / (counts * counts.sum()))
    noise += (deviation / SCALE) ** 2 * classes / counts.sum() ** 2
    weights, squares = _shrink(apart, noise)
    scatter = _scatter(centre, squares, counts)
    shares = counts / counts.sum()
    if prior == "equal":
        shares = np.full(classes, 1 / classes)
    weights = weights / scatter
    bias = np.log(shares) - weights @ centre - 0.5 * squares / scatter
    return weights, bias


def solve_equal(noisy: NoisySums, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the same where the plan declares that all classes are equally frequent.

    The sums are under the codes of `simplex`, and one count is of all records. Where the centre of
    all records lies is not released: the public reference says that it is 0.
    """
    deviation = noisy.variance**0.5
    records = float(estimate_counts(noisy)[0])
    scale = (classes - 1) / records / SCALE
    apart = simplex(classes) @ noisy.sums.T * scale
    noise = np.full(classes, (deviation * scale) ** 2)
    weights, squares = _shrink(apart, noise)
    centre = np.zeros(apart.shape[1])
    scatter = _scatter(centre, squares, np.ones(classes))
    return weights / scatter, -0.5 * squares / scatter


def estimate_counts(noisy: NoisySums) -> np.ndarray:
    """Return how many records each class has: what was counted, drawn towards equal classes by as
    much of the differences as is noise.
    """
    counted = noisy.counts / COUNT_STEP
    variance = noisy.variance / COUNT_STEP**2
    apart = counted - counted.mean()
    square = float((apart**2).sum())
    true = max(square - (len(counted) - 1) * variance, 0.0)
    if square > 0:
        counted = counted.mean() + apart * (true / square)
    return np.maximum(counted, max(LEAST_COUNT * variance**0.5, 1.0))


def _shrink(apart: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means shrunk by one factor for all classes, and their squared norms without noise.

    Args:
        apart: noisy means around their centre, `(classes, d)`.
        noise: variance of the noise on each coordinate, by class `(classes,)`.
    """
    squares = (apart**2).sum(1)
    true = np.maximum(squares - apart.shape[1] * noise, 0.0)
    # where all is noise, what little is left still points somewhere
    factor = max(true.sum() / max(squares.sum(), 1e-300), 1e-3)
    return apart * factor, true


def _scatter(centre: np.ndarray, squares: np.ndarray, counts: np.ndarray) -> float:
    """Return the variance within classes, of features of norm 1, where classes differ.

    Their squares add up to 1, and what the means leave is scatter. It is not the same in all d
    directions: it is taken to lie in √d of them, those between classes among these. A covariance
    would say it better, and would cost d² noisy numbers. On the training images of `pneumonia` the
    scatter is 15 times the mean over directions, and √d is 19.
    """
    between = float((squares * counts).sum() / counts.sum())
    left = 1.0 - float((centre**2).sum()) - between
    return max(left, LEAST_SCATTER) / len(centre) ** 0.5
