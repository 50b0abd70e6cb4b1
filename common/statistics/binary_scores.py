"""Heads for questions of yes and no that share their features: many labels of a record, thresholds
between grades, intervals of a time.

Each question is a ridge regression of its own on the same features, and its two answers are
Gaussians in its score (`class_scores.py`). All share one Gram matrix, decomposed once. Where an
answer is missing, the records that have it are taken for a random part of all: their Gram matrix is
their part of that of all; sums of features and counts are theirs to the bit.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedgraft.common.statistics.class_scores import describe_scores, discriminant
from fedgraft.common.statistics.ridge import RidgeSolution, StandardSums, solve_ridge

# log-odds of an answer that no record, or every one, has
MOST_CERTAIN = 12.0


def solve_binary(
    solution: RidgeSolution, known: np.ndarray | None, positive: np.ndarray, prior: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights `(k, d)` and bias `(k,)` whose sigmoid is the probability of yes.

    Args:
        solution: of all targets together; its Gram matrix and spectrum are used.
        known: which targets are 1 where a question is answered, `(k,)` columns; None: all are.
        positive: which targets are 1 where the answer is yes, `(k,)` columns.
        prior: "shares": of the answers among the records; "equal": yes is as frequent as no.
    """
    sums = solution.sums
    weights = np.zeros((len(positive), len(sums.mean)))
    bias = np.zeros(len(positive))
    for number, column in enumerate(positive.tolist()):
        answered = None if known is None else int(known[number])
        question = select_question(sums, answered, column)
        if question is None:
            continue
        part = question.records / sums.records
        spectrum = (part * solution.eigenvalues, solution.basis)
        own = solve_ridge(question, spectrum=spectrum)
        weights[number], bias[number] = _score(own, prior)
    return weights, bias


def select_question(sums: StandardSums, known: int | None, positive: int) -> StandardSums | None:
    """Return the sums of one question, targets no and yes, over the records that answer it; None
    where none does.
    """
    everybody = float(sums.records)
    answered = everybody
    moved = np.zeros(len(sums.mean))
    if known is not None:
        answered = everybody * sums.target_mean[known]
        moved = sums.cross[:, known]
    if round(answered) < 1:
        return None
    share = everybody * sums.target_mean[positive] / answered
    centred = sums.cross[:, positive] - share * moved
    # a feature that hardly varies has an infinite deviation and no weight
    deviation = np.where(np.isfinite(sums.deviation), sums.deviation, 0.0)
    return replace(
        sums,
        records=round(answered),
        mean=sums.mean + deviation * moved / answered,
        gram=sums.gram * (answered / everybody),
        cross=np.stack([-centred, centred], axis=1),
        target_mean=np.array([1 - share, share]),
        target_squares=np.full(2, answered * share * (1 - share)),
    )


def _score(solution: RidgeSolution, prior: str) -> tuple[np.ndarray, float]:
    """Return weights `(d,)` and bias of the log-odds of yes."""
    shares = solution.sums.target_mean
    if shares.min() <= 0:
        certain = MOST_CERTAIN if shares[1] > 0 else -MOST_CERTAIN
        return np.zeros(len(solution.sums.mean)), certain
    if prior == "equal":
        shares = np.full(2, 0.5)
    onto_logits, shift = discriminant(describe_scores(solution), shares)
    weights, bias = solution.head()
    logits = onto_logits @ weights
    shifts = onto_logits @ bias + shift
    return logits[1] - logits[0], float(shifts[1] - shifts[0])
