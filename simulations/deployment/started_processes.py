"""Processes that are started under a name, each with a log of what it says."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedgraft.client.site.node_process import with_parent
from fedgraft.simulations.deployment.processes import list_processes

# where this environment has its programs
BIN = Path(sys.executable).parent
# seconds for a process to end by itself
LAST_WORDS = 30


class StartedProcesses:
    """Processes by name; NAME.log is in the folder.

    processes = StartedProcesses(folder, os.environ)
    processes.start("server", ["fedgraft", "server", "start", "server.yaml"])
    processes.log("server")
    processes.stop_all()
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._started

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a process in a session of its own; what it says is added to its log."""
        with self._log_of(name).open("ab") as log:
            self._started[name] = subprocess.Popen(
                command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=with_parent(),
            )

    def log(self, name: str) -> str:
        """Return what a process said so far."""
        path = self._log_of(name)
        if not path.exists():
            return ""
        return path.read_text(errors="replace")

    def is_alive(self, name: str) -> bool:
        """Return whether it runs."""
        return self._started[name].poll() is None

    def wait(self, name: str) -> int:
        """Wait for its end; return the exit status."""
        return self._started[name].wait()

    def stop(self, name: str) -> int:
        """Send SIGTERM, and SIGKILL to what is left half a minute later; return the exit status."""
        process = self._started[name]
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LAST_WORDS)
        self.signal(name, signal.SIGKILL)
        return process.wait()

    def stop_all(self, last: str = "") -> None:
        """End every process: all but `last` at once, as an orderly shutdown does."""
        first = [name for name in self._started if name != last]
        for name in first:
            self._started[name].terminate()
        for name in [*first, last]:
            if name in self._started:
                self.stop(name)

    def forget(self, name: str) -> None:
        """End a process, if it was started, and keep nothing of it."""
        if name in self._started:
            self.stop(name)
            del self._started[name]
        self._log_of(name).unlink(missing_ok=True)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process and to the group that it leads below it."""
        for group in (self._started[name].pid, self.find_group(name)):
            if group is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, number)

    def find_group(self, name: str) -> int | None:
        """Return the leader of the process group that a process started, or None."""
        parent = self._started[name].pid
        for process in list_processes():
            if process.parent == parent and process.group == process.pid:
                return process.pid
        return None

    def _log_of(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def make_environment() -> dict[str, str]:
    """Return the environment of every process: this environment's programs, one thread each, no
    word to anybody.
    """
    # where a plan's weights are looked up: these processes have other working directories
    data = os.environ.get("FEDGRAFT_DATA") or str(Path.cwd().parent / "shared" / "data")
    path = os.environ.get("PATH", "")
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{path}",
        "OMP_NUM_THREADS": "1",
        "FEDGRAFT_DATA": data,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    environment.pop("FLWR_HOME", None)
    return environment


def hear_interrupts() -> None:
    """Let a job in the background hear Ctrl-C, which it would ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
