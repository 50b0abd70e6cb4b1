"""What counts of outcomes tell of a group of people: Kaplan and Meier's curve over intervals, and
how many were still watched. Counts of hospitals add up, and so do their curves' numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class LifeTable:
    """Counts over K intervals, of outcomes `2 · survived + event`.

        table = LifeTable(outcomes)
        table.survival()[-1]  # the share that is alive at the last cut

    Attributes:
        outcomes: int64 `(2K + 1,)`.
    """

    outcomes: np.ndarray

    @property
    def events(self) -> np.ndarray:
        """Return events in each interval `(K,)`."""
        return self.outcomes[1::2]

    @property
    def censored(self) -> np.ndarray:
        """Return who was last seen after so many intervals `(K,)`, those who survived all left
        out.
        """
        return self.outcomes[0:-1:2]

    @property
    def reached(self) -> np.ndarray:
        """Return who survived so many intervals or more `(K + 1,)`."""
        by_survived = np.append(self.outcomes[:-1:2] + self.outcomes[1::2], self.outcomes[-1])
        return np.cumsum(by_survived[::-1])[::-1]

    @property
    def at_risk(self) -> np.ndarray:
        """Return who was watched through each interval, or to their event in it, `(K,)`."""
        return self.events + self.reached[1:]

    def hazards(self) -> np.ndarray:
        """Return the share of those at risk with an event in each interval `(K,)`; 0 where nobody
        was.
        """
        return self.events / np.maximum(self.at_risk, 1)

    def survival(self) -> np.ndarray:
        """Return the share that is alive at each cut, `(K,)` (Kaplan and Meier 1958, eq. 2b)."""
        return np.cumprod(1 - self.hazards())

    def watched(self) -> np.ndarray:
        """Return the probability of not having been lost before or at the beginning of each
        interval, `(K,)`: the same curve of those who left, with events as what takes them out.
        """
        return np.cumprod(1 - self.censored / np.maximum(self.reached[:-1], 1))
