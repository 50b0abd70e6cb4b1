"""One data set → several hospitals, with flwr-datasets' partitioners.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fedgraft.client.data.data_set import DataSource, Records, TaskData, open_records
from fedgraft.client.data.find_reader import find_reader
from fedgraft.common.errors import UserError
from fedgraft.common.files.whole_files import write_whole
from fedgraft.common.files.yaml_file import dump_yaml
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.simulation_section import SimulationSection

NO_CLAUSES: Mapping[str, Any] = MappingProxyType({})
ATTEMPTS = 20  # draws before a partition is given up; Dirichlet tries eleven times within each


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
    kind, least = simulation.partition.kind, simulation.partition.min_examples
    values = None
    if kind == "column":
        values = np.array(_column(simulation, records))
    firsts = np.arange(len(records.labels)) if values is not None else _first_rows(records)
    train = records.splits["train"]
    rng = np.random.default_rng([seed, 0])
    rows = rng.permutation(train[firsts[train] == train])
    nodes = simulation.nodes or (len(set(values[rows].tolist())) if values is not None else 1)
    if kind != "column" and (nodes * least > len(train) or nodes > len(rows)):
        among = f"there are {len(train)}" + (
            f" of {len(rows)} patients" if len(rows) < len(train) else ""
        )
        raise UserError(
            f"{nodes} nodes of at least {least} training examples, but {among}",
            where="simulation.nodes",
            remedy=(
                f"ask for at most {min(len(train) // least, len(rows))} nodes, or lower "
                "simulation.partition.min_examples"
            ),
        )
    dealt = _deal_train(simulation, records, rows, firsts, values, nodes, rng)
    names = [f"node-{number}" for number in range(nodes)]
    if values is not None:
        names = _names([str(values[part[0]]) for part in dealt])
    for name, part in zip(names, dealt, strict=True):
        if len(part) < least:
            raise UserError(
                f"{name} has {len(part)} training examples, fewer than {least}",
                where="simulation.partition.min_examples",
                remedy="lower it, or deal the data to other nodes",
            )
    others = {}
    for number, split in enumerate(("val", "test"), start=1):
        held = records.splits[split]
        if values is not None:  # the column says whose they are
            others[split] = [held[values[held] == values[part[0]]] for part in dealt]
        else:
            others[split] = _deal_alike(
                held, firsts, records.labels, dealt, np.random.default_rng([seed, number])
            )
    columns = (names, dealt, others["val"], others["test"])
    return [
        NodeRows(name, *(np.sort(part).astype(np.int64) for part in parts))
        for name, *parts in zip(*columns, strict=True)
    ]


def write_nodes(
    plan: Plan,
    plan_path: Path,
    folder: Path,
    *,
    ledgers: Path | None = None,
    activations: Path | None = None,
    policy: Mapping[str, Any] = NO_CLAUSES,
) -> list[Path]:
    """Write `node-K.yaml`, and `node-K.rows.npz` where nodes share a file, for each node of a
    simulation.

    Args:
        plan: its `simulation` says how; its `seed` is the seed of the draw.
        plan_path: the plan's file; data are looked up beside it, see
            `fedgraft.common.plan.plan_file.resolve`.
        folder: where to write; made if it is not there.
        ledgers: folder of the nodes' privacy ledgers; default one inside `folder`.
        activations: folder of what frozen layers compute, shared by all nodes: once for the whole
            file; default one inside `folder`.
        policy: clauses of every node's policy, over those that a simulation has by itself.

    Returns:
        The paths of the node.yaml files, in the order of the nodes.

    Raises:
        UserError: the data is missing or not in order, or cannot be dealt out so.
    """
    simulation = plan.simulation
    if simulation is None:
        remedy = "add `simulation: {nodes: 8, data: FILE, partition: {kind: iid}}`"
        raise UserError("the plan has no simulation", where=str(plan_path), remedy=remedy)
    files = [str(resolve(name, plan_path.parent)) for name in simulation.files]
    opened = [_open(plan, simulation, file) for file in files]
    shares: list[tuple[str, str, NodeRows | None]]
    if simulation.partition.kind == "files":
        shares = [
            (name, file, None)
            for name, file in zip(_names([Path(f).stem for f in files]), files, strict=True)
        ]
        _check_files(simulation, opened)
    else:
        shares = [
            (rows.name, files[0], rows) for rows in partition(simulation, opened[0], plan.seed)
        ]

    folder = folder.absolute()
    backbones = (
        folder / "store" / "backbones"
    )  # each node verifies what it is sent; it lies on this disk once
    backbones.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (name, file, rows) in enumerate(shares):
        data: dict[str, Any] = {
            "path": file,
            "format": find_reader(file, None, TaskData.of(plan.task).content).name,
            "test_fraction": simulation.test_fraction,
        }
        if rows is not None:
            data["rows"] = str(folder / f"node-{number}.rows.npz")
            content = io.BytesIO()
            np.savez(content, train=rows.train, val=rows.val, test=rows.test)
            write_whole(Path(data["rows"]), content.getvalue(), durable=False)
        store = folder / "store" / f"node-{number}"
        store.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (store / "backbones").symlink_to(Path("..", "backbones"))
        node = {
            "name": name,
            "data": data,
            "store": str(store),
            "ledger": str((ledgers or folder / "ledgers").absolute() / f"{name}.sqlite"),
            "cache": {"folder": str(activations or folder / "activations")},
            "policy": {
                "min_examples": simulation.partition.min_examples,
                "report_metrics": True,  # outside ε, as the result says
                "round_counts": min(10, simulation.partition.min_examples),
                "seeded_noise": True,  # so that a simulation can be repeated
                "replays": "count",  # a run that was killed goes on
                **policy,
            },
            "threads": plan.train.threads,
        }
        path = folder / f"node-{number}.yaml"
        write_whole(path, dump_yaml(node), durable=False)
        paths.append(path)
    return paths


def _open(plan: Plan, simulation: SimulationSection, file: str) -> Records:
    data = DataSource(file, test_fraction=simulation.test_fraction)
    return open_records(data, TaskData.of(plan.task))


# ── training rows ─────────────────────────────────────────────────────────────────────────────────


def _deal_train(
    simulation: SimulationSection,
    records: Records,
    rows: np.ndarray,
    firsts: np.ndarray,
    values: np.ndarray | None,
    nodes: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Training rows by node. `rows`, the first one of each patient, are shuffled already:
    flwr-datasets' IID partitioner cuts them in order; that is done here, without its two seconds of
    imports.
    """
    if simulation.partition.kind == "iid":
        return _with_all_rows(np.array_split(rows, nodes), records.splits["train"], firsts)
    from datasets import Dataset

    table: dict[str, list] = {"row": rows.tolist(), "label": records.labels[rows].tolist()}
    if values is not None:
        table["column"] = values[rows].tolist()
    dataset = Dataset.from_dict(table)
    least = simulation.partition.min_examples
    least_patients = least if len(rows) == len(records.splits["train"]) else 1
    reason = ""
    for _ in range(ATTEMPTS):
        with _quiet():
            try:
                partitioner = _partitioner(
                    simulation, table, nodes, int(rng.integers(2**31)), least_patients
                )
                partitioner.dataset = dataset
                parts = [
                    np.array(partitioner.load_partition(k)["row"][:], np.int64)
                    for k in range(nodes)
                ]
            except ValueError as error:  # this draw cannot be; another may
                reason = str(error).split(".")[0]
                continue
        parts = _with_all_rows(parts, records.splits["train"], firsts)
        missing = set(table["label"]) - set(records.labels[np.concatenate(parts)].tolist())
        if missing:
            reason = f"no node would get {len(missing)} of the classes"
        elif _depends_on_draw(simulation) and min(map(len, parts)) < least:
            reason = (
                f"a node would get {min(map(len, parts))} training examples, fewer than {least}"
            )
        else:
            return parts
    raise UserError(
        f"{len(rows)} training examples cannot be dealt to {nodes} nodes so ({reason})",
        where=f"simulation.partition: {simulation.partition.kind}",
        remedy=(
            "ask for fewer nodes, a larger alpha, other classes_per_node, or a smaller min_examples"
        ),
    )


