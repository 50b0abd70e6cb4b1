"""Ridge scores as probabilities: classes are Gaussians of one covariance in the scores' space.

Ridge regression on one-hot targets finds the directions of linear discriminant analysis (Hastie,
Tibshirani and Friedman 2009, section 4.3 and exercise 4.2): with λ → 0 those of LDA, with λ → ∞
the differences of class means. Means and covariance of the scores follow from the same sums; each
record's own pull on its score is taken out by the mean leverage h, as in leave-one-out residuals
r / (1 − h) (Allen 1974): classes lie nearer to one another, and are wider, than in the sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedgraft.common.statistics.ridge import RidgeSolution

# of the separation in the sample, where the leverage would leave none on records that are new
LEAST_SEPARATION = 0.05
# log-odds of a record in the middle of its class against any other, at most: where few records are
# told apart without a mistake the classes have no width that their sums tell, and float32 knows no
# probability nearer to 1
MOST_LOG_ODDS = 50.0
# eigenvalues of the scores' covariance below this part of the largest are none: scores add up to 1
RELATIVE_RANK = 1e-9


@dataclass(frozen=True)
class ScoreClasses:
    """Where each class lies among the scores.

    Attributes:
        means: of each class, `(classes, scores)`.
        covariance: within classes, `(scores, scores)`.
        counts: records of each class, `(classes,)`.
    """

    means: np.ndarray
    covariance: np.ndarray
    counts: np.ndarray


def describe_scores(solution: RidgeSolution) -> ScoreClasses:
    """Return the classes among the scores of records that the solution has not seen.

    The targets must be one-hot.
    """
    sums = solution.sums
    counts = sums.records * sums.target_mean
    present = np.maximum(counts, 1.0)
    # class means and the scatter within classes, of standardised features
    centres = (sums.cross / present).T
    between = (centres * counts[:, None]).T @ centres
    within = sums.gram - between
    scores = sums.target_mean + centres @ solution.weights
    freedom = max(sums.records - len(counts), 1)
    covariance = solution.weights.T @ within @ solution.weights / freedom

    kept = 1.0 - solution.leverage
    middle = sums.target_mean
    apart = _separation(scores - middle, np.eye(len(counts)) - middle, counts)
    unseen = max(1.0 - (1.0 - apart) / kept, LEAST_SEPARATION * apart)
    means = middle + (scores - middle) * (unseen / apart)
    return ScoreClasses(means, covariance / kept**2, counts)


def _separation(scores: np.ndarray, truth: np.ndarray, counts: np.ndarray) -> float:
    """Return how far apart classes lie among the scores, 1 where every record is told rightly."""
    between = float((counts[:, None] * scores * truth).sum())
    return max(between / float((counts[:, None] * truth**2).sum()), 1e-12)


def discriminant(classes: ScoreClasses, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights `(classes, scores)` and bias `(classes,)` that make logits of scores.

    Args:
        prior: probability of each class before anything is known of a record, `(classes,)`.
    """
    values, vectors = np.linalg.eigh(classes.covariance)
    keep = values > RELATIVE_RANK * max(values.max(), 1e-300)
    precision = (vectors[:, keep] / values[keep]) @ vectors[:, keep].T
    farthest = _log_odds(classes.means, precision)
    if farthest > MOST_LOG_ODDS:
        precision *= MOST_LOG_ODDS / farthest
    weights = classes.means @ precision
    bias = np.log(np.maximum(prior, 1e-12)) - 0.5 * (weights * classes.means).sum(1)
    return weights, bias


def _log_odds(means: np.ndarray, precision: np.ndarray) -> float:
    """Return the largest log-odds that the middle of a class has against another class."""
    products = means @ precision @ means.T
    lengths = np.diag(products)
    squares = lengths[:, None] + lengths - 2 * products
    return float(squares.max()) / 2
