"""Where the records of a batch lie in a tensor, followed from step to step of a network.

A step that sums over records, or puts values of one in the place of another, is refused: a record
must not change another's row, which privacy by example, sums of records and activations that are
kept rest on. The proof needs shapes alone: with a number of records that divides no other size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

# a prime above every other size
PROBE = 65_537
LARGEST_SIZE = PROBE - 1


class Records(NamedTuple):
    """Which axis has the records, and how many values of one lie together in it, behind it.

    An axis may hold more than the records: of tokens and records as one, `(tokens · n, width)`, it
    is the axis 0 with 1 inside it, and of `(n · tokens, width)` the axis 0 with all tokens inside.
    """

    axis: int
    inside: int = 1


# None: the tensor is the same for every record
Place = Records | None


def is_first(place: Place, tensor: Tensor) -> bool:
    """Whether a tensor has one row a record and nothing else in its first axis."""
    return place == Records(0) and tensor.shape[0] == PROBE


def check_first(place: Place, tensor: Tensor) -> Records:
    """Return the place. Raise `ValueError` where a tensor has not one row a record."""
    if not is_first(place, tensor):
        raise ValueError("its input has not one row a record")
    return Records(0)


def check_axes(place: Place, axes: Sequence[int]) -> None:
    """Raise `ValueError` where one of the axes has the records."""
    if place is not None and place.axis in axes:
        raise ValueError("it reaches across the records of a batch")


def follow_reshape(place: Place, before: Tensor, after: Tensor) -> Place:
    """Return where the records are behind a reshape. Raise `ValueError` where it mixes them."""
    if place is None:
        return None
    behind = place.inside * _values_behind(before, place.axis)
    for axis, size in enumerate(after.shape):
        if size % PROBE:
            continue
        values = _values_behind(after, axis)
        inside, rest = divmod(behind, values)
        if rest == 0 and inside and size % (PROBE * inside) == 0:
            return Records(axis, inside)
    raise ValueError("it mixes the records of a batch")


def follow_transpose(place: Place, axes: Sequence[int]) -> Place:
    """Return where the records are when axes are put in another order."""
    if place is None:
        return None
    return Records(list(axes).index(place.axis), place.inside)


def follow_together(places: Sequence[Place], tensors: Sequence[Tensor], after: Tensor) -> Place:
    """Return where the records are in what several tensors make, value by value.

    Raises:
        ValueError: they have them in different places, or each meets every other.
    """
    found: Place = None
    for place, tensor in zip(places, tensors, strict=True):
        if place is None:
            continue
        # shapes are aligned at their ends
        axis = place.axis + after.ndim - tensor.ndim
        moved = Records(axis, place.inside)
        if found not in (None, moved) or tensor.shape[place.axis] != after.shape[axis]:
            raise ValueError("records meet other records")
        found = moved
    return found


def follow_product(places: Sequence[Place], tensors: Sequence[Tensor], after: Tensor) -> Place:
    """Return where the records are in a product of matrices. Raise `ValueError` where it sums over
    records, or each meets every other.
    """
    left, right = tensors
    if min(left.ndim, right.ndim) < 2:
        raise ValueError("a product with a vector")
    check_axes(places[0], [left.ndim - 1])
    check_axes(places[1], [right.ndim - 2])
    found: Place = None
    for place, tensor in zip(places, tensors, strict=True):
        if place is None:
            continue
        moved = Records(place.axis + after.ndim - tensor.ndim, place.inside)
        if found is None:
            found = moved
        elif found != moved or moved.axis >= after.ndim - 2:
            raise ValueError("records meet other records")
        if tensor.shape[place.axis] != after.shape[moved.axis]:
            raise ValueError("records meet other records")
    return found


def _values_behind(tensor: Tensor, axis: int) -> int:
    """Return how many values one step along an axis passes over."""
    count = 1
    for size in tensor.shape[axis + 1 :]:
        count *= size
    return count
