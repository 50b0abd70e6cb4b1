"""Logits of hazards, an interval each: the loss of a person, and curves.

The hazard of an interval is the probability of the event in it for those who reached it. A person
is K questions of yes or no at most: those of the intervals that they survived, and that of the one
in which the event came (Gensheimer and Narasimhan 2019, eq. 3; Brown 1975).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.tasks.survival_times import EVENT, SURVIVED


def hazard_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logits `(n, K)`, targets `(n, 2)` → −log likelihood of each person `(n,)`, nats.

    Args:
        targets: intervals survived, and whether the event came in the next one.
    """
    intervals = torch.arange(outputs.shape[1], device=outputs.device)
    survived = targets[:, SURVIVED : SURVIVED + 1]
    happened = targets[:, EVENT : EVENT + 1] == 1
    alive = intervals < survived
    died = (intervals == survived) & happened
    # −log (1 − h) and −log h, without forming h
    losses = torch.where(alive, F.softplus(outputs), 0.0)
    losses = losses + torch.where(died, F.softplus(-outputs), 0.0)
    return losses.sum(1)


def mean_hazard_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of `hazard_losses` over a batch."""
    return hazard_losses(outputs, targets).mean()


def cumulative_hazards(outputs: Tensor) -> Tensor:
    """Logits `(n, K)` → −log of the survival at each cut `(n, K)`."""
    return F.softplus(outputs).cumsum(1)


def survival_curves(outputs: Tensor) -> Tensor:
    """Logits `(n, K)` → the probability of being alive at each cut `(n, K)`, falling."""
    return torch.exp(-cumulative_hazards(outputs))


def median_times(curves: Tensor, cuts: Tensor) -> Tensor:
    """Return when the survival falls to one half `(n,)`, by straight lines between the cuts; NaN
    where it is above at the last one.

    Args:
        curves: `(n, K)`; at time 0 it is 1.
        cuts: `(K,)`.
    """
    whole = F.pad(curves, (1, 0), value=1.0)
    times = F.pad(cuts.to(curves.dtype), (1, 0))
    below = whole <= 0.5
    # 0 where none is: the first is never below
    first = below.int().argmax(1).clamp(min=1)
    high = whole.gather(1, first[:, None] - 1)[:, 0]
    low = whole.gather(1, first[:, None])[:, 0]
    start = times[first - 1]
    width = times[first] - start
    crossed = start + width * (high - 0.5) / (high - low)
    return torch.where(below.any(1), crossed, torch.nan)
