"""When did it happen? Times as intervals between public cuts, people who left early among them.

With cuts c_1 < … < c_K there are K intervals, (0, c_1], (c_1, c_2], …, (c_{K−1}, c_K]. A person is
two whole numbers: how many intervals they survived as far as anybody saw, and whether the event
came in the next one. Whoever was last seen inside an interval, without the event, is counted as
having survived it if they were seen beyond its middle (Gensheimer and Narasimhan 2019, "A scalable
discrete-time survival model for neural networks", section 2.2); what comes after the last cut is
not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# the two columns of a person
SURVIVED = 0
EVENT = 1


def count_intervals(times: np.ndarray, events: np.ndarray, cuts: Sequence[float]) -> np.ndarray:
    """Return how many intervals each person survived, and whether the event came then, int64
    `(n, 2)`.

    Args:
        times: of the event, or when the person was last seen, at least 0, `(n,)`.
        events: whether it was the event, bool `(n,)`.
    """
    ends = np.asarray(cuts, np.float64)
    starts = np.concatenate([[0.0], ends[:-1]])
    middles = (starts + ends) / 2
    # an event at a cut lies in the interval that ends there
    interval = np.searchsorted(ends, times, side="left")
    seen = events & (interval < len(ends))
    left = np.searchsorted(middles, times, side="right")
    # beyond the last cut everything was survived
    survived = np.where(seen, interval, left)
    return np.stack([survived, seen.astype(np.int64)], axis=1).astype(np.int64)


def number_outcomes(targets: np.ndarray) -> np.ndarray:
    """Return each person's outcome as one number, 2 · survived + event, int64 `(n,)`."""
    return 2 * targets[:, SURVIVED] + targets[:, EVENT]


def count_outcomes(intervals: int) -> int:
    """Return how many outcomes there are: the event or the last sight in each interval, and the
    survival of all.
    """
    return 2 * intervals + 1
