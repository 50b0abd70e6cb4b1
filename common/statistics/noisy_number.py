"""A head for a number out of noisy sums: the regression on features of norm 1, as far as noise lets
it be seen.

With z noisy and τ = 1 − (expected square of the noise) / |z|², τ z is the James-Stein estimate of a
mean (Efron and Morris 1973): the covariance of features and number is shrunk so.
"""

from __future__ import annotations

import numpy as np

from fedgraft.common.statistics.noisy_products import read_products
from fedgraft.common.statistics.noisy_sums import COUNT_STEP, SCALE, NoisySums

# features of norm 1 keep at least this part of their square for the scatter
LEAST_SCATTER = 0.05
# where all is noise, what little is left still points somewhere
LEAST_FACTOR = 1e-3


def solve_number(noisy: NoisySums, code: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weights `(1, d)` and bias `(1,)` of a number within −1 and 1.

    Args:
        noisy: sums Σ φ (number, 1) · code, and counts Σ ((1 + number) / 2, 1) · code.
        code: what a record's 1 is there.
    """
    deviation = noisy.variance**0.5
    least = max(2 * deviation / COUNT_STEP / code, 1.0)
    records = max(float(noisy.counts[1]) / COUNT_STEP / code, least)
    above = float(noisy.counts[0]) / COUNT_STEP / code / records
    mean_number = float(np.clip(2 * above - 1, -1.0, 1.0))

    sums = noisy.sums / SCALE / code / records
    centre = sums[:, 1]
    covariance = sums[:, 0] - mean_number * centre
    noise = (deviation / SCALE / code / records) ** 2 * (1 + mean_number**2)
    square = float((covariance**2).sum())
    true = max(square - len(covariance) * noise, 0.0)
    covariance = covariance * max(true / max(square, 1e-300), LEAST_FACTOR)
    if noisy.products.size:
        weights = invert_products(noisy, records, centre) @ covariance
    else:
        # what the centre leaves of the features' square lies in √d directions, as in noisy_means
        scatter = max(1.0 - float((centre**2).sum()), LEAST_SCATTER) / len(centre) ** 0.5
        weights = covariance / scatter
    return weights[None, :], np.array([mean_number - weights @ centre])


def invert_products(noisy: NoisySums, records: float, centre: np.ndarray) -> np.ndarray:
    """Return the precision of features `(d, d)`: their noise's expected spectral norm is added
    before they are inverted, see noisy_products.
    """
    scatter = read_products(noisy) / records - np.outer(centre, centre)
    values, directions = np.linalg.eigh(scatter)
    # what is below zero is noise
    values = np.maximum(values, 0.0)
    ridge = noisy.product_deviation / records * (2 * len(centre)) ** 0.5
    ridge = max(ridge, 1e-6 * values.max(), 1e-300)
    return (directions / (values + ridge)) @ directions.T
