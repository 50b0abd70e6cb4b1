"""`fedgraft study`: every cell of a study in a folder of its own, then one table and one page.

    OUT/study.yaml                 the study, every default written out
    OUT/cells/CELL/                a run's folder each, and attacks.json: what each attack found
    OUT/baselines/                 baselines that several cells share
    OUT/table.csv, table.parquet   a row for each cell
    OUT/report.html                one page
    OUT/manifest.json              all of it by hash

A cell is finished when its result.json is completed and of its plan's hash; it is not run again.
What measures a
cell: the closed registry in `simulations/attacks/`, name → function `(plan, run, nodes, seed)` →
    numbers.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fedgraft.common.errors import Interrupted, RunFailed, UserError
from fedgraft.common.files.whole_files import write_whole
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import plan_hash
from fedgraft.common.plan.privacy_section import PrivacySection
from fedgraft.server.papers.manifest import run_facts, write_manifest
from fedgraft.server.papers.run_folder import RunFolder
from fedgraft.simulations.engines.engine import ENGINES, nodes_on_disk
from fedgraft.simulations.report import write_report
from fedgraft.simulations.study.study_file import Cell, Study, load_study, study_yaml
from fedgraft.simulations.study.study_table import Row, row_of, write_table

UNPROTECTED = ("alone", "pooled", "full")  # baselines that are the same whatever the plan's privacy


@dataclass(frozen=True)
class Job:
    """All that a worker process needs for one cell."""

    plan_file: Path
    cell: Cell
    base: Path  # the plan's folder: its files are looked up there
    out: Path  # the study's folder
    engine: str
    baselines: tuple[str, ...]
    attacks: tuple[str, ...]
    policy: Mapping[str, Any] = field(default_factory=dict)  # clauses of every node's policy

    @property
    def run(self) -> Path:
        """The cell's folder."""
        return self.out / "cells" / self.cell.folder


