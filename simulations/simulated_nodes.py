"""The nodes of a simulation on disk: a node.yaml for each, as a hospital would write it.

write_nodes(plan, Path("plan.yaml"), Path("nodes"))     # nodes/node-0.yaml, node-0.rows.npz, …
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fedgraft.client.data.data_set import DataSource, Records, open_records
from fedgraft.client.data.find_reader import find_reader
from fedgraft.client.readers.pixel_form import PixelForm
from fedgraft.client.readers.scan_form import ScanForm
from fedgraft.common.errors import UserError
from fedgraft.common.files.whole_files import write_whole
from fedgraft.common.files.yaml_file import dump_yaml
from fedgraft.common.model.devices import spread_over
from fedgraft.common.plan.chosen_by_validation import calibrates, chooses_point, chooses_round
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.reading_section import ReadingSection
from fedgraft.common.plan.simulation_section import SimulationSection
from fedgraft.common.tasks import task_line
from fedgraft.simulations.partition import NodeRows, choose_names, partition
from fedgraft.simulations.shots import keep_shots, list_splits

# node.yaml, rows, a store with a link and its offers; and one to spare
FILES_OF_A_NODE = 6
NO_CLAUSES: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class _Share:
    """What of the data a node gets: a file, and which of its rows if not all."""

    name: str
    file: str
    rows: NodeRows | None = None


def write_nodes(
    plan: Plan,
    plan_path: Path,
    folder: Path,
    *,
    ledgers: Path | None = None,
    activations: Path | None = None,
    policy: Mapping[str, Any] = NO_CLAUSES,
    device: str = "cpu",
) -> list[Path]:
    """Write `node-K.yaml`, and `node-K.rows.npz` where nodes share a file, for each node of a
    simulation.

    Args:
        plan: its `simulation` says how; its `seed` is the seed of the draw.
        plan_path: the plan's file; data are looked up beside it, see
            `fedgraft.common.plan.data_files.resolve`.
        folder: where to write; made if it is not there.
        ledgers: folder of the nodes' privacy ledgers; default one inside `folder`.
        activations: folder of what frozen layers compute, shared by all nodes: once for the whole
            file; default one inside `folder`.
        policy: clauses of every node's policy, over those that a simulation has by itself.
        device: where nodes compute; over several cards they are spread.

    Returns:
        The paths of the node.yaml files, in the order of the nodes.

    Raises:
        UserError: the data is missing or not in order, or cannot be dealt out so.
    """
    simulation = plan.simulation
    if simulation is None:
        remedy = "add `simulation: {nodes: 8, data: FILE, partition: {kind: iid}}`"
        raise UserError("the plan has no simulation", where=str(plan_path), remedy=remedy)

    shares = _deal_shares(plan, simulation, plan_path)
    folder = folder.absolute()
    ledger_folder = (ledgers or folder / "ledgers").absolute()
    cache_folder = str(activations or folder / "activations")
    # each node verifies the backbone that it is sent; it lies on this disk once
    (folder / "store" / "backbones").mkdir(parents=True, exist_ok=True)
    _check_room(folder, len(shares))
    devices = spread_over(device, len(shares))
    paths = []
    for number, share in enumerate(shares):
        node = {
            "name": share.name,
            "data": _describe_data(plan, simulation, share, folder / f"node-{number}.rows.npz"),
            "store": str(_make_store(folder, number)),
            "ledger": str(ledger_folder / f"{share.name}.sqlite"),
            "cache": {"folder": cache_folder},
            "policy": {**_default_policy(simulation), **policy},
            "threads": plan.train.threads,
            "device": devices[number],
        }
        path = folder / f"node-{number}.yaml"
        write_whole(path, dump_yaml(node), durable=False)
        paths.append(path)
    return paths


# ── data ──────────────────────────────────────────────────────────────────────────────────────────
def _deal_shares(plan: Plan, simulation: SimulationSection, plan_path: Path) -> list[_Share]:
    files = [str(resolve(name, plan_path.parent)) for name in simulation.files]
    opened = [_open(plan, simulation, file) for file in files]
    _check_validation(plan, plan_path, opened)
    if simulation.partition.kind == "files":
        names = choose_names([Path(file).stem.removesuffix(".csv") for file in files])
        _check_files(simulation, opened)
        shares = []
        for name, file, records in zip(names, files, opened, strict=True):
            rows = None
            if simulation.shots is not None:
                rows = keep_shots(list_splits(name, records), records, simulation.shots, plan.seed)
            shares.append(_Share(name, file, rows))
        return shares
    dealt = partition(simulation, opened[0], plan.seed)
    if simulation.shots is not None:
        shots = simulation.shots
        dealt = [keep_shots(rows, opened[0], shots, plan.seed) for rows in dealt]
    return [_Share(rows.name, files[0], rows) for rows in dealt]


def _open(plan: Plan, simulation: SimulationSection, file: str) -> Records:
    data = DataSource(
        file,
        test_fraction=simulation.test_fraction,
        patient=simulation.patient,
        validation_fraction=plan.evaluate.validation_fraction,
        reading=_decide(plan, simulation),
        signal=plan.backbone.signal,
        form=PixelForm.of(plan.backbone),
        scan=ScanForm.of(plan.backbone),
    )
    return open_records(data, plan.task)


def _check_validation(plan: Plan, plan_path: Path, opened: Sequence[Records]) -> None:
    """Raise `UserError` where something is to be chosen, and there is nothing to choose by."""
    train = plan.train
    if not (chooses_round(train) or calibrates(train) or chooses_point(train)):
        return
    if not any(len(records.splits["val"]) for records in opened):
        raise UserError(
            "something is to be chosen by validation records, and the data has none",
            where=f"{plan_path}: train",
            remedy=(
                "write `evaluate: {validation_fraction: 0.2}`, or leave out keep, patience,"
                " calibrate and operating_point"
            ),
        )


def _decide(plan: Plan, simulation: SimulationSection) -> ReadingSection:
    """Return what is decided about the data: whoever simulates has written the plan's labels for
    them, and means those that they leave out.
    """
    if plan.task.labels is None:
        return simulation.reading
    return simulation.reading.model_copy(update={"labels_left_out": "allow"})


def _check_files(simulation: SimulationSection, opened: Sequence[Records]) -> None:
    """Raise `UserError` for a file with too few training examples."""
    least = simulation.partition.min_examples
    for records in opened:
        examples = len(records.splits["train"])
        if examples < least:
            raise UserError(
                f"{examples} training examples, fewer than {least}",
                where=records.source.where,
                remedy="lower simulation.partition.min_examples, or leave the file out",
            )


# ── one node ──────────────────────────────────────────────────────────────────────────────────────
def _describe_data(
    plan: Plan, simulation: SimulationSection, share: _Share, rows_file: Path
) -> dict[str, Any]:
    """Return the `data` of a node's file; write its rows where nodes share a file."""
    line = task_line(plan.task.question)
    asked = {"masks": line.has_masks, "boxes": line.has_boxes}
    reader = find_reader(share.file, None, plan.task.material, **asked)
    data: dict[str, Any] = {
        "path": share.file,
        "format": reader.name,
        "test_fraction": simulation.test_fraction,
        **_decide(plan, simulation).model_dump(mode="json", exclude_defaults=True),
    }
    if simulation.patient is not None:
        data["patient"] = simulation.patient
    if share.rows is not None:
        content = io.BytesIO()
        np.savez(content, train=share.rows.train, val=share.rows.val, test=share.rows.test)
        write_whole(rows_file, content.getvalue(), durable=False)
        data["rows"] = str(rows_file)
    return data


def _check_room(folder: Path, nodes: int) -> None:
    """Raise `UserError` where the disk has not as many inodes left as the nodes have files."""
    disk = os.statvfs(folder)
    needed = FILES_OF_A_NODE * nodes
    # 0 of 0: this file system does not count them
    if disk.f_files == 0 or disk.f_favail >= needed:
        return
    raise UserError(
        f"{nodes:,} nodes need some {needed:,} files, and the disk has room for {disk.f_favail:,}",
        where=str(folder),
        remedy="set TMPDIR to a folder on a disk with more inodes, or ask for fewer nodes",
    )


def _make_store(folder: Path, number: int) -> Path:
    """Make a node's store, with a link to the backbones of all."""
    store = folder / "store" / f"node-{number}"
    store.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (store / "backbones").symlink_to(Path("..", "backbones"))
    return store


def _default_policy(simulation: SimulationSection) -> dict[str, Any]:
    least = simulation.partition.min_examples
    return {
        "min_examples": least,
        # outside ε, as the result says
        "report_metrics": True,
        "round_counts": min(10, least),
        # a run that was killed goes on
        "replays": "count",
    }
