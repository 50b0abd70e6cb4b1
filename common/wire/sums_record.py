"""GramSums ⇄ RecordDict: what a node sends in a round of sums, and what the server holds it to."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedgraft.common.statistics.gram_sums import GramSums
from fedgraft.common.wire.layout import BadUpdate, reading_foreign_bytes

SUMS = "sums"
RECORDS = {SUMS, "train", "about", "privacy"}
# eigenvalues of a Gram matrix of diagonal 1 may lie below 0 by so much: float64 rounds it
ROUNDED = 1e-9


@dataclass(frozen=True)
class ExpectedSums:
    """What sums must be to be added.

    Attributes:
        features, targets: how many there are of each.
        bits: of a feature's magnitude.
        round: that they belong to, from 1.
        digest: of the adapter's layout, which both sides have.
        records: at most so many, as the node said when it joined.
        products: whether products of features with one another are among them.
    """

    features: int
    targets: int
    bits: int
    round: int
    digest: str
    records: int
    products: bool = True


def sums_record(sums: GramSums, *, round_: int, digest: str, seconds: float) -> RecordDict:
    """Return the reply's content: the sums, of the Gram matrix one half, and their seconds."""
    gram = sums.gram
    if gram.ndim > 1:
        gram = gram[np.triu_indices(len(sums.total))]
    arrays = {
        "gram": gram,
        "total": sums.total,
        "cross": sums.cross,
        "targets": sums.targets,
        "squares": sums.squares,
    }
    return RecordDict(
        {
            SUMS: ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "train": MetricRecord({"num-examples": sums.records, "seconds": seconds}),
            "about": ConfigRecord({"round": round_, "layout": digest}),
        }
    )


def read_envelope(
    content: RecordDict, records: Collection[str], round_: int, digest: str
) -> tuple[dict[str, Any], float]:
    """Return the numbers beside a reply's arrays, and the seconds that it took.

    Args:
        records: that the reply may have.

    Raises:
        BadUpdate: other records, another round or model, or seconds that cannot be.
    """
    if extra := set(content.keys()).difference(records):
        raise BadUpdate(f"unexpected records {sorted(extra)[:5]}")
    about: dict[str, Any] = dict(content.config_records["about"])
    numbers: dict[str, Any] = dict(content.metric_records["train"])
    if about["round"] != round_ or about["layout"] != digest:
        raise BadUpdate("a reply of another round or another model")
    seconds = float(numbers["seconds"])
    if not math.isfinite(seconds):
        raise BadUpdate(f"{seconds} seconds: not believable")
    return numbers, seconds


@reading_foreign_bytes()
def read_sums_record(content: RecordDict, expected: ExpectedSums) -> tuple[GramSums, float]:
    """Return the sums of a reply and the seconds that they took.

    Raises:
        BadUpdate: other records, shapes or types than were agreed on, or sums that no records have.
    """
    numbers, seconds = read_envelope(content, RECORDS, expected.round, expected.digest)
    features = expected.features
    arrays = content.array_records[SUMS]
    pairs = features * (features + 1) // 2 if expected.products else features
    shapes = {
        "gram": (pairs,),
        "total": (features,),
        "cross": (features, expected.targets),
        "targets": (expected.targets,),
        "squares": (expected.targets,),
    }
    if set(arrays) != set(shapes):
        raise BadUpdate(f"arrays {sorted(arrays)[:5]}; {sorted(shapes)} were agreed on")
    values = {name: read_array(arrays[name], name, shape) for name, shape in shapes.items()}
    gram = values["gram"]
    if expected.products:
        gram = _unfold(gram, features)
    sums = GramSums(
        records=int(numbers["num-examples"]),
        gram=gram,
        total=values["total"],
        cross=values["cross"],
        targets=values["targets"],
        squares=values["squares"],
    )
    check_believable(sums, expected)
    return sums, seconds


def read_array(array: Array, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of int64. Raise `BadUpdate` for another type or shape."""
    # the label first: a header may promise petabytes
    if array.dtype == "int64" and tuple(array.shape) == shape:
        values = array.numpy()
        if values.dtype == np.int64 and values.shape == shape:
            return values
    raise BadUpdate(f"{name} is {array.dtype}{list(array.shape)}; int64{list(shape)} was agreed on")


def _unfold(upper: np.ndarray, features: int) -> np.ndarray:
    """Return the whole of a symmetric matrix from its upper half, row by row."""
    gram = np.empty((features, features), np.int64)
    rows, columns = np.triu_indices(features)
    gram[rows, columns] = upper
    gram[columns, rows] = upper
    return gram


# ── what no records have ──────────────────────────────────────────────────────────────────────────
def check_believable(sums: GramSums, expected: ExpectedSums) -> None:
    """Raise `BadUpdate` for sums that no records within the agreed range have."""
    records = sums.records
    if not 1 <= records <= expected.records:
        raise BadUpdate(f"sums over {records} records; it joined with {expected.records}")
    largest = records << (2 * expected.bits)
    diagonal = np.diag(sums.gram) if expected.products else sums.gram
    if (diagonal < 0).any() or (diagonal > largest).any():
        raise BadUpdate("a Gram matrix whose diagonal no records have")
    if (magnitudes(sums.total) > records << expected.bits).any():
        raise BadUpdate("sums of features that are out of their range")
    # |Σ φ t| ≤ 2^bits Σ |t|, and by Cauchy and Schwarz Σ |t| ≤ √(n Σ t²)
    bounds = np.sqrt(records * magnitudes(sums.squares)) * 2**expected.bits
    if (magnitudes(sums.cross) > bounds * (1 + ROUNDED)).any():
        raise BadUpdate("sums of features and targets that are out of their range")
    if expected.products and not is_positive(_with_totals(sums)):
        raise BadUpdate("a Gram matrix with negative eigenvalues: no records have it")
    # Cauchy and Schwarz, feature by feature
    squares = records * magnitudes(diagonal)
    if (magnitudes(sums.total) ** 2 > squares * (1 + ROUNDED)).any():
        raise BadUpdate("sums of features, and of their squares, that no records have")


def magnitudes(values: np.ndarray) -> np.ndarray:
    """Return the magnitudes of integers, float64: −2⁶³ has none among those of 64 bits."""
    return np.abs(values.astype(np.float64))


def _with_totals(sums: GramSums) -> np.ndarray:
    """Return the Gram matrix of features, targets' sums left out, with a constant 1 beside them."""
    features = len(sums.total)
    whole = np.empty((features + 1, features + 1))
    whole[:features, :features] = sums.gram
    whole[features, :features] = sums.total
    whole[:features, features] = sums.total
    whole[features, features] = sums.records
    return whole


def is_positive(matrix: np.ndarray) -> bool:
    """Whether a symmetric matrix has no eigenvalue below 0, but for rounding (by Cholesky)."""
    scale = np.sqrt(np.maximum(np.diag(matrix), 1.0))
    scaled = matrix / np.outer(scale, scale)
    scaled[np.diag_indices_from(scaled)] += ROUNDED
    try:
        np.linalg.cholesky(scaled)
    except np.linalg.LinAlgError:
        return False
    return True
