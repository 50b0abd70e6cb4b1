"""What all metric sums have in common: they add up field by field; a part lies within a whole."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np

Sums = TypeVar("Sums", bound=Any)
# relative and absolute, for sums of floats in another order
ROUNDING = 1e-6


def add_fields(one: Sums, other: Sums, but: Collection[str] = ()) -> Sums:
    """Return sums whose every field is that of both added.

    Args:
        but: fields that say what the sums are of, and are the same in both.
    """
    added: dict[str, Any] = {}
    for field in fields(one):
        if field.name not in but:
            added[field.name] = getattr(one, field.name) + getattr(other, field.name)
    return replace(one, **added)


def lies_within(
    part: object, whole: object, *, counts: Collection[str] = (), totals: Collection[str] = ()
) -> bool:
    """Whether no field of a part is larger than that of the whole.

    Args:
        counts: fields that are compared exactly.
        totals: fields that are sums of floats: they may be larger by rounding.
    """
    for name in counts:
        if not np.all(getattr(part, name) <= getattr(whole, name)):
            return False
    for name in totals:
        most = np.asarray(getattr(whole, name))
        if not np.all(np.asarray(getattr(part, name)) <= most + ROUNDING * (1 + most)):
            return False
    return True
