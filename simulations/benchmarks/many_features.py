"""One round over 3,000 features: seconds, bytes and memory at a hospital and at the server, for 8
and for 100 hospitals that have 40,000 records together.

    python -m fedgraft.simulations.benchmarks.many_features

The features are drawn, not computed: what is measured is sums, wire and solution. The floor of a
Gram matrix is n d² multiplications and additions, and d (d + 1) / 2 numbers of 8 bytes.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from fedgraft.client.sum_round import AT_ONCE
from fedgraft.common.statistics.gram_sums import GramSums, Rounding, sum_records, zero_sums
from fedgraft.common.statistics.ridge import solve_ridge, standardise
from fedgraft.common.wire.sums_record import ExpectedSums, read_sums_record, sums_record
from fedgraft.simulations.benchmarks.result_files import ResultTable, record
from fedgraft.simulations.readable import show_bytes

FEATURES = 3000
CLASSES = 2
RECORDS = 40_000
HOSPITALS = (8, 100)
ROUNDING = Rounding(64.0, 20)
HEAD = (
    "hospitals",
    "a hospital's sums, s",
    "sent by each",
    "the server reads and adds one, s",
    "it solves, s",
    "most memory",
)


def main() -> None:
    """Measure each number of hospitals in a process of its own; print the table and record it."""
    if len(sys.argv) > 1:
        print(*measure(int(sys.argv[1])), sep="\t")
        return
    table = ResultTable(HEAD)
    table.print_head()
    for hospitals in HOSPITALS:
        command = [sys.executable, "-m", __spec__.name, str(hospitals)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        table.add(str(hospitals), *printed.strip().split("\t"))
        table.print_last()
    notes = [f"{FEATURES:,} features, {RECORDS:,} records in all, one thread"]
    record("one-round", "many-features", table, notes=notes)


def measure(hospitals: int) -> list[str]:
    """Return the cells of one number of hospitals."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    at_node: list[float] = []
    at_server: list[float] = []
    total = zero_sums(FEATURES, CLASSES)
    size = 0
    with threadpool_limits(1):
        for _ in range(hospitals):
            sums, seconds = sum_drawn(rng, RECORDS // hospitals)
            at_node.append(seconds)
            sent = sums_record(sums, round_=1, digest="", seconds=seconds)
            size = sum(array.count_bytes() for array in sent.array_records.values())
            started = time.perf_counter()
            read, _ = read_sums_record(sent, expected(sums.records))
            total = total + read
            at_server.append(time.perf_counter() - started)
        started = time.perf_counter()
        solve_ridge(standardise(total, ROUNDING.unit))
        solved = time.perf_counter() - started
    most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return [
        f"{statistics.median(at_node):.2f}",
        show_bytes(size),
        f"{statistics.median(at_server):.2f}",
        f"{solved:.1f}",
        show_bytes(most),
    ]


def sum_drawn(rng: np.random.Generator, records: int) -> tuple[GramSums, float]:
    """Return sums over features that are drawn, and the seconds that they took."""
    sums = zero_sums(FEATURES, CLASSES)
    seconds = 0.0
    for start in range(0, records, AT_ONCE):
        count = min(AT_ONCE, records - start)
        features = rng.standard_normal((count, FEATURES), np.float32)
        targets = np.eye(CLASSES, dtype=np.int64)[rng.integers(0, CLASSES, count)]
        started = time.perf_counter()
        sums = sums + sum_records(ROUNDING.to_integers(features), targets, ROUNDING.bits)
        seconds += time.perf_counter() - started
    return sums, seconds


def expected(records: int) -> ExpectedSums:
    """Return what the server holds a reply to."""
    return ExpectedSums(FEATURES, CLASSES, ROUNDING.bits, round=1, digest="", records=records)


if __name__ == "__main__":
    main()
