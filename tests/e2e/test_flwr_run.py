"""`flwr run .` as the page "How it works" has it, typed into a checkout."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgraft.simulations.deployment.processes import (
    find_free_ports,
    list_processes,
    wait_until,
)
from fedgraft.simulations.deployment.started_processes import make_environment
from tests.docs.blocks import read_blocks, read_page

pytestmark = [pytest.mark.slow, pytest.mark.deployment]
ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = (".*", "build", "runs", "nodes", "__pycache__", "*.egg-info")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of this checkout; the SuperLink that Flower starts for it is ended."""
    folder = tmp_path_factory.mktemp("flwr-run") / "fedgraft"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    try:
        yield folder
    finally:
        for pid in started_in(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_until("Flower's processes have ended", lambda: not started_in(folder))


def started_in(folder: Path) -> list[int]:
    """Return the processes that work in a folder."""
    ids = []
    for process in list_processes():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{process.pid}/cwd") == str(folder):
                ids.append(process.pid)
    return ids


@pytest.fixture(scope="module")
def environment(checkout: Path) -> dict[str, str]:
    """The environment of whoever types, with a Flower home and a local SuperLink of its own."""
    http, control = find_free_ports(2)
    return make_environment() | {
        "FLWR_HOME": str(checkout.parent / "home"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control),
    }


def typed(words: str, folder: Path, environment: dict[str, str]) -> str:
    """Return what is shown after lines are typed, which must end well."""
    for _ in range(5):
        done = subprocess.run(
            ["bash", "-e", "-c", words],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        # Flower gives its SuperLink so many seconds; who sits at a busy machine types again
        if "Failed to start local SuperLink within" not in done.stdout:
            break
    assert done.returncode == 0, done.stdout
    return done.stdout


def last_run(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """Return what Flower says of the run that was begun last."""
    runs = json.loads(typed("flwr list --format json", folder, environment))["runs"]
    return max(runs, key=lambda run: run["pending-at"])


def test_the_lines_of_the_page(checkout: Path, environment: dict[str, str], seen) -> None:
    """Lines of ours that end in a traceback."""
    (lines,) = [
        block.text
        for block in read_blocks(read_page("how-it-works.md"))
        if "flwr run ." in block.text
    ]
    shown = typed(lines, checkout, environment)
    assert "Traceback" not in shown
    run = last_run(checkout, environment)
    assert run["status"] == "finished:completed", shown
    result = json.loads((checkout / "runs" / "flower" / "result.json").read_text())
    assert result["status"] == "completed"
    assert len(result["nodes"]) == 5
    seen("`flwr run .` as the page has it: 5 nodes, completed")


# its words are tested without processes, too
@pytest.mark.exhaustive
def test_too_few_words_are_answered_with_a_sentence(
    checkout: Path, environment: dict[str, str]
) -> None:
    """A traceback for whoever types `flwr run .` alone; a run that says completed."""
    quiet = environment | {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
    shown = typed("flwr run . --stream", checkout, quiet)
    run = last_run(checkout, environment)
    assert "run-config: names no plan" in shown
    assert "fedgraft partition PLAN" in shown
    assert "Traceback" not in shown
    assert run["status"] == "finished:failed"
