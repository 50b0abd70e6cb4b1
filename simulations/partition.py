"""One data set → several hospitals, with flwr-datasets' partitioners.

    rows = partition(plan.simulation, records, seed=7)
    rows[0].name, rows[0].train     # "node-0", array([3, 17, …])

Training rows are dealt out by the partitioner. Validation and test rows then follow: each class is
dealt in proportion to the nodes' training rows of it. So a node's tests look like its own data, and
all nodes' tests together are the data's own test split. Where the data say whose each row is, whole
patients are dealt out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgraft.client.data.data_set import Records
from fedgraft.common.errors import UserError
from fedgraft.common.plan.simulation_section import SimulationSection
from fedgraft.simulations.deal_rows import deal_training
from fedgraft.simulations.row_pool import Parts, RowPool, open_pool


@dataclass(frozen=True, eq=False)
class NodeRows:
    """The rows of one file that a node gets: row numbers, int64, rising."""

    name: str
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def partition(simulation: SimulationSection, records: Records, seed: int) -> list[NodeRows]:
    """Deal one file's rows to nodes. The same seed gives the same rows.

    Every row of the task goes to exactly one node, in the split that it was in.

    Args:
        simulation: how many nodes and which partitioner (any but `files`).
        records: the file under the plan's task.
        seed: of the draw.

    Raises:
        UserError: more nodes than rows, a node below `min_examples`, or classes that no node would
            get.
    """
    pool = open_pool(simulation, records)
    rng = np.random.default_rng([seed, 0])
    rows = rng.permutation(pool.first_rows(pool.train))
    nodes = _count_nodes(simulation, pool, rows)
    dealt = deal_training(simulation, pool, rows, nodes, rng)
    names = _name_nodes(pool, dealt)
    _check_least(simulation, names, dealt)

    validation = _deal_held_out(pool, "val", dealt, np.random.default_rng([seed, 1]))
    test = _deal_held_out(pool, "test", dealt, np.random.default_rng([seed, 2]))
    nodes_rows = []
    for name, *parts in zip(names, dealt, validation, test, strict=True):
        nodes_rows.append(NodeRows(name, *map(_sort, parts)))
    return nodes_rows


def choose_names(texts: Sequence[str]) -> list[str]:
    """Return names of nodes from file names or column values; numbers where two would be the
    same.
    """
    names = [re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64] for name in texts]
    distinct = {name.lower() for name in names}
    if len(distinct) < len(names) or not all(names):
        return _number_nodes(len(names))
    return names


def _number_nodes(nodes: int) -> list[str]:
    return [f"node-{number}" for number in range(nodes)]


def _name_nodes(pool: RowPool, dealt: Parts) -> list[str]:
    if pool.values is None:
        return _number_nodes(len(dealt))
    return choose_names([str(pool.owner_of(part)) for part in dealt])


def _sort(part: np.ndarray) -> np.ndarray:
    return np.sort(part).astype(np.int64)


# ── how many nodes ────────────────────────────────────────────────────────────────────────────────
def _count_nodes(simulation: SimulationSection, pool: RowPool, rows: np.ndarray) -> int:
    """Return how many nodes there are. Raise `UserError` where the rows are too few for them."""
    if pool.values is not None:
        return simulation.nodes or len(set(pool.values[rows].tolist()))

    nodes = simulation.nodes or 1
    least = simulation.partition.min_examples
    examples = len(pool.train)
    patients = len(rows)
    if nodes * least <= examples and nodes <= patients:
        return nodes

    among = f"there are {examples}"
    if patients < examples:
        among += f" of {patients} patients"
    most = min(examples // least, patients)
    raise UserError(
        f"{nodes} nodes of at least {least} training examples, but {among}",
        where="simulation.nodes",
        remedy=f"ask for at most {most} nodes, or lower simulation.partition.min_examples",
    )


def _check_least(simulation: SimulationSection, names: Sequence[str], dealt: Parts) -> None:
    least = simulation.partition.min_examples
    for name, part in zip(names, dealt, strict=True):
        if len(part) < least:
            raise UserError(
                f"{name} has {len(part)} training examples, fewer than {least}",
                where="simulation.partition.min_examples",
                remedy="lower it, or deal the data to other nodes",
            )


# ── validation and test rows ──────────────────────────────────────────────────────────────────────
def _deal_held_out(pool: RowPool, split: str, dealt: Parts, rng: np.random.Generator) -> Parts:
    """Return held-out rows by node: by the column that says whose they are, or else each class in
    proportion to the nodes' training rows of that class.
    """
    rows = pool.records.splits[split]
    if pool.values is not None:
        return _deal_by_column(rows, pool.values[rows], [pool.owner_of(part) for part in dealt])

    first = pool.first_rows(rows)
    labels = pool.labels
    counts = _count_classes(labels, dealt)
    parts: list[Parts] = [[] for _ in dealt]
    for label in range(counts.shape[1]):
        members = rng.permutation(first[labels[first] == label])
        weights = counts[:, label]
        if not weights.any():
            weights = counts.sum(axis=1)
        ends = np.cumsum(_apportion(len(members), weights, rng))[:-1]
        for part, share in zip(parts, np.split(members, ends), strict=True):
            part.append(share)
    return pool.complete([np.concatenate(part) for part in parts], rows)


def _deal_by_column(rows: np.ndarray, values: np.ndarray, owners: Sequence[Any]) -> Parts:
    """Return the rows of each owner, rising: sorted once, not looked through for each."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.searchsorted(ordered, owners, side="left")
    last = np.searchsorted(ordered, owners, side="right")
    return [rows[order[start:end]] for start, end in zip(first, last, strict=True)]


def _count_classes(labels: np.ndarray, dealt: Parts) -> np.ndarray:
    """Return the training rows of each class at each node, `(nodes, classes)`."""
    classes = int(labels.max()) + 1
    return np.stack([np.bincount(labels[part], minlength=classes) for part in dealt])


def _apportion(total: int, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return whole shares of `total` in proportion to weights: largest remainders, equal ones drawn
    by lot.
    """
    quotas = total * weights / weights.sum()
    shares = np.floor(quotas).astype(np.int64)
    order = np.lexsort((rng.permutation(len(weights)), shares - quotas))
    missing = total - shares.sum()
    shares[order[:missing]] += 1
    return shares
