"""A head of class means, for few records: each class lies around its mean, wherever features vary.

Nearest class means on features of variance 1 (diagonal discriminant analysis: Dudoit, Fridlyand and
Speed 2002, section 2; the prototypes of Snell et al. 2017 without training) need no products of one
feature with another, which of few records say next to nothing. A mean of n records has noise of
variance 1 / n on each coordinate: the means are shrunk by what of them is that (James and Stein, as
Efron and Morris 1973 have it).
"""

from __future__ import annotations

import numpy as np

from fedgraft.common.statistics.gram_sums import GramSums
from fedgraft.common.statistics.ridge import LEAST_DEVIATION

# of the squared means: where all is noise, what little is left still points somewhere
LEAST_FACTOR = 1e-3


def solve_means(sums: GramSums, unit: float, prior: str) -> tuple[np.ndarray, np.ndarray]:
    """Return weights `(classes, d)` and bias `(classes,)` on features as they are.

    The variance within classes is not the same in all d directions: it is taken to lie in √d of
    them, as in `noisy_means.py`. It makes how sure the head is, not what it answers.

    Args:
        sums: of one-hot targets; of the Gram matrix the diagonal.
        unit: what one integer step of a feature is worth.
        prior: "shares" of the classes among the records, or "equal".

    Raises:
        ValueError: no records.
    """
    if sums.records < 1:
        raise ValueError("no records")
    records = float(sums.records)
    squares = sums.gram if sums.gram.ndim == 1 else np.diag(sums.gram)
    centre = sums.total / records
    deviation = np.sqrt(np.maximum(squares / records - centre**2, 0.0))
    # what hardly varies is left out
    deviation[deviation < LEAST_DEVIATION] = np.inf
    counts = np.maximum(sums.targets.astype(float), 1.0)
    means = (sums.cross / counts - centre[:, None]).T / deviation
    features = int(np.isfinite(deviation).sum())
    means, apart = _shrink(means, features * (1 / counts - 1 / records))
    means[sums.targets == 0] = 0.0

    within = max(features, 1) ** 0.5
    shares = counts / counts.sum()
    if prior == "equal":
        shares = np.full(len(shares), 1 / len(shares))
    weights = means / within / (deviation * unit)
    bias = np.log(shares) - 0.5 * apart / within - weights @ (centre * unit)
    return weights, bias


def _shrink(means: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means `(classes, d)` shrunk by one factor, and their squared lengths without noise.

    Args:
        noise: expected square of the noise on each class's mean, `(classes,)`.
    """
    squares = (means**2).sum(1)
    true = np.maximum(squares - noise, 0.0)
    factor = max(true.sum() / max(squares.sum(), 1e-300), LEAST_FACTOR)
    return means * factor, true
