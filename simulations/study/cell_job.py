"""One cell of a study, in a process of its own: its federation, its baselines, its attacks.

A cell is finished when its result.json is completed and of its plan's hash; it is not run again.
What measures a cell: the closed registry in `simulations/attacks/`, name → function `(plan, run,
nodes, seed)` → numbers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedgraft.common import run_files
from fedgraft.common.errors import RunFailed, UserError
from fedgraft.common.extensions import offer_extension, offered_extensions
from fedgraft.common.files.whole_files import write_json
from fedgraft.common.plan.plan_file import plan_hash
from fedgraft.common.plan.privacy_section import PrivacySection
from fedgraft.server.papers.run_folder import RunFolder
from fedgraft.simulations.attacks import ATTACKS
from fedgraft.simulations.engines.engine import EngineOptions, nodes_on_disk
from fedgraft.simulations.report.attack_results import read_attack_results
from fedgraft.simulations.simulate import SeedJob, SimulationOptions, run_seed
from fedgraft.simulations.study.cells import Cell

# baselines that are the same whatever the plan's privacy
UNPROTECTED = ("alone", "pooled", "full")


@dataclass(frozen=True)
class CellJob:
    """All that a worker process needs for one cell."""

    plan_file: Path
    cell: Cell
    # the plan's folder: its files are looked up there
    base: Path
    # the study's folder
    out: Path
    engine: str
    baselines: tuple[str, ...]
    attacks: tuple[str, ...]
    # where nodes compute
    device: str = "cpu"
    # clauses of every node's policy
    policy: Mapping[str, Any] = field(default_factory=dict)
    # folders of code that plans may name, of the process that started this one
    extensions: tuple[Path, ...] = field(default_factory=offered_extensions)

    @property
    def run(self) -> Path:
        """The cell's folder."""
        return self.out / "cells" / self.cell.folder

    @property
    def data_anchor(self) -> Path:
        """A file in the plan's folder, beside which data are looked up."""
        return self.base / run_files.PLAN

    def read_result(self) -> dict[str, Any] | None:
        """Return result.json if the cell is finished and of this plan, else None."""
        try:
            result = json.loads((self.run / run_files.RESULT).read_text())
        except (OSError, ValueError):
            return None
        if not isinstance(result, dict):
            return None
        completed = result.get("status") == "completed"
        if completed and result.get("plan_hash") == self.cell.plan_hash:
            return result
        return None

    def is_done(self) -> bool:
        """Return whether the cell was run, with all that the study asks of it."""
        if not self.is_federated():
            return False
        return set(self.attacks) <= set(read_attack_results(self.run))

    def is_federated(self) -> bool:
        """Return whether the cell was run with all its baselines."""
        result = self.read_result()
        return result is not None and set(self.baselines) <= set(result["baselines"])


def run_cell(job: CellJob) -> str:
    """Run one cell, its baselines and its attacks. Return why it failed, or an empty text."""
    torch.set_num_threads(1)
    logging.getLogger("fedgraft").setLevel(logging.ERROR)
    try:
        for folder in job.extensions:
            offer_extension(folder)
        if not job.is_federated():
            _federate(job)
        _attack(job)
    except (UserError, RunFailed, OSError) as error:
        return str(error)
    except Exception as error:
        # one cell's trouble is not the others'
        return f"{type(error).__name__}: {error}"
    return ""


def _federate(job: CellJob) -> None:
    """Run the cell's federation from its first round; take over baselines that another cell has
    measured.
    """
    known = _read_shared_baselines(job)
    missing = tuple(name for name in job.baselines if name not in known)
    shutil.rmtree(job.run, ignore_errors=True)
    options = SimulationOptions(
        engine=EngineOptions(job.engine, workers=1, device=job.device),
        baselines=missing,
        policy=dict(job.policy),
        quiet=True,
        pages=False,
    )
    overrides = tuple(job.cell.overrides)
    seed_job = SeedJob(job.plan_file, job.data_anchor, overrides, job.run, options)
    result = run_seed(seed_job)
    for name in missing:
        file = _shared_file(job, name)
        file.parent.mkdir(exist_ok=True)
        write_json(file, result.baselines[name])
    if known:
        baselines = known | result.baselines
        RunFolder(job.run).write_result(result.but(baselines=baselines))


def _attack(job: CellJob) -> None:
    """Make every attack that was not made yet; attacks.json grows by one at a time."""
    results = read_attack_results(job.run)
    missing = [name for name in job.attacks if name not in results]
    if not missing:
        return
    plan = job.cell.plan
    ledgers = job.run / run_files.LEDGERS
    with nodes_on_disk(plan, job.data_anchor, ledgers, job.policy, job.device) as nodes:
        for name in missing:
            started = time.perf_counter()
            measured = ATTACKS[name](plan, job.run, nodes, plan.seed)
            measured["seconds"] = time.perf_counter() - started
            results[name] = measured
            write_json(job.run / run_files.ATTACKS, results)


# ── baselines that cells share ────────────────────────────────────────────────────────────────────
def _read_shared_baselines(job: CellJob) -> dict[str, Any]:
    known = {}
    for name in job.baselines:
        file = _shared_file(job, name)
        if file.is_file():
            known[name] = json.loads(file.read_text())
    return known


def _shared_file(job: CellJob, name: str) -> Path:
    """Return where a baseline's result lies that every cell with the same plan (but for privacy, if
    it has none) shares.
    """
    plan = job.cell.plan
    if name in UNPROTECTED:
        plan = plan.model_copy(update={"privacy": PrivacySection()})
    digest = hashlib.sha256(f"{name} {plan_hash(plan)}".encode()).hexdigest()
    return job.out / "baselines" / f"{name}-{digest[:16]}.json"
