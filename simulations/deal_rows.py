"""Training rows dealt to hospitals, with flwr-datasets' partitioners.

Each kind of partition is a line of `PARTITIONERS`; `iid` needs none of them, and `files` deals
nothing.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgraft.common.errors import UserError
from fedgraft.common.plan.simulation_section import SimulationSection
from fedgraft.simulations.row_pool import Parts, RowPool

# draws before a partition is given up; Dirichlet tries eleven times within each
ATTEMPTS = 20
# kinds of partition of which another draw may give the smallest node more rows
DRAWN = ("dirichlet", "pathological")


class _BadDraw(Exception):
    """This draw cannot be; another may."""


def deal_training(
    simulation: SimulationSection,
    pool: RowPool,
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


def _check_draw(
    simulation: SimulationSection, pool: RowPool, rows: np.ndarray, parts: Parts
) -> None:
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
    simulation: SimulationSection, pool: RowPool, rows: np.ndarray, nodes: int, seed: int
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
