"""Hazards by interval out of noisy sums by outcome: one direction of risk, as far as noise lets it
be seen, and each interval's level.

As in `hazard_direction.py` those who die lie apart from those who survive, over all intervals, by
the sum of features times martingale residuals: that is one number for each outcome, put on after
noise. The difference is shrunk by what of it is noise (James-Stein, see `noisy_number.py`).
"""

from __future__ import annotations

import numpy as np

from fedgraft.common.statistics.hazard_direction import LEAST_COUNT, find_residuals
from fedgraft.common.statistics.noisy_number import (
    LEAST_FACTOR,
    LEAST_SCATTER,
    invert_products,
)
from fedgraft.common.statistics.noisy_sums import COUNT_STEP, SCALE, NoisySums


def solve_noisy_hazards(noisy: NoisySums) -> tuple[np.ndarray, np.ndarray]:
    """Return weights `(K, d)`, the same for each interval, and bias `(K,)` of the logits of
    hazards, on features of norm 1.

    Args:
        noisy: sums of features and counts by outcome `2 · survived + event`, `2K + 1` of each.
    """
    counts = np.maximum(noisy.counts / COUNT_STEP, 0.0)
    records = max(float(counts.sum()), 1.0)
    events = counts[1::2]
    behind = np.cumsum(counts[::-1])[::-1]
    survived = behind[2::2]
    at_risk = np.maximum(events + survived, 1.0)

    residuals = find_residuals(events, survived)
    both = max(float((events * survived / at_risk).sum()), 1.0)
    sums = noisy.sums / SCALE
    apart = sums @ residuals / both
    noise = noisy.variance / SCALE**2 * float((residuals**2).sum()) / both**2
    square = float((apart**2).sum())
    true = max(square - len(apart) * noise, 0.0)
    apart = apart * max(true / max(square, 1e-300), LEAST_FACTOR)

    centre = sums.sum(1) / records
    if noisy.products.size:
        weights = invert_products(noisy, records, centre) @ apart
    else:
        # what the centre leaves of the features' square lies in √d directions, as in noisy_means
        scatter = max(1.0 - float((centre**2).sum()), LEAST_SCATTER) / len(centre) ** 0.5
        weights = apart / scatter
    level = np.log((events + LEAST_COUNT) / (survived + LEAST_COUNT))
    # the middle between those who die and those who survive
    skew = (survived - events) / (2 * at_risk)
    bias = level - weights @ centre - weights @ apart * skew
    return np.tile(weights, (len(events), 1)), bias