def run_study(
    name: str,
    *,
    out: Path | None = None,
    workers: int | None = None,
    engine: str = "inprocess",
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what is not finished of a study; write its table and its page.

    Args:
        name: a study's file, or the name of a ready study.
        out: its folder; default runs/study-NAME. What is finished in it stays.
        workers: cells at once, each in a process with one thread for torch; default: cores.
        engine: `inprocess` or `flower`.
        quiet: print nothing.

    Returns:
        {"name", "folder", "rows", "seconds", "run" (cells run now), "failed": {cell: reason}}.

    Raises:
        UserError: the study or one of its plans is wrong; nothing was run.
        RunFailed: some cells failed; the others are in the table.
        Interrupted: Ctrl-C; finished cells are kept.
    """
    if engine not in ENGINES:
        raise UserError(
            f"{engine!r} is no engine",
            where="--engine",
            remedy=f"write one of {', '.join(ENGINES)}",
        )
    study, plan_file, cells = load_study(name)
    folder = (out or Path("runs") / f"study-{study.name}").absolute()
    open_folder(folder, study)
    jobs = [
        Job(plan_file, cell, plan_file.parent, folder, engine, study.baselines, study.attacks)
        for cell in cells
    ]
    waiting = [job for job in jobs if not is_done(job)]
    started = time.perf_counter()
    try:
        failed = run_jobs(
            waiting, study.name, len(jobs), 1 if engine == "flower" else workers, quiet
        )
    except KeyboardInterrupt:
        kept = sum(is_done(job) for job in jobs)
        again = shlex.join(["fedgraft", "study", name, *(["--out", str(out)] if out else [])])
        raise Interrupted(
            f"interrupted: {kept} of {len(jobs)} cells are finished\n  → go on: {again}"
        ) from None
    rows = rows_of(folder, [job.cell for job in jobs])
    if rows:
        write_table(rows, folder)
        write_report(folder)
        write_manifest(
            folder,
            study_facts(study, jobs) | {"plan_folder": os.path.relpath(plan_file.parent, folder)},
        )
    seconds = time.perf_counter() - started
    if failed:
        told = "\n".join(f"  {cell}: {reason}" for cell, reason in failed.items())
        raise RunFailed(
            f"{len(failed)} of {len(jobs)} cells failed; the others are in {folder}\n{told}"
        )
    return {
        "name": study.name,
        "folder": str(folder),
        "rows": rows,
        "seconds": seconds,
        "run": len(waiting),
        "failed": failed,
    }


def open_folder(folder: Path, study: Study) -> None:
    """Make a study's folder, or go on in the one it has. Raises `UserError` where something else
    lies there.
    """
    try:
        if folder.exists() and (
            not folder.is_dir() or (any(folder.iterdir()) and not _holds(folder, study.name))
        ):
            what = f"holds something else than the study {study.name}"
            raise UserError(
                what, where=f"--out {folder}", remedy="name a new folder, or that of this study"
            )
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        write_whole(folder / "study.yaml", study_yaml(study))
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise UserError(
            what, where=f"--out {folder}", remedy="name a folder you may write to"
        ) from error


def rows_of(folder: Path, cells: list[Cell]) -> list[Row]:
    """The table's rows: finished cells in the order of the study."""
    rows = []
    for cell in cells:
        run = folder / "cells" / cell.folder
        if (result := finished(run, cell.plan_hash)) is not None:
            rows.append(row_of(cell.labels, result, found_by_attacks(run)) | {"cell": cell.folder})
    return rows


def finished(run: Path, hash_: str) -> dict[str, Any] | None:
    """result.json of a cell that is finished and of this plan; else None."""
    try:
        result = json.loads((run / "result.json").read_text())
    except (OSError, ValueError):
        return None
    right = (
        isinstance(result, dict)
        and result.get("status") == "completed"
        and result.get("plan_hash") == hash_
    )
    return result if right else None


def found_by_attacks(run: Path) -> dict[str, Any]:
    """What each attack found on a cell, by its name."""
    try:
        return json.loads((run / "attacks.json").read_text())
    except FileNotFoundError:
        return {}


def is_done(job: Job) -> bool:
    """Whether the cell was run, with all that the study asks of it."""
    result = finished(job.run, job.cell.plan_hash)
    return (
        result is not None
        and set(job.baselines) <= set(result["baselines"])
        and set(job.attacks) <= set(found_by_attacks(job.run))
    )


def study_facts(study: Study, jobs: list[Job]) -> dict[str, Any]:
    """What a study's manifest says beside its files: the facts of every finished cell."""
    cells = {
        job.cell.folder: run_facts(job.run) | {"labels": dict(job.cell.labels)}
        for job in jobs
        if finished(job.run, job.cell.plan_hash)
    }
    asked = {"baselines": list(study.baselines), "attacks": list(study.attacks)}
    return {"kind": "study", "name": study.name, "engine": jobs[0].engine, **asked, "cells": cells}


# ── one cell, in a process of its own ─────────────────────────────────────────────────────────────
def run_cell(job: Job) -> str:
    """Run one cell, its baselines and its attacks. Returns why it failed, or an empty text."""
    import logging

    import torch

    torch.set_num_threads(1)
    logging.getLogger("fedgraft").setLevel(logging.ERROR)
    try:
        result = finished(job.run, job.cell.plan_hash)
        if result is None or not set(job.baselines) <= set(result["baselines"]):
            _federate(job)
        _attack(job)
    except (UserError, RunFailed, OSError) as error:
        return str(error)
    except Exception as error:  # one cell's trouble is not the others'
        return f"{type(error).__name__}: {error}"
    return ""


def _federate(job: Job) -> None:
    """The cell's federation from its first round; baselines that another cell has measured are
    taken over.
    """
    from fedgraft.simulations.simulate import rewrite, run_seed

    known = {
        name: json.loads(file.read_text())
        for name in job.baselines
        if (file := _shared(job, name)).is_file()
    }
    missing = tuple(name for name in job.baselines if name not in known)
    shutil.rmtree(job.run, ignore_errors=True)
    overrides, place, clauses = list(job.cell.overrides), job.base / "plan.yaml", dict(job.policy)
    result = run_seed(
        job.plan_file,
        place,
        overrides,
        job.run,
        job.engine,
        missing,
        False,
        1,
        None,
        clauses,
        True,
        pages=False,
    )
    for name in missing:
        file = _shared(job, name)
        file.parent.mkdir(exist_ok=True)
        rewrite(file, result.baselines[name])
    if known:
        RunFolder(job.run).write_result(result.but(baselines=known | result.baselines))


def _attack(job: Job) -> None:
    """Every attack that was not run yet; attacks.json grows by one at a time."""
    from fedgraft.simulations.attacks import ATTACKS
    from fedgraft.simulations.simulate import rewrite

    found = found_by_attacks(job.run)
    missing = [name for name in job.attacks if name not in found]
    if not missing:
        return
    plan = job.cell.plan
    with nodes_on_disk(plan, job.base / "plan.yaml", job.run / "ledgers", job.policy) as nodes:
        for name in missing:
            clock = time.perf_counter()
            found[name] = ATTACKS[name](plan, job.run, nodes, plan.seed)
            found[name]["seconds"] = time.perf_counter() - clock
            rewrite(job.run / "attacks.json", found)


def _shared(job: Job, name: str) -> Path:
    """Where a baseline's result lies that every cell with the same plan (but for privacy, if it has
    none) shares.
    """
    plan: Plan = job.cell.plan
    if name in UNPROTECTED:
        plan = plan.model_copy(update={"privacy": PrivacySection()})
    digest = hashlib.sha256(f"{name} {plan_hash(plan)}".encode()).hexdigest()[:16]
    return job.out / "baselines" / f"{name}-{digest}.json"


# ── all of them ───────────────────────────────────────────────────────────────────────────────────
def run_jobs(
    jobs: list[Job], name: str, total: int, workers: int | None, quiet: bool
) -> dict[str, str]:
    """Run cells in parallel processes. Returns the reason for each that failed."""
    failed: dict[str, str] = {}
    if not jobs:
        return failed
    count = min(workers or os.cpu_count() or 1, len(jobs))
    started = time.perf_counter()
    with _progress(name, total, total - len(jobs), quiet) as step:
        for number, (job, reason) in enumerate(_outcomes(jobs, count), start=1):
            if reason:
                failed[job.cell.folder] = reason
            each = (time.perf_counter() - started) / number
            step(job.cell.folder, reason, each * (len(jobs) - number))
    return failed


def _outcomes(jobs: list[Job], count: int) -> Iterator[tuple[Job, str]]:
    """Each cell, as it ends, and why it failed if it did."""
    if count == 1:
        yield from ((job, run_cell(job)) for job in jobs)
        return
    with _one_thread_each():
        pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
        try:
            futures = {pool.submit(run_cell, job): job for job in jobs}
            for future in as_completed(futures):
                try:
                    yield futures[future], future.result()
                except BrokenProcessPool:
                    yield (
                        futures[future],
                        "its process was killed; is there enough memory? Try fewer --workers",
                    )
            pool.shutdown(wait=False)  # they end by themselves
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started inside use one thread for arithmetic: cells are what runs in parallel."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


@contextmanager
def _progress(name: str, total: int, done: int, quiet: bool) -> Iterator[Any]:
    """A bar on a terminal, a line for each cell elsewhere; both tell the time left."""
    console = Console(stderr=True)
    bars = Progress(
        TextColumn(name),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("cells, {task.fields[left]}"),
        console=console,
        disable=quiet or not console.is_terminal,
    )
    with bars:
        bar = bars.add_task(name, total=total, completed=done, left="the first ones are running")

        def step(cell: str, failure: str, left: float) -> None:
            bars.advance(bar)
            bars.update(bar, left=f"{_clock(left)} left" if left else "done")
            if failure or (not quiet and not console.is_terminal):
                said = f"failed: {failure.splitlines()[0]}" if failure else "done"
                at = int(bars.tasks[0].completed)
                console.print(
                    f"{name} {at}/{total}  {cell}  {said}, {_clock(left)} left", soft_wrap=True
                )

        yield step


def _clock(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _holds(folder: Path, name: str) -> bool:
    """Whether a folder is that of the study of this name."""
    from fedgraft.common.files.yaml_file import read_yaml

    try:
        return read_yaml(folder / "study.yaml")[0].get("name") == name
    except UserError:
        return False
