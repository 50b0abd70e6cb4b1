"""Numbers as people read them: bytes, and a mean with its spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

UNITS = ("B", "kB", "MB")


def show_bytes(count: float) -> str:
    """Return bytes for people: 203 kB, 1.1 MB (powers of 1,000)."""
    for unit in UNITS:
        if count < 1000:
            return _with_unit(count, unit)
        count /= 1000
    return _with_unit(count, "GB")


def _with_unit(count: float, unit: str) -> str:
    if unit == "B" or count >= 100:
        return f"{count:.0f} {unit}"
    return f"{count:.1f} {unit}"


def show_spread(values: Sequence[float | None]) -> str:
    """Return `0.861 ± 0.004`; one value alone; a dash where a metric is undefined."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    if len(known) == 1:
        return f"{known[0]:.3f}"
    return f"{np.mean(known):.3f} ± {np.std(known, ddof=1):.3f}"
