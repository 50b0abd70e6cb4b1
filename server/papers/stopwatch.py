"""Seconds of a run by phase, over all its starts."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Stopwatch:
    """Adds up what each phase of a run takes.

        watch = Stopwatch(result.seconds)
        watch.start()
        …
        watch.stop("handout")
        result = result.but(seconds=watch.with_total())

    Args:
        earlier: seconds by phase of the run's earlier starts, `total` among them.
    """

    def __init__(self, earlier: Mapping[str, float]) -> None:
        self._seconds = dict(earlier)
        self._before = self._seconds.get("total", 0.0)
        self._begun = time.perf_counter()
        self._started = self._begun

    def start(self) -> None:
        """Begin a phase."""
        self._started = time.perf_counter()

    def stop(self, phase: str) -> None:
        """Add what has passed since `start`, or since the last `stop`, to a phase."""
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._started
        self._started = now

    def with_total(self) -> dict[str, float]:
        """Return the seconds of all phases so far, and those of the whole run as `total`."""
        self._seconds["total"] = self._before + time.perf_counter() - self._begun
        return dict(self._seconds)
