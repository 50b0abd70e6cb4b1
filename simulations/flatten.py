"""Nested results as a flat row of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten_numbers(results: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the numbers in nested mappings, by dotted name; an interval `[low, high]` gives two;
    curves are left out.

        flatten_numbers({"auc": 0.7, "auc_interval": [0.6, 0.8]}, "attack")
        # {"attack.auc": 0.7, "attack.auc_interval.low": 0.6, "attack.auc_interval.high": 0.8}
    """
    row: dict[str, Any] = {}
    for key, value in results.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            row |= flatten_numbers(value, name)
        elif isinstance(value, bool | int | float):
            row[name] = value
        elif is_interval(value):
            low, high = value
            row[f"{name}.low"] = low
            row[f"{name}.high"] = high
    return row


def is_interval(value: Any) -> bool:
    """Return whether a value is a list of two numbers."""
    if not isinstance(value, list) or len(value) != 2:
        return False
    low, high = value
    return isinstance(low, int | float) and isinstance(high, int | float)


def is_number(value: Any) -> bool:
    """Return whether a value is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
