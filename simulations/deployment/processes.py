"""What runs on this machine: its processes, free ports, and waiting for what other processes do."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fedgraft.common.errors import RunFailed

# seconds for a process to come up, on a machine that does other things, too
PATIENCE = 90.0
POLL = 0.2
PROC = Path("/proc")


class Process(NamedTuple):
    """A process: its id, its name as `top` shows it, its parent, its process group."""

    pid: int
    name: str
    parent: int
    group: int


def list_processes() -> Iterator[Process]:
    """Yield all processes that have not ended."""
    for path in PROC.glob("[0-9]*/stat"):
        # one may end while it is looked at
        with contextlib.suppress(OSError):
            head, _, rest = path.read_text(errors="replace").rpartition(")")
            _, _, name = head.partition("(")
            state, parent, group, *_ = rest.split()
            if state != "Z":
                yield Process(int(path.parent.name), name, int(parent), int(group))


def find_processes(*words: str) -> list[int]:
    """Return ids of the running processes whose command has all of these words."""
    ids = []
    for process in list_processes():
        with contextlib.suppress(OSError):
            command = _read_command(process.pid)
            if all(word in command for word in words):
                ids.append(process.pid)
    return ids


def _read_command(pid: int) -> str:
    raw = (PROC / str(pid) / "cmdline").read_bytes()
    return raw.replace(b"\0", b" ").decode(errors="replace")


def find_free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now, all different."""
    ports = []
    with contextlib.ExitStack() as held:
        for _ in range(count):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            _, port = probe.getsockname()
            ports.append(port)
    return ports


def wait_until(what: str, is_so: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait for something that other processes do. Raise `RunFailed` with its name where it does not
    come.
    """
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise RunFailed(f"not within {seconds:g} s: {what}")
        time.sleep(POLL)
