"""NoisySums ⇄ RecordDict: what a node sends in a round of sums under differential privacy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.privacy.discrete_noise import LARGEST_SIGMA
from fedgraft.common.statistics.noisy_sums import NoisySums
from fedgraft.common.wire.layout import BadUpdate, reading_foreign_bytes
from fedgraft.common.wire.spent_record import read_spent, spent_record
from fedgraft.common.wire.sums_record import RECORDS, SUMS, magnitudes, read_array, read_envelope

# of a noisy number: no records and no noise that may be give more
LARGEST_NUMBER = 2**55


@dataclass(frozen=True)
class ExpectedNoisy:
    """What noisy sums must be to be added.

    Attributes:
        features, codes, counts, products: how many there are of each.
        round: that they belong to, from 1.
        digest: of the adapter's layout, which both sides have.
    """

    features: int
    codes: int
    counts: int
    round: int
    digest: str
    products: int = 0


def noisy_record(
    noisy: NoisySums, spent: Spent, *, round_: int, digest: str, seconds: float
) -> RecordDict:
    """Return the reply's content: noisy sums, the noise's deviation, and what was spent."""
    arrays = {"sums": noisy.sums, "counts": noisy.counts}
    if noisy.products.size:
        arrays["products"] = noisy.products
    numbers = {"deviation": noisy.variance**0.5, "seconds": seconds}
    return RecordDict(
        {
            SUMS: ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "train": MetricRecord(numbers),
            "about": ConfigRecord({"round": round_, "layout": digest}),
            "privacy": spent_record(spent),
        }
    )


@reading_foreign_bytes()
def read_noisy_record(
    content: RecordDict, expected: ExpectedNoisy
) -> tuple[NoisySums, Spent, float]:
    """Return the noisy sums of a reply, what was spent for them, and the seconds they took.

    Raises:
        BadUpdate: other records, shapes or types than were agreed on, or numbers that cannot be.
    """
    numbers, seconds = read_envelope(content, RECORDS, expected.round, expected.digest)
    arrays = content.array_records[SUMS]
    agreed = {"sums", "counts"}
    if expected.products:
        agreed.add("products")
    if set(arrays) != agreed:
        raise BadUpdate(f"arrays {sorted(arrays)[:5]}; {sorted(agreed)} were agreed on")
    sums = read_array(arrays["sums"], "sums", (expected.features, expected.codes))
    counts = read_array(arrays["counts"], "counts", (expected.counts,))
    products = np.zeros(0, np.int64)
    if expected.products:
        products = read_array(arrays["products"], "products", (expected.products,))
    deviation = float(numbers["deviation"])
    if not 1 <= deviation <= LARGEST_SIGMA:
        raise BadUpdate(f"noise of deviation {deviation:g}")
    for numbers in (sums, counts, products):
        if magnitudes(numbers).max(initial=0) > LARGEST_NUMBER:
            raise BadUpdate("sums that no records have")
    spent = read_spent(content.config_records["privacy"])
    return NoisySums(sums, counts, deviation**2, products), spent, seconds
