"""The same image at both sides of a split: a model that knows it by heart looks good.

Splits that are made here keep equal images on one side. Splits that the data have themselves are
kept as they are published, for others compare with them, and refused where more than a few images
of the tests are in training, too. Validation rows are not measured here: of them it is only told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedgraft.client.readers.source import Source
from fedgraft.common.errors import UserError
from fedgraft.common.plan.reading_section import to_write

# the two sides that a result depends on
TESTED = ("train", "test")
# each split with those before it
_PAIRS = (TESTED, ("train", "val"), ("val", "test"))


@dataclass(frozen=True)
class Copies:
    """Images that are there more than once.

    Attributes:
        records: how many there are.
        copies: those that are a copy of another one.
        most: how often the commonest image is there.
        mislabelled: images that have several labels.
        shared: by two splits, how many images of the second are in the first, too.
        plural: what they are called: images, or texts.
    """

    records: int
    copies: int
    most: int
    mislabelled: int
    shared: Mapping[tuple[str, str], int]
    plural: str = "images"


def count_copies(source: Source, splits: Mapping[str, np.ndarray]) -> Copies:
    """Return what is there more than once, of images; of tables nothing: rows may be equal."""
    if source.contents is None:
        return Copies(0, 0, 1, 0, {})
    contents = source.contents
    labels: dict[bytes, set[object]] = {}
    times: Counter[bytes] = Counter()
    for rows in splits.values():
        for row in rows.tolist():
            times[contents[row]] += 1
            labels.setdefault(contents[row], set()).add(source.labels[row])
    records = times.total()
    return Copies(
        records=records,
        copies=records - len(times),
        most=max(times.values(), default=1),
        mislabelled=sum(len(each) > 1 for each in labels.values()),
        shared=_count_shared(contents, splits),
        plural=source.plural,
    )


def _count_shared(
    contents: Sequence[bytes], splits: Mapping[str, np.ndarray]
) -> dict[tuple[str, str], int]:
    shared: dict[tuple[str, str], int] = {}
    for first, second in _PAIRS:
        known = {contents[row] for row in splits.get(first, np.empty(0)).tolist()}
        rows = splits.get(second, np.empty(0)).tolist()
        count = sum(contents[row] in known for row in rows)
        if count:
            shared[first, second] = count
    return shared


def check_shared(source: Source, most: float) -> None:
    """Raise UserError where more than this part of the data's own tests is in training, too."""
    if source.contents is None or not source.splits:
        return
    shared = source.derived("shared", lambda: _count_shared(source.contents or (), source.splits))
    count = shared.get(TESTED, 0)
    images = len(source.splits.get("test", ()))
    if count <= most * images:
        return
    raise UserError(
        f"{count:,} of {images:,} {source.plural} in test are also in train, the same bytes",
        where=source.where,
        remedy=(
            "take them out of one of the two, or leave the splits out: then they are made so; if it"
            f" is right as it is: {to_write('max_shared', _part(count, images))} (now {most:g} of"
            " the tests)"
        ),
    )


def _part(count: int, images: int) -> str:
    """Return a part that allows so many, in hundredths."""
    return f"{math.ceil(100 * count / images) / 100:g}"


def keep_together(
    tested: np.ndarray, contents: Sequence[bytes], units: Sequence[str] | None
) -> np.ndarray:
    """Return which records to test on, bool `(n,)`, with equal images on one side: for training.

    Args:
        tested: which were chosen.
        contents: of each record, equal where it is the same image.
        units: whose each record is, whose records stay together; None: not known.
    """
    if len(set(contents)) == len(contents):
        return tested
    tested = tested.copy()
    moved = True
    while moved:
        trained = {contents[at] for at in np.flatnonzero(~tested).tolist()}
        torn = [at for at in np.flatnonzero(tested).tolist() if contents[at] in trained]
        moved = bool(torn)
        tested[torn] = False
        if units is not None:
            owners = {units[at] for at in torn}
            tested &= np.array([unit not in owners for unit in units], bool)
    return tested


def describe_copies(copies: Copies) -> str:
    """Return in words what is there more than once; "" where nothing is."""
    if not copies.copies:
        return ""
    distinct = copies.records - copies.copies
    words = (
        f"{copies.copies:,} of {copies.records:,} {copies.plural} are duplicates,"
        f" {distinct:,} are distinct; one is there {copies.most:,} times"
    )
    if copies.mislabelled:
        words += f"; {copies.mislabelled:,} {copies.plural} have several labels"
    for (first, second), count in copies.shared.items():
        words += f"; {count:,} in {second} are also in {first}"
    return words
