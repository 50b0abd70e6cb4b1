"""Cells of a study as tasks of a Ray cluster: many machines, one study's folder that all of them
see.

    ray start --head                      # on one machine
    ray start --address HEAD:6379         # on each other one
    fedgraft study non-iid --ray auto     # on one of them, in a folder that all of them see

A cell is computed as in a process of one machine, by the same lines and with one thread: its row is
the same.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fedgraft
from fedgraft.common.errors import UserError
from fedgraft.simulations.engines.engine import ACTIVATIONS
from fedgraft.simulations.study.cell_job import CellJob, run_cell
from fedgraft.simulations.study.cell_processes import KILLED, Outcome, use_one_thread

LOST = f"{KILLED}, or its machine left the cluster"
# what is the same for cells wherever they run
TAKEN_ALONG = ("FEDGRAFT_DATA", ACTIVATIONS)


@contextmanager
def cells_on_ray(
    jobs: Sequence[CellJob], address: str, most: int | None
) -> Iterator[Iterator[Outcome]]:
    """Give each cell, as it ends on a machine of a cluster, and why it failed if it did.

    Whatever ends the `with` block early, Ctrl-C too, ends the tasks.

    Args:
        address: of the cluster as Ray takes it: `auto`, `HOST:PORT`, `ray://HOST:PORT`.
        most: cells at once; default: as many as the cluster has cores.

    Raises:
        UserError: there is no such cluster.
    """
    ray = connect(address)
    running: dict[Any, CellJob] = {}
    try:
        cores = int(ray.cluster_resources().get("CPU", 1))
        yield _run(ray, jobs, running, most or cores)
    finally:
        for task in running:
            ray.cancel(task, force=True)
        ray.shutdown()


def connect(address: str) -> Any:
    """Return Ray, connected to a cluster. Raise `UserError` where there is none."""
    # no count of this run is sent to Ray's makers
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # takes a second to import
    import ray

    variables = {name: os.environ[name] for name in TAKEN_ALONG if name in os.environ}
    # this code, where a machine sees its folder; else what is installed there
    variables["PYTHONPATH"] = str(Path(fedgraft.__file__).parents[1])
    variables["OMP_NUM_THREADS"] = "1"
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": variables},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        first, *_ = str(error).splitlines() or ["no answer"]
        raise UserError(
            f"no Ray cluster at {address} ({first})",
            where="--ray",
            remedy="start one: `ray start --head`, elsewhere `ray start --address HEAD:6379`",
        ) from error
    return ray


def run_on_machine(job: CellJob, folder: str) -> str:
    """Run one cell where a task has been put. Return why it failed, or an empty text.

    Args:
        folder: where whoever started the study stands; data are looked up there, too.
    """
    use_one_thread()
    if not (job.out / "study.yaml").is_file():
        where = f"{socket.gethostname()} does not see {job.out}"
        return f"{where}: the study's folder must be on a file system that all machines see"
    if Path(folder).is_dir():
        os.chdir(folder)
    return run_cell(job)


def _run(
    ray: Any, jobs: Sequence[CellJob], running: dict[Any, CellJob], most: int
) -> Iterator[Outcome]:
    # a cell that was killed would be killed again
    cards = 1 if jobs[0].device.startswith("cuda") else 0
    task = ray.remote(max_retries=0, num_cpus=1, num_gpus=cards)(run_on_machine)
    waiting = deque(jobs)
    while waiting or running:
        while waiting and len(running) < most:
            job = waiting.popleft()
            running[task.remote(_as_seen_everywhere(job), os.getcwd())] = job
        ended, _ = ray.wait(list(running), num_returns=1)
        for each in ended:
            yield running.pop(each), _reason_of(ray, each)


def _as_seen_everywhere(job: CellJob) -> CellJob:
    """Return a job whose files are named from the root on."""
    return replace(job, plan_file=job.plan_file.absolute(), base=job.base.absolute())


def _reason_of(ray: Any, task: Any) -> str:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        # before the cell began: that machine has no fedgraft, or another release of it
        return f"its machine could not run it: {error.cause}"
    except ray.exceptions.RayError:
        return LOST
