"""A head out of noisy sums and products: Gaussian classes of one covariance, as far as noise lets
it be seen.

The scatter within classes has noise E, a symmetric matrix. Its expected spectral norm λ = s √(2d)
is added before the scatter is inverted (as the constant of a ridge regression from noisy sums is
chosen by the known noise: Mehta et al. 2023): directions in which records scatter less than the
noise count alike, and with little noise there is Fisher's discriminant.
"""

from __future__ import annotations

import numpy as np

from fedgraft.common.statistics.class_scores import ScoreClasses, discriminant
from fedgraft.common.statistics.noisy_means import estimate_counts
from fedgraft.common.statistics.noisy_sums import PRODUCT_SCALE, SCALE, NoisySums

# of the largest scatter: what is added at least, where there is next to no noise
LEAST_RIDGE = 1e-6


def solve_products(noisy: NoisySums, prior: str) -> tuple[np.ndarray, np.ndarray]:
    """Return weights `(classes, d)` and bias `(classes,)`.

    Args:
        prior: "shares" of the classes as counted, or "equal".
    """
    counts = estimate_counts(noisy)
    records = counts.sum()
    sums = noisy.sums / SCALE
    centre = sums.sum(1) / records
    apart = (sums / counts).T - centre
    scatter = read_products(noisy) - records * np.outer(centre, centre)
    scatter -= (apart * counts[:, None]).T @ apart

    deviation = noisy.product_deviation
    values, directions = np.linalg.eigh(scatter)
    # what is below zero is noise
    values = np.maximum(values, 0.0)
    ridge = max(deviation * (2 * len(centre)) ** 0.5, LEAST_RIDGE * values.max(), 1e-300)
    precision = (directions / (values + ridge)) @ directions.T
    scores = apart @ precision

    means = apart @ scores.T - _noise_of_means(noisy, counts) * np.trace(precision)
    # the precision leans towards directions in which noise made scatter look small; by as much, to
    # the second order in E, as is added here
    lean = deviation**2 * np.trace(precision)
    covariance = scores @ ((directions * (values + lean)) @ directions.T) @ scores.T
    classes = ScoreClasses(means, covariance / records, counts)
    shares = counts / records
    if prior == "equal":
        shares = np.full(len(counts), 1 / len(counts))
    onto_logits, shift = discriminant(classes, shares)
    weights = onto_logits @ scores
    return weights, shift - weights @ centre


def read_products(noisy: NoisySums) -> np.ndarray:
    """Return Σ φ φᵀ `(d, d)`, symmetric."""
    features = len(noisy.sums)
    whole = np.zeros((features, features))
    whole[np.triu_indices(features)] = noisy.products / PRODUCT_SCALE
    return whole + np.triu(whole, 1).T


def _noise_of_means(noisy: NoisySums, counts: np.ndarray) -> np.ndarray:
    """Return the covariance of the noise on one coordinate of the classes' means around the centre,
    `(classes, classes)`.
    """
    records = counts.sum()
    own = np.diag(1 / counts**2)
    shared = (1 / counts[:, None] + 1 / counts[None, :]) / records
    return noisy.variance / SCALE**2 * (own - shared + len(counts) / records**2)
