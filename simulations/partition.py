"""One data set → several hospitals, with flwr-datasets' partitioners.

    rows = partition(plan.simulation, records, seed=7)
    rows[0].name, rows[0].train     # "node-0", array([3, 17, …])

Training rows are dealt out by the partitioner. Validation and test rows then follow: each class is
dealt in proportion to the nodes' training rows of it. So a node's tests look like its own data, and
all nodes' tests together are the data's own test split. Where the data say whose each row is, whole
patients are dealt out.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgraft.client.data.data_set import Records
from fedgraft.common.errors import UserError
from fedgraft.common.plan.simulation_section import SimulationSection

# draws before a partition is given up; Dirichlet tries eleven times within each
ATTEMPTS = 20
# kinds of partition of which another draw may give the smallest node more rows
DRAWN = ("dirichlet", "pathological")

# row numbers of the file, int64, by node
Parts = list[np.ndarray]


@dataclass(frozen=True, eq=False)
class NodeRows:
    """The rows of one file that a node gets: row numbers, int64, rising."""

    name: str
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


@dataclass(frozen=True, eq=False)
class _Pool:
    """The rows that are dealt, and what must stay together.

    Attributes:
        firsts: for each row of the task the first row of its patient in its split.
        values: of the column that says whose each row is, by row; None where no column does.
    """

    records: Records
    firsts: np.ndarray
    values: np.ndarray | None

    @property
    def train(self) -> np.ndarray:
        """The training rows."""
        return self.records.splits["train"]

    @property
    def labels(self) -> np.ndarray:
        """The class of each row of the task."""
        return self.records.labels

    def first_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the first row of each patient among rows of one split."""
        return rows[self.firsts[rows] == rows]

    def complete(self, parts: Parts, rows: np.ndarray) -> Parts:
        """Return for each part all of the rows whose patient's first row is in it."""
        each_once = len(np.unique(self.firsts[rows])) == len(rows)
        if each_once:
            return parts
        return [rows[np.isin(self.firsts[rows], part)] for part in parts]

    def owner_of(self, part: np.ndarray) -> Any:
        """Return the value of the column in a part dealt by it."""
        assert self.values is not None
        return self.values[part[0]]


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
    pool = _open_pool(simulation, records)
    rng = np.random.default_rng([seed, 0])
    rows = rng.permutation(pool.first_rows(pool.train))
    nodes = _count_nodes(simulation, pool, rows)
    dealt = _deal_training(simulation, pool, rows, nodes, rng)
    names = _name_nodes(pool, dealt)
    _check_least(simulation, names, dealt)

    validation = _deal_held_out(pool, "val", dealt, np.random.default_rng([seed, 1]))
    test = _deal_held_out(pool, "test", dealt, np.random.default_rng([seed, 2]))
    nodes_rows = []
    for name, *parts in zip(names, dealt, validation, test, strict=True):
        nodes_rows.append(NodeRows(name, *map(_sort, parts)))
    return nodes_rows


def choose_names(wanted: Sequence[str]) -> list[str]:
    """Return names of nodes from file names or column values; numbers where two would be the
    same.
    """
    names = [re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64] for name in wanted]
    distinct = {name.lower() for name in names}
    if len(distinct) < len(names) or not all(names):
        return _number_nodes(len(names))
    return names


def _number_nodes(nodes: int) -> list[str]:
    return [f"node-{number}" for number in range(nodes)]


def _name_nodes(pool: _Pool, dealt: Parts) -> list[str]:
    if pool.values is None:
        return _number_nodes(len(dealt))
    return choose_names([str(pool.owner_of(part)) for part in dealt])


def _sort(part: np.ndarray) -> np.ndarray:
    return np.sort(part).astype(np.int64)


# ── what is dealt, and to how many ────────────────────────────────────────────────────────────────
def _open_pool(simulation: SimulationSection, records: Records) -> _Pool:
    if simulation.partition.kind == "column":
        values = np.array(_read_column(simulation, records))
        return _Pool(records, np.arange(len(records.labels)), values)
    return _Pool(records, _find_first_rows(records), None)


def _find_first_rows(records: Records) -> np.ndarray:
    """Return for each row of the task the first row of its patient in its split: itself, where
    patients are not known.
    """
    firsts = np.arange(len(records.labels))
    if records.owners is None:
        return firsts
    for rows in records.splits.values():
        seen: dict[str, int] = {}
        for row in rows.tolist():
            firsts[row] = seen.setdefault(records.owners[row], row)
    return firsts


def _read_column(simulation: SimulationSection, records: Records) -> list[str]:
    """Return whose each row is, as text. Raise `UserError` unless every row of the task says it and
    each value has training rows.
    """
    name = simulation.partition.column or ""
    values = records.column(name)
    rows = np.concatenate(list(records.splits.values())).tolist()
    empty = [row for row in rows if not values[row]]
    if empty:
        raise UserError(
            f"column {name!r}: empty in {len(empty)} rows",
            where=records.source.place(empty[0]),
            remedy="say for every row whose it is, or take the row out",
        )

    distinct = {values[row] for row in rows}
    trained = {values[row] for row in records.splits["train"].tolist()}
    untrained = sorted(distinct - trained)
    if untrained:
        what = f"column {name!r}: {untrained[0]!r} has no training examples"
        remedy = "take its rows out, or add to them"
        raise UserError(what, where=records.source.where, remedy=remedy)
    if simulation.nodes not in (None, len(distinct)):
        raise UserError(
            f"{simulation.nodes} nodes, but column {name!r} has {len(distinct)} values",
            where="simulation.nodes",
            remedy="leave it out: each value is a node",
        )
    return values


