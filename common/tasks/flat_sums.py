"""Numbers of a hostile node as metric sums read them: counts, and finite numbers within bounds."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

# examples in one report; keeps every sum of counts inside int64
MOST = 2**40
# so that no sum of many nodes' losses overflows
LARGEST_LOSS = 1e30

Flat = Mapping[str, Any]


def check_keys(flat: Flat, keys: Collection[str]) -> None:
    """Raise `ValueError` for keys that are missing or unknown."""
    if set(flat) != set(keys):
        odd = sorted(set(keys).symmetric_difference(map(str, flat)))
        raise ValueError(f"keys missing or unknown: {', '.join(odd)[:200]}")


def read_count(flat: Flat, name: str) -> int:
    """Return a count. Raise `ValueError` for what is none."""
    value = flat[name]
    if not is_count(value, least=0):
        raise ValueError(f"{name} is {value!r}; a count was agreed on")
    return value


def read_number(flat: Flat, name: str, low: float, high: float) -> float:
    """Return a finite number between two bounds. Raise `ValueError` for any other."""
    value = flat[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; a number within {low:g} and {high:g} is expected")
    return float(value)


def read_loss(flat: Flat) -> float:
    """Return a sum of losses. Raise `ValueError` for what is none."""
    return read_number(flat, "loss", 0.0, LARGEST_LOSS)


def read_counts(flat: Flat, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return counts that travelled as positions and what is not zero there. Raise `ValueError` for
    other lists.
    """
    size = math.prod(shape)
    at = read_positions(flat, f"{name}-at", size)
    counts = np.zeros(size, np.int64)
    counts[at] = read_count_list(flat, name, len(at), least=1)
    return counts.reshape(shape)


def write_counts(name: str, counts: np.ndarray) -> dict[str, list[int]]:
    """Return counts as positions and what is not zero there, for the wire."""
    at = np.flatnonzero(counts)
    return {f"{name}-at": at.tolist(), name: counts.reshape(-1)[at].tolist()}


def read_positions(flat: Flat, name: str, size: int) -> np.ndarray:
    """Return a strictly rising list of positions below `size`. Raise `ValueError` for another."""
    values = flat[name]
    if not _is_list_of_counts(values, least=0):
        raise ValueError(f"{name} is not a list of positions")
    at = np.array(values, np.int64)
    if len(at) and (at[-1] >= size or (np.diff(at) <= 0).any()):
        raise ValueError(f"{name} has positions out of order or beyond {size - 1}")
    return at


def read_count_list(flat: Flat, name: str, length: int, least: int) -> np.ndarray:
    """Return a list of so many counts. Raise `ValueError` for another."""
    values = flat[name]
    if not _is_list_of_counts(values, least) or len(values) != length:
        raise ValueError(f"{name} is not a list of {length} counts")
    return np.array(values, np.int64)


def is_count(value: Any, *, least: int) -> bool:
    """Whether a value is a whole number that can be a count."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and least <= value <= MOST


def _is_list_of_counts(values: Any, least: int) -> bool:
    return isinstance(values, list) and all(is_count(value, least=least) for value in values)
