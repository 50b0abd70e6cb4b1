"""Where the columns of a table lie among its inputs, by how many categories each has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def count_inputs(category_sizes: Sequence[int]) -> int:
    """Return how many inputs a row has: one a number, one for each category.

    Args:
        category_sizes: of each column, how many categories it has; 0: it holds numbers.
    """
    return sum(size or 1 for size in category_sizes)


def first_inputs(category_sizes: Sequence[int]) -> list[int]:
    """Return at which input each column begins."""
    ends = accumulate(size or 1 for size in category_sizes)
    return [0, *ends][: len(category_sizes)]


def number_inputs(category_sizes: Sequence[int]) -> list[int]:
    """Return the inputs that are numbers."""
    begins = zip(first_inputs(category_sizes), category_sizes, strict=True)
    return [begin for begin, size in begins if size == 0]


def category_inputs(category_sizes: Sequence[int]) -> list[int]:
    """Return the inputs that are categories, 0 or 1 each."""
    numbers = set(number_inputs(category_sizes))
    return [place for place in range(count_inputs(category_sizes)) if place not in numbers]
