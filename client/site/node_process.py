"""Flower's SuperNode as a process of this node: what it sees, how it begins and how it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from fedgraft.client.node.node_file import Connection, Node
from fedgraft.client.site import executor, launcher, supernode

# seconds that a SuperNode has to sign off
_SIGN_OFF = 20
# of prctl(2)
_PR_SET_PDEATHSIG = 1
# what would put somebody's checkout before the approved code
_NOT_HANDED_ON = ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME")


class SuperNode:
    """Flower's SuperNode as a process of its own group.

        process = SuperNode(node, connection, Path("node.yaml"))
        line = process.lines.get(timeout=0.2)
        process.end()

    Attributes:
        lines: what it prints, as it comes.
    """

    def __init__(self, node: Node, connection: Connection, path: Path) -> None:
        self.lines: queue.Queue[str] = queue.Queue()
        self._process = subprocess.Popen(
            _command(connection, path),
            cwd=node.store,
            env=environment(node),
            text=True,
            errors="replace",
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=with_parent(),
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        output = self._process.stdout
        assert output is not None
        for line in output:
            self.lines.put(line)

    @property
    def is_alive(self) -> bool:
        """Whether it runs, or has left lines that nobody read."""
        return self._process.poll() is None or not self.lines.empty()

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.returncode

    def end(self) -> None:
        """Let it sign off at the SuperLink; then end whatever is left of its group."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_SIGN_OFF)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _command(connection: Connection, path: Path) -> list[str]:
    port = connection.port or _free_port()
    options = {
        "--superlink": connection.superlink,
        "--root-certificates": connection.root_certificates,
        "--auth-supernode-private-key": connection.private_key,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--node-config": f'node="{path.absolute()}"',
    }
    if connection.trusted_entities is not None:
        options["--trusted-entities"] = connection.trusted_entities
    command = _python(supernode)
    for option, value in options.items():
        command += [option, value]
    return command


def _python(module: ModuleType) -> list[str]:
    """Return the command that runs one of our files by its path."""
    return [sys.executable, "-P", str(Path(str(module.__file__)).resolve())]


def environment(node: Node) -> dict[str, str]:
    """Return what the node's processes see.

    Approved code only, nothing that calls home, no path of somebody's checkout.
    """
    programs = node.store / "run"
    programs.mkdir(parents=True, exist_ok=True)
    _write_program(programs / "flwr-clientapp", launcher)
    _write_program(programs / "flower-superexec", executor)
    inherited = {key: value for key, value in os.environ.items() if key not in _NOT_HANDED_ON}
    folders = [
        str(programs),
        str(Path(sys.executable).parent),
        inherited.get("PATH", os.defpath),
    ]
    return inherited | {
        "PATH": os.pathsep.join(folders),
        "FLWR_HOME": str(node.approvals),
        launcher.APPROVALS: str(node.approvals),
        # seconds; Flower's own 1 s is half a second for each message
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(node.threads),
    }


def _write_program(path: Path, module: ModuleType) -> None:
    """Write a script of one of Flower's names that runs our file."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join(_python(module))} "$@"\n')
    path.chmod(0o755)


def with_parent() -> Callable[[], None] | None:
    """Return what makes a started process leave, by SIGTERM, when this one is killed.

    On Linux only; an orphan would hold the key.
    """
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    return lambda: library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
