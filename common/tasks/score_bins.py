"""Fixed bins for scores, so that AUROC, which needs ranks, merges across hospitals.

A score is the one-vs-rest log-odds z_k − log Σ_{j≠k} exp z_j, not the probability: float
probabilities of a confident model pile up at 0 and 1 and lose their order. Bins are equal steps of
asinh(score): fine around even odds, logarithmic in the tails.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 1024
# of asinh(score): scores up to ±11,013 keep their order
REACH = 10.0


def log_odds(logits: Tensor) -> Tensor:
    """Return one-vs-rest log-odds `(n, K)` of logits `(n, K)`: log p_k − log(1 − p_k), without
    forming p.
    """
    columns: list[Tensor] = []
    for k in range(logits.shape[1]):
        rest = torch.cat([logits[:, :k], logits[:, k + 1 :]], dim=1)
        columns.append(logits[:, k] - torch.logsumexp(rest, dim=1))
    return torch.stack(columns, dim=1)


def edge_of(score_bin: int) -> float:
    """Return the least score of a bin, but for the first, which has no least."""
    return math.sinh(score_bin * (2 * REACH / BINS) - REACH)


def bins_of(scores: Tensor) -> Tensor:
    """Return the bin 0 … BINS−1 of each score: equal steps of asinh(score) over ±REACH; the ends
    take the rest.
    """
    position = (torch.asinh(scores) + REACH) * (BINS / (2 * REACH))
    return position.floor().clamp(0, BINS - 1).to(torch.int64)
