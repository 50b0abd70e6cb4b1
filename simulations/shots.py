"""A few training records of each class, as many episodes of few-shot learning as seeds.

    rows = keep_shots(rows, records, shots=5, seed=7)

Tests stay as they are: an episode is another draw of what is learnt from.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedgraft.client.data.data_set import Records
from fedgraft.simulations.partition import NodeRows


def list_splits(name: str, records: Records) -> NodeRows:
    """Return all rows of a file as one node's."""
    splits = records.splits
    return NodeRows(name, splits["train"], splits["val"], splits["test"])


def keep_shots(rows: NodeRows, records: Records, shots: int, seed: int) -> NodeRows:
    """Return a node's rows with at most so many training rows of each class, drawn by the seed and
    the node's name.
    """
    rng = np.random.default_rng([seed, *rows.name.encode()])
    strata = records.strata[rows.train]
    kept: list[np.ndarray] = []
    for stratum in np.unique(strata):
        members = rng.permutation(rows.train[strata == stratum])
        kept.append(members[:shots])
    return replace(rows, train=np.sort(np.concatenate(kept)))
