"""`fedgraft study`: every cell of a study in a folder of its own, then one table and one page.

    OUT/study.yaml                 the study, every default written out
    OUT/cells/CELL/                a run's folder each, and attacks.json: what each attack found
    OUT/baselines/                 baselines that several cells share
    OUT/table.csv, table.parquet   a row for each cell
    OUT/report.html                one page
    OUT/manifest.json              all of it by hash

What is finished in a folder is not run again (`cell_job.py`).
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.common.errors import Interrupted, RunFailed, UserError
from fedgraft.common.files.whole_files import write_whole
from fedgraft.common.files.yaml_file import read_yaml
from fedgraft.server.papers.run_manifest import run_facts, write_manifest
from fedgraft.simulations.engines.engine import ENGINES, EngineOptions
from fedgraft.simulations.report.attack_results import read_attack_results
from fedgraft.simulations.study.cell_job import CellJob
from fedgraft.simulations.study.cells import load_study
from fedgraft.simulations.study.run_cells import run_cells
from fedgraft.simulations.study.study_file import Study, write_study
from fedgraft.simulations.study.study_table import Row, make_row, write_table


@dataclass(frozen=True)
class OpenStudy:
    """A study, its folder, and the job of each of its cells."""

    study: Study
    folder: Path
    plan_folder: Path
    jobs: Sequence[CellJob]

    def finish(self) -> list[Row]:
        """Write the table, the page and the manifest of what is finished; return the rows."""
        rows = self.list_rows()
        if not rows:
            return rows
        write_table(rows, self.folder)
        # its pictures and intervals take half a second to import, for which cells need not wait
        from fedgraft.simulations.study.study_page import write_study_page

        write_study_page(self.folder)
        plan_folder = os.path.relpath(self.plan_folder, self.folder)
        write_manifest(self.folder, self.list_facts() | {"plan_folder": plan_folder})
        return rows

    def list_rows(self) -> list[Row]:
        """Return the table's rows: finished cells in the order of the study."""
        rows = []
        for job in self.jobs:
            result = job.read_result()
            if result is not None:
                row = make_row(job.cell.labels, result, read_attack_results(job.run))
                rows.append(row | {"cell": job.cell.folder})
        return rows

    def list_facts(self) -> dict[str, Any]:
        """Return what the manifest says beside its files: the facts of every finished cell."""
        cells = {}
        for job in self.jobs:
            if job.read_result() is not None:
                labels = dict(job.cell.labels)
                cells[job.cell.folder] = run_facts(job.run) | {"labels": labels}
        return {
            "kind": "study",
            "name": self.study.name,
            "engine": self.jobs[0].engine,
            "baselines": list(self.study.baselines),
            "attacks": list(self.study.attacks),
            "cells": cells,
        }


def run_study(
    name: str,
    *,
    out: Path | None = None,
    workers: int | None = None,
    engine: str = "inprocess",
    device: str = "cpu",
    ray: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what is not finished of a study; write its table and its page.

    Args:
        name: a study's file, or the name of a ready study.
        out: its folder; default runs/study-NAME. What is finished in it stays.
        workers: cells at once, each in a process with one thread for torch; default: cores.
        engine: `inprocess` or `flower`.
        device: where cells compute: cpu, cuda, cuda:N, mps or auto.
        ray: address of a Ray cluster whose machines compute the cells, all of which see `out`;
            default: this machine alone.
        quiet: print nothing.

    Returns:
        {"name", "folder", "rows", "seconds", "run" (cells run now), "failed": {cell: reason}}.

    Raises:
        UserError: the study or one of its plans is wrong; nothing was run.
        RunFailed: some cells failed; the others are in the table.
        Interrupted: Ctrl-C; finished cells are kept.
    """
    if ray is not None and engine == "flower":
        what = "Flower's engine starts a Ray of its own for each cell"
        raise UserError(what, where="--ray", remedy="leave --engine out: cells are the tasks")
    opened = open_study(name, out, engine, device)
    jobs = opened.jobs
    waiting = [job for job in jobs if not job.is_done()]
    started = time.perf_counter()
    # Flower's engine has processes of its own
    processes = 1 if engine == "flower" else workers
    try:
        failed = run_cells(waiting, opened.study.name, len(jobs), processes, quiet, ray)
    except KeyboardInterrupt:
        finished = sum(job.is_done() for job in jobs)
        progress = f"interrupted: {finished} of {len(jobs)} cells are finished"
        raise Interrupted(f"{progress}\n  → go on: {_command(name, out, ray)}") from None

    rows = opened.finish()
    seconds = time.perf_counter() - started
    if failed:
        raise RunFailed(_describe_failures(failed, opened))
    return {
        "name": opened.study.name,
        "folder": str(opened.folder),
        "rows": rows,
        "seconds": seconds,
        "run": len(waiting),
        "failed": failed,
    }


def open_study(name: str, out: Path | None, engine: str, device: str = "cpu") -> OpenStudy:
    """Read a study and make its folder. Raise `UserError` where something is wrong with it."""
    if engine not in ENGINES:
        remedy = f"write one of {', '.join(ENGINES)}"
        raise UserError(f"{engine!r} is no engine", where="--engine", remedy=remedy)
    # a card that is not there, or not for this engine
    EngineOptions(engine, device=device)
    study, plan_file, cells = load_study(name)
    folder = (out or Path("runs") / f"study-{study.name}").absolute()
    open_folder(folder, study)
    jobs = []
    for cell in cells:
        job = CellJob(
            plan_file=plan_file,
            cell=cell,
            base=plan_file.parent,
            out=folder,
            engine=engine,
            device=device,
            baselines=study.baselines,
            attacks=study.attacks,
        )
        jobs.append(job)
    return OpenStudy(study, folder, plan_file.parent, jobs)


def open_folder(folder: Path, study: Study) -> None:
    """Make a study's folder, or go on in the one it has. Raise `UserError` where something else
    lies there.
    """
    where = f"--out {folder}"
    try:
        if not _is_free(folder, study.name):
            what = f"holds something else than the study {study.name}"
            remedy = "name a new folder, or that of this study"
            raise UserError(what, where=where, remedy=remedy)
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        write_whole(folder / "study.yaml", write_study(study))
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        remedy = "name a folder you may write to"
        raise UserError(what, where=where, remedy=remedy) from error


def _is_free(folder: Path, name: str) -> bool:
    """Return whether a folder is not there, empty, or that of the study of this name."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        content, _ = read_yaml(folder / "study.yaml")
    except UserError:
        return False
    return content.get("name") == name


def _command(name: str, out: Path | None, ray: str | None) -> str:
    words = ["fedgraft", "study", name]
    if out:
        words += ["--out", str(out)]
    if ray:
        words += ["--ray", ray]
    return shlex.join(words)


def _describe_failures(failed: Mapping[str, str], opened: OpenStudy) -> str:
    count = f"{len(failed)} of {len(opened.jobs)} cells failed"
    lines = [f"{count}; the others are in {opened.folder}"]
    for cell, reason in failed.items():
        lines.append(f"  {cell}: {reason}")
    return "\n".join(lines)
