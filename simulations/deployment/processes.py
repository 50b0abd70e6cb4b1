"""What runs on this machine: its processes, free ports, and waiting for what other processes do."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fedgraft.common.errors import RunFailed

UP = 90.0  # seconds for a process to come up, on a machine that does other things, too


class Running(NamedTuple):
    """A process: its id, its name as `top` shows it, its parent, its process group."""

    pid: int
    name: str
    parent: int
    group: int


def running() -> Iterator[Running]:
    """All processes that have not ended."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            head, _, rest = path.read_text(errors="replace").rpartition(")")
            state, parent, group, *_ = rest.split()
            if state != "Z":
                yield Running(
                    int(path.parent.name), head.partition("(")[2], int(parent), int(group)
                )


def processes(*words: str) -> list[int]:
    """Ids of the running processes whose command has all of these words."""
    found = []
    for process in running():
        with contextlib.suppress(OSError):
            command = (
                Path(f"/proc/{process.pid}/cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode(errors="replace")
            )
            if all(word in command for word in words):
                found.append(process.pid)
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def until(what: str, found: Callable[[], object], seconds: float = UP) -> None:
    """Wait for something that other processes do. Raises `RunFailed` with its name where it does
    not come.
    """
    deadline = time.monotonic() + seconds
    while not found():
        if time.monotonic() > deadline:
            raise RunFailed(f"not within {seconds:g} s: {what}")
        time.sleep(0.2)