def _first_rows(records: Records) -> np.ndarray:
    """For each row of the task the first row of its patient in its split: itself, where patients
    are not known.
    """
    firsts = np.arange(len(records.labels))
    if records.owners is None:
        return firsts
    for rows in records.splits.values():
        seen: dict[str, int] = {}
        for row in rows.tolist():
            firsts[row] = seen.setdefault(records.owners[row], row)
    return firsts


def _with_all_rows(
    parts: list[np.ndarray], rows: np.ndarray, firsts: np.ndarray
) -> list[np.ndarray]:
    """For each part all of the rows whose patient's first row is in it."""
    if len(np.unique(firsts[rows])) == len(rows):  # each patient has one row
        return parts
    return [rows[np.isin(firsts[rows], part)] for part in parts]


def _depends_on_draw(simulation: SimulationSection) -> bool:
    """Whether another draw may give the smallest node more rows."""
    return simulation.partition.kind in ("dirichlet", "pathological")


def _partitioner(
    simulation: SimulationSection, table: dict[str, list], nodes: int, seed: int, least: int
) -> Any:
    from flwr_datasets import partitioner as flower

    wanted = simulation.partition
    if wanted.kind == "dirichlet":
        return flower.DirichletPartitioner(
            nodes, "label", wanted.alpha, min_partition_size=least, seed=seed
        )
    if wanted.kind == "column":
        return flower.NaturalIdPartitioner("column")
    present = len(set(table["label"]))
    if wanted.classes_per_node > present or nodes * wanted.classes_per_node < present:
        raise UserError(
            f"{wanted.classes_per_node} classes at each of {nodes} nodes, and the data have"
            f" {present}",
            where="simulation.partition.classes_per_node",
            remedy=f"write a number from {-(-present // nodes)} to {present}",
        )
    return flower.PathologicalPartitioner(
        nodes,
        "label",
        wanted.classes_per_node,
        class_assignment_mode="first-deterministic",
        seed=seed,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """flwr-datasets warns about each draw that it repeats and shows a progress bar; neither is news
    here.
    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


# ── validation and test rows ──────────────────────────────────────────────────────────────────────


def _deal_alike(
    held: np.ndarray,
    firsts: np.ndarray,
    labels: np.ndarray,
    dealt: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Held-out rows by node, each class in proportion to the nodes' training rows of that class."""
    first = held[firsts[held] == held]
    classes = int(labels.max()) + 1
    counts = np.stack([np.bincount(labels[part], minlength=classes) for part in dealt])
    parts: list[list[np.ndarray]] = [[] for _ in dealt]
    for label in range(classes):
        members = rng.permutation(first[labels[first] == label])
        weights = counts[:, label] if counts[:, label].any() else counts.sum(axis=1)
        ends = np.cumsum(_apportion(len(members), weights, rng))[:-1]
        for part, share in zip(parts, np.split(members, ends), strict=True):
            part.append(share)
    return _with_all_rows([np.concatenate(part) for part in parts], held, firsts)


def _apportion(total: int, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole shares of `total` in proportion to weights: largest remainders, equal ones drawn by
    lot.
    """
    quotas = total * weights / weights.sum()
    shares = np.floor(quotas).astype(np.int64)
    order = np.lexsort((rng.permutation(len(weights)), shares - quotas))
    shares[order[: total - shares.sum()]] += 1
    return shares


# ── names, columns, files ─────────────────────────────────────────────────────────────────────────


def _column(simulation: SimulationSection, records: Records) -> list[str]:
    """Whose each row is, as text; every row of the task must say."""
    name = simulation.partition.column or ""
    values = records.column(name)
    rows = np.concatenate(list(records.splits.values()))
    empty = [row for row in rows.tolist() if not values[row]]
    if empty:
        raise UserError(
            f"column {name!r}: empty in {len(empty)} rows",
            where=records.source.place(empty[0]),
            remedy="say for every row whose it is, or take the row out",
        )
    found = {values[row] for row in rows.tolist()}
    trained = {values[row] for row in records.splits["train"].tolist()}
    if found - trained:
        what = f"column {name!r}: {sorted(found - trained)[0]!r} has no training examples"
        raise UserError(
            what, where=records.source.where, remedy="take its rows out, or add to them"
        )
    if simulation.nodes is not None and simulation.nodes != len(found):
        raise UserError(
            f"{simulation.nodes} nodes, but column {name!r} has {len(found)} values",
            where="simulation.nodes",
            remedy="leave it out: each value is a node",
        )
    return values


def _names(wanted: Sequence[str]) -> list[str]:
    """Names of nodes from file names or column values; numbers where two would be the same."""
    names = [re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64] for name in wanted]
    if len({name.lower() for name in names}) < len(names) or not all(names):
        return [f"node-{number}" for number in range(len(names))]
    return names


def _check_files(simulation: SimulationSection, opened: Sequence[Records]) -> None:
    least = simulation.partition.min_examples
    for records in opened:
        if len(records.splits["train"]) < least:
            raise UserError(
                f"{len(records.splits['train'])} training examples, fewer than {least}",
                where=records.source.where,
                remedy="lower simulation.partition.min_examples, or leave the file out",
            )
