"""A study on two nodes of a Ray cluster: the same table, and what is told of a killed worker."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import csv

from fedgraft.common.errors import UserError
from fedgraft.simulations.deployment.processes import find_free_ports
from fedgraft.simulations.study import ray_cells
from fedgraft.simulations.study.cell_job import CellJob
from fedgraft.simulations.study.run_study import open_study, run_study

pytest.importorskip("ray")
START = "from ray.scripts.scripts import main; main()"
PATIENCE = 60.0
STUDY = """
name: two
question: Which seed?
plan: plan.yaml
set: {train.rounds: 1}
seeds: [3, 4]
"""


@pytest.fixture
def study(tiny, tmp_path: Path) -> Path:
    tiny(2)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def cluster() -> Iterator[str]:
    """Two nodes with a core each, on loopback; ended by their process groups."""
    address = f"127.0.0.1:{find_free_ports(1)[0]}"
    port = address.rpartition(":")[2]
    # a socket's path is short
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        head = ["--head", "--port", port, "--temp-dir", folder, "--include-dashboard", "false"]
        with start(head), start(["--address", address]):
            yield address


@contextlib.contextmanager
def start(words: list[str]) -> Iterator[None]:
    command = [sys.executable, "-c", START, "start", *words, "--block", "--num-cpus", "1"]
    command += ["--object-store-memory", "100000000", "--disable-usage-stats"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        for line in process.stdout:
            if "Ray runtime started" in line:
                break
            assert time.monotonic() < deadline, line
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=PATIENCE)


def test_no_cluster_is_told_in_words() -> None:
    """A traceback from the depths of Ray."""
    with pytest.raises(UserError, match="no Ray cluster at nowhere"):
        ray_cells.connect("nowhere")


def test_flowers_engine_and_a_cluster_do_not_go_together(study: Path) -> None:
    """A Ray inside each task of a Ray."""
    with pytest.raises(UserError, match="--ray"):
        run_study(str(study), out=study.parent / "out", engine="flower", ray="auto", quiet=True)


def test_a_machine_that_does_not_see_the_folder_says_so(study: Path) -> None:
    """A study whose cells are written to the disks of other machines, and found nowhere."""
    out = study.parent / "out"
    job = open_study(str(study), out, "inprocess").jobs[0]
    (out / "study.yaml").unlink()
    assert "file system that all machines see" in ray_cells.run_on_machine(job, "/")


@pytest.mark.slow
def test_two_nodes_give_the_same_table(study: Path, cluster: str) -> None:
    """Cells that depend on the machine that computed them; a killed worker that is waited for, or
    whose cell is called done.
    """
    tables = []
    for out, address in (("one", None), ("cluster", cluster)):
        folder = study.parent / out
        run_study(str(study), out=folder, workers=1, ray=address, quiet=True)
        table = csv.read_csv(folder / "table.csv")
        timed = [name for name in table.column_names if "seconds" in name]
        tables.append(table.drop_columns(timed).to_pydict())
    assert tables[0] == tables[1]

    jobs = open_study(str(study), study.parent / "killed", "inprocess").jobs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_cells, "run_on_machine", _die)
        with ray_cells.cells_on_ray(jobs, cluster, None) as outcomes:
            reasons = [reason for _, reason in outcomes]
    assert reasons == [ray_cells.LOST] * 2


def _die(job: CellJob, folder: str) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""
