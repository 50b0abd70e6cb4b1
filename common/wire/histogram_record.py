"""TableHistograms ⇄ RecordDict: what a node sends in a round of histograms, and what the server
holds it to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedgraft.common.statistics.histograms import (
    LARGEST_CODE,
    TableHistograms,
    check_histogram,
    split_columns,
)
from fedgraft.common.wire.layout import BadUpdate, reading_foreign_bytes
from fedgraft.common.wire.sums_record import read_array, read_envelope

HISTOGRAMS = "histograms"
RECORDS = {HISTOGRAMS, "train", "about"}
# the values of all columns, one column after the other, and how many of each column there are
CODES = "codes"
COUNTS = "counts"
SIZES = "sizes"


@dataclass(frozen=True)
class ExpectedHistograms:
    """What histograms must be to be added.

    Attributes:
        columns: how many there are.
        round: that they belong to, from 1.
        digest: of the adapter's layout, which both sides have.
        records: at most so many, as the node said when it joined.
    """

    columns: int
    round: int
    digest: str
    records: int


def histogram_record(
    histograms: TableHistograms, *, round_: int, digest: str, seconds: float
) -> RecordDict:
    """Return the reply's content: the histograms one after the other, and their seconds."""
    empty = np.zeros(0, np.int64)
    columns = histograms.columns
    arrays = {
        SIZES: np.array([len(column.codes) for column in columns], np.int64),
        CODES: np.concatenate([empty, *(column.codes for column in columns)]),
        COUNTS: np.concatenate([empty, *(column.counts for column in columns)]),
    }
    return RecordDict(
        {
            HISTOGRAMS: ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "train": MetricRecord({"num-examples": histograms.records, "seconds": seconds}),
            "about": ConfigRecord({"round": round_, "layout": digest}),
        }
    )


@reading_foreign_bytes()
def read_histogram_record(
    content: RecordDict, expected: ExpectedHistograms
) -> tuple[TableHistograms, float]:
    """Return the histograms of a reply and the seconds that they took.

    Raises:
        BadUpdate: other records, shapes or types than were agreed on, or histograms that no records
            have.
    """
    numbers, seconds = read_envelope(content, RECORDS, expected.round, expected.digest)
    arrays = content.array_records[HISTOGRAMS]
    if set(arrays) != {SIZES, CODES, COUNTS}:
        agreed = sorted((SIZES, CODES, COUNTS))
        raise BadUpdate(f"arrays {sorted(arrays)[:5]}; {agreed} were agreed on")

    records = int(numbers["num-examples"])
    if not 1 <= records <= expected.records:
        raise BadUpdate(f"histograms of {records} records; it joined with {expected.records}")
    sizes = read_array(arrays[SIZES], SIZES, (expected.columns,))
    if (sizes < 0).any() or (sizes > min(records, LARGEST_CODE + 1)).any():
        raise BadUpdate(f"histograms with more values than {records} records have")
    together = (int(sizes.sum()),)
    codes = read_array(arrays[CODES], CODES, together)
    counts = read_array(arrays[COUNTS], COUNTS, together)
    columns = split_columns(sizes, codes, counts)
    for number, column in enumerate(columns, start=1):
        try:
            check_histogram(column, records)
        except ValueError as error:
            raise BadUpdate(f"number {number} of the table: {error}") from None
    return TableHistograms(records, columns), seconds