def _count_nodes(simulation: SimulationSection, pool: _Pool, rows: np.ndarray) -> int:
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


# ── training rows ─────────────────────────────────────────────────────────────────────────────────
class _BadDraw(Exception):
    """This draw cannot be; another may."""


def _deal_training(
    simulation: SimulationSection,
    pool: _Pool,
    rows: np.ndarray,
    nodes: int,
    rng: np.random.Generator,
) -> Parts:
    """Return training rows by node.

    Args:
        rows: the first one of each patient, shuffled already: flwr-datasets' IID partitioner cuts
            them in order; that is done here, without its two seconds of imports.
    """
    kind = simulation.partition.kind
    if kind == "iid":
        return pool.complete(np.array_split(rows, nodes), pool.train)

    reason = ""
    for _ in range(ATTEMPTS):
        try:
            parts = _draw(simulation, pool, rows, nodes, int(rng.integers(2**31)))
            parts = pool.complete(parts, pool.train)
            _check_draw(simulation, pool, rows, parts)
        except _BadDraw as error:
            reason = str(error)
            continue
        return parts
    raise UserError(
        f"{len(rows)} training examples cannot be dealt to {nodes} nodes so ({reason})",
        where=f"simulation.partition: {kind}",
        remedy=(
            "ask for fewer nodes, a larger alpha, other classes_per_node, or a smaller min_examples"
        ),
    )


def _check_draw(simulation: SimulationSection, pool: _Pool, rows: np.ndarray, parts: Parts) -> None:
    """Raise `_BadDraw` where a class would be at no node, or a node would get too few rows."""
    present = set(pool.labels[rows].tolist())
    dealt = set(pool.labels[np.concatenate(parts)].tolist())
    missing = present - dealt
    if missing:
        raise _BadDraw(f"no node would get {len(missing)} of the classes")
    least = simulation.partition.min_examples
    smallest = min(map(len, parts))
    if simulation.partition.kind in DRAWN and smallest < least:
        raise _BadDraw(f"a node would get {smallest} training examples, fewer than {least}")


def _draw(
    simulation: SimulationSection, pool: _Pool, rows: np.ndarray, nodes: int, seed: int
) -> Parts:
    """Return rows by node as flwr-datasets deals them. Raise `_BadDraw` where it cannot."""
    # here, since `iid` need not wait two seconds for it
    from datasets import Dataset

    labels = pool.labels[rows].tolist()
    table: dict[str, list[Any]] = {"row": rows.tolist(), "label": labels}
    if pool.values is not None:
        table["column"] = pool.values[rows].tolist()
    each_once = len(rows) == len(pool.train)
    least = simulation.partition.min_examples if each_once else 1
    make = PARTITIONERS[simulation.partition.kind]
    parts = []
    with _quiet():
        try:
            partitioner = make(simulation, _Draw(nodes, seed, least, len(set(labels))))
            partitioner.dataset = Dataset.from_dict(table)
            for number in range(nodes):
                part = partitioner.load_partition(number)
                parts.append(np.array(part["row"][:], np.int64))
        except ValueError as error:
            first, _, _ = str(error).partition(".")
            raise _BadDraw(first) from error
    return parts


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let flwr-datasets neither warn about each draw that it repeats nor show a progress bar."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


# ── flwr-datasets' partitioners, by the kind of partition ─────────────────────────────────────────
@dataclass(frozen=True)
class _Draw:
    """One draw: to how many nodes, its seed, the fewest rows of a node, the classes there are."""

    nodes: int
    seed: int
    least: int
    classes: int


def _make_dirichlet(simulation: SimulationSection, draw: _Draw) -> Any:
    from flwr_datasets.partitioner import DirichletPartitioner

    return DirichletPartitioner(
        draw.nodes,
        "label",
        simulation.partition.alpha,
        min_partition_size=draw.least,
        seed=draw.seed,
    )


def _make_natural(simulation: SimulationSection, draw: _Draw) -> Any:
    from flwr_datasets.partitioner import NaturalIdPartitioner

    return NaturalIdPartitioner("column")


def _make_pathological(simulation: SimulationSection, draw: _Draw) -> Any:
    from flwr_datasets.partitioner import PathologicalPartitioner

    each = simulation.partition.classes_per_node
    if each > draw.classes or draw.nodes * each < draw.classes:
        fewest = -(-draw.classes // draw.nodes)
        raise UserError(
            f"{each} classes at each of {draw.nodes} nodes, and the data have {draw.classes}",
            where="simulation.partition.classes_per_node",
            remedy=f"write a number from {fewest} to {draw.classes}",
        )
    return PathologicalPartitioner(
        draw.nodes,
        "label",
        each,
        class_assignment_mode="first-deterministic",
        seed=draw.seed,
    )


PARTITIONERS: Mapping[str, Callable[[SimulationSection, _Draw], Any]] = {
    "dirichlet": _make_dirichlet,
    "column": _make_natural,
    "pathological": _make_pathological,
}


# ── validation and test rows ──────────────────────────────────────────────────────────────────────
def _deal_held_out(pool: _Pool, split: str, dealt: Parts, rng: np.random.Generator) -> Parts:
    """Return held-out rows by node: by the column that says whose they are, or else each class in
    proportion to the nodes' training rows of that class.
    """
    rows = pool.records.splits[split]
    if pool.values is not None:
        return [rows[pool.values[rows] == pool.owner_of(part)] for part in dealt]

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
