"""A round of histograms at one node, as one script: a table's constants are learnt from them.

    training records → numbers rounded to bfloat16 → how often each occurs → what goes back

The node's model is not asked: what leaves depends on the training records and the plan's columns.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from fedgraft.client.data.examples import Examples
from fedgraft.client.node_task import NodeTask
from fedgraft.client.round import check_frozen
from fedgraft.common.errors import Code, Refused
from fedgraft.common.inputs.image_and_table import ROW
from fedgraft.common.inputs.input_positions import number_inputs
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.statistics.histograms import (
    TableHistograms,
    count_columns,
    empty_histograms,
)

# records that are counted together, and prepared together: each may have an image beside its row
COUNTED = 4096
PREPARED = 256


@dataclass(frozen=True)
class HistogramOutcome:
    """Histograms of a node's training records, and the seconds that they took."""

    histograms: TableHistograms
    seconds: float


def run_histogram_round(task: NodeTask) -> HistogramOutcome:
    """Return the histograms of the numbers in this node's training records.

    Raises:
        Refused: the backbone is not the one agreed on, or the plan is under differential privacy:
            no noise is added here.
    """
    started = time.perf_counter()
    mode = task.plan.privacy.mode
    if mode != "none":
        what = f"privacy.mode {mode}: histograms have no noise; nothing is sent"
        raise Refused(Code.POLICY, what)
    check_frozen(task, read=False)
    histograms = count_split(task.train, task.plan)
    return HistogramOutcome(histograms, time.perf_counter() - started)


def count_split(examples: Examples, plan: Agreement) -> TableHistograms:
    """Return the histograms of the numbers among a table's inputs, over all examples."""
    numbers = number_inputs(plan.task.category_sizes)
    total = empty_histograms(len(numbers))
    for positions in torch.arange(len(examples)).split(COUNTED):
        parts: list[np.ndarray] = []
        for some in positions.split(PREPARED):
            rows = examples.inputs(some).tensors[ROW].numpy()
            parts.append(rows[:, numbers])
        total = total + count_columns(np.concatenate(parts).astype(np.float32, copy=False))
    return total
