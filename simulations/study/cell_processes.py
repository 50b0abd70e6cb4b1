"""Processes for the cells of a study, each with one thread for arithmetic.

Forked from this process, where it has no second thread: its imports are theirs, and their memory is
its own until they write. A lock that another thread holds would stay locked in a forked process for
ever, and a GPU that is in use cannot be shared so: there, and where threads cannot be counted,
processes are spawned and import everything anew.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from threadpoolctl import threadpool_limits

from fedgraft.simulations.attacks import ATTACKS
from fedgraft.simulations.study.cell_job import CellJob, run_cell

KILLED = "its process was killed; is there enough memory? Try fewer --workers"
# of this process, on Linux: a folder for each of its threads
THREADS = Path("/proc/self/task")
# what every federation in one process imports when it is needed first
OF_A_RUN = (
    "fedgraft.client.app",
    "fedgraft.server.app",
    "fedgraft.server.federation",
    "fedgraft.common.model.allocator",
    "fedgraft.simulations.engines.inprocess",
    "fedgraft.simulations.engines.together",
)
# what counts ε, and takes a second to import
OF_PRIVACY = ("opacus.accountants.analysis.prv", "scipy.optimize")

Outcome = tuple[CellJob, str]


@contextmanager
def cells_in_processes(jobs: Sequence[CellJob], processes: int) -> Iterator[Iterator[Outcome]]:
    """Start processes; give each cell, as it ends, and why it failed if it did.

    Whatever ends the `with` block early, Ctrl-C too, ends the processes.
    """
    method = choose_start_method()
    if method == "fork":
        import_for(jobs)
    with _one_thread_each():
        context = multiprocessing.get_context(method)
        pool = ProcessPoolExecutor(processes, mp_context=context, initializer=use_one_thread)
        try:
            futures = {pool.submit(run_cell, job): job for job in jobs}
            yield _await(futures)
            # they end by themselves
            pool.shutdown(wait=False)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def choose_start_method() -> str:
    """Return "fork" where this process has one thread and no GPU, else "spawn"."""
    import torch

    if torch.cuda.is_initialized() or not THREADS.is_dir():
        return "spawn"
    return "fork" if len(list(THREADS.iterdir())) == 1 else "spawn"


def import_for(jobs: Sequence[CellJob]) -> None:
    """Import what cells need, once for all the processes that are forked from this one."""
    names: list[str] = [*OF_A_RUN]
    if any(job.cell.plan.privacy.mode != "none" for job in jobs):
        names += OF_PRIVACY
    for name in names:
        importlib.import_module(name)
    for attack in {attack for job in jobs for attack in job.attacks}:
        # a line is imported when it is asked for
        ATTACKS[attack]


def use_one_thread() -> None:
    """Let this process's arithmetic use one thread: cells are what runs in parallel."""
    threadpool_limits(1)


def _await(futures: dict[Future[str], CellJob]) -> Iterator[Outcome]:
    for future in as_completed(futures):
        yield futures[future], _reason_of(future)


def _reason_of(future: Future[str]) -> str:
    try:
        return future.result()
    except BrokenProcessPool:
        return KILLED


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes spawned inside begin with one thread for arithmetic."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
