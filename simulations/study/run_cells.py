"""Cells of a study in parallel processes, with a bar that tells the time left."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fedgraft.simulations.engines.engine import ACTIVATIONS
from fedgraft.simulations.study.cell_job import CellJob, run_cell
from fedgraft.simulations.study.cell_processes import Outcome, cells_in_processes


def run_cells(
    jobs: Sequence[CellJob],
    name: str,
    total: int,
    workers: int | None,
    quiet: bool,
    ray: str | None = None,
) -> dict[str, str]:
    """Run cells in parallel processes, of this machine or of a cluster.

    Args:
        jobs: the cells that are not finished.
        name: the study's, shown beside the bar.
        total: cells of the study, with those that are finished.
        workers: processes at once; default: one a core.
        ray: address of a Ray cluster; None: this machine alone.

    Returns:
        The reason for each that failed, by its folder's name.
    """
    failed: dict[str, str] = {}
    if not jobs:
        return failed
    started = time.perf_counter()
    done = total - len(jobs)
    # processes first: a bar has a thread of its own, and it would not be in a forked process
    with (
        _run_each(jobs, workers, ray) as outcomes,
        _CellProgress(name, total, done, quiet) as progress,
    ):
        for number, (job, reason) in enumerate(outcomes, start=1):
            if reason:
                failed[job.cell.folder] = reason
            seconds_each = (time.perf_counter() - started) / number
            progress.advance(job.cell.folder, reason, seconds_each * (len(jobs) - number))
    return failed


# ── processes ─────────────────────────────────────────────────────────────────────────────────────
@contextmanager
def _run_each(
    jobs: Sequence[CellJob], workers: int | None, ray: str | None
) -> Iterator[Iterator[Outcome]]:
    """Give each cell, as it ends, and why it failed if it did."""
    if ray is not None:
        from fedgraft.simulations.study.ray_cells import cells_on_ray

        with cells_on_ray(jobs, ray, workers) as outcomes:
            yield outcomes
        return
    processes = min(workers or os.cpu_count() or 1, len(jobs))
    if processes == 1:
        yield ((job, run_cell(job)) for job in jobs)
        return
    with _one_frozen_pass(), cells_in_processes(jobs, processes) as outcomes:
        yield outcomes


@contextmanager
def _one_frozen_pass() -> Iterator[None]:
    """Let processes started inside keep activations in one folder, where nobody named another: what
    the frozen layers give is computed once for all cells that share them.
    """
    if os.environ.get(ACTIVATIONS):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="fedgraft-activations-") as folder:
        os.environ[ACTIVATIONS] = folder
        try:
            yield
        finally:
            os.environ.pop(ACTIVATIONS)


# ── progress ──────────────────────────────────────────────────────────────────────────────────────
class _CellProgress:
    """A bar on a terminal, a line for each cell elsewhere; both tell the time left."""

    def __init__(self, name: str, total: int, done: int, quiet: bool) -> None:
        self._name = name
        self._total = total
        self._done = done
        self._console = Console(stderr=True)
        self._in_lines = not quiet and not self._console.is_terminal
        self._bars = Progress(
            TextColumn(name),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("cells, {task.fields[left]}"),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._bar = self._bars.add_task(
            name, total=total, completed=done, left="the first ones are running"
        )

    def __enter__(self) -> _CellProgress:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def advance(self, cell: str, failure: str, seconds_left: float) -> None:
        """Count one cell more; say so in a line where there is no bar, or where it failed."""
        self._done += 1
        left = _show_seconds(seconds_left)
        self._bars.advance(self._bar)
        self._bars.update(self._bar, left=f"{left} left" if seconds_left else "done")
        if failure:
            first, *_ = failure.splitlines()
            self._print(cell, f"failed: {first}", left)
        elif self._in_lines:
            self._print(cell, "done", left)

    def _print(self, cell: str, outcome: str, left: str) -> None:
        number = f"{self._done}/{self._total}"
        line = f"{self._name} {number}  {cell}  {outcome}, {left} left"
        self._console.print(line, soft_wrap=True, markup=False)


def _show_seconds(seconds: float) -> str:
    if seconds >= 90:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s"
