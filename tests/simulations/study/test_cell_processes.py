"""A study's processes: how they begin, and how they end when one is killed or interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pyarrow import csv

from fedgraft.simulations.study import cell_processes
from fedgraft.simulations.study.cell_processes import choose_start_method

ROOT = Path(__file__).resolve().parents[3]
STUDY = """
name: two
question: Which seed?
plan: plan.yaml
set: {train.rounds: 1, privacy: {mode: sample, target_epsilon: 5, delta: 1.0e-3}}
seeds: [3, 4]
"""
# every cell does what the second word says
PROGRAM = """
import os, signal, sys
from pathlib import Path
from fedgraft.simulations.study import cell_processes, run_cells

def kill_itself(job):
    os.kill(os.getpid(), signal.SIGKILL)

def wait_for_ever(job):
    # in one piece: two of them write to one pipe
    os.write(1, f"{os.getpid()}\\n".encode())
    signal.pause()

# a shell that starts tests in the background has Ctrl-C ignored by all that they start
signal.signal(signal.SIGINT, signal.default_int_handler)
cell_processes.run_cell = {"kill": kill_itself, "wait": wait_for_ever}[sys.argv[2]]
from fedgraft.simulations.study.run_study import open_study
assert cell_processes.choose_start_method() == "fork"
study = Path(sys.argv[1])
jobs = open_study(str(study), study.parent / "out", "inprocess").jobs
print(run_cells.run_cells(jobs, "two", 2, 2, quiet=True))
"""


@pytest.fixture
def study(tiny, tmp_path: Path) -> Path:
    tiny(2)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def start(study: Path, does: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(study), does],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_that_is_killed_is_told(study: Path) -> None:
    """A study that waits for ever for a process that the system killed, or calls its cell done."""
    process = start(study, "kill")
    told, mistakes = process.communicate(timeout=300)
    assert process.returncode == 0, mistakes
    assert told.count("its process was killed") == 2


def test_nobody_works_on_after_an_interrupt(study: Path) -> None:
    """Cells that go on for hours after Ctrl-C, and hold the machine."""
    process = start(study, "wait")
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode != 0
    for worker in workers:
        assert not is_running(worker)


def is_running(process: int) -> bool:
    """Whether a process is there, and not only waited for."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_process_with_threads_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that waits for ever for a lock that a thread of its parent held; a system that does
    not tell how many threads there are.
    """
    is_over = threading.Event()
    thread = threading.Thread(target=is_over.wait)
    thread.start()
    try:
        assert choose_start_method() == "spawn"
    finally:
        is_over.set()
        thread.join()
    monkeypatch.setattr(cell_processes, "THREADS", Path("/nowhere"))
    assert choose_start_method() == "spawn"


def test_what_cells_need_is_imported_before_they_are_forked(study: Path) -> None:
    """Every process with seconds of imports of its own; a thread that an import begins, with which
    no process is forked.
    """
    program = f"""
import sys
from pathlib import Path
from fedgraft.simulations.study.cell_processes import choose_start_method, import_for
from fedgraft.simulations.study.run_study import open_study
import_for(open_study({str(study)!r}, Path({str(study.parent / "out")!r}), "inprocess").jobs)
wanted = {{"torch", "flwr.clientapp", "opacus", "fedgraft.server.app"}}
print(wanted - set(sys.modules), choose_start_method())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.strip() == "set() fork", ended.stderr


def test_the_command_gives_the_same_table_in_one_process_and_in_two(
    study: Path, programs: Path
) -> None:
    """Cells that depend on what the process that they were forked from, or another cell, had
    opened: other rows, another seed's noise.
    """
    tables = []
    for workers in ("1", "2"):
        out = study.parent / workers
        command = [programs / "fedgraft", "study", study, "--out", out, "--workers", workers]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        table = csv.read_csv(out / "table.csv")
        timed = [name for name in table.column_names if "seconds" in name]
        tables.append(table.drop_columns(timed).to_pydict())
    assert tables[0] == tables[1]
    assert tables[0]["loss"][0] != tables[0]["loss"][1]
