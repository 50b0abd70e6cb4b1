"""The memory of a federation's processes while something happens, by kind of process.

with MemoryWatch(federation) as watch:
    watch.begin("hand-out")
    federation.run(plan, out)
watch.peaks["hand-out"]["ServerApp"].resident
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedgraft.simulations.deployment.local_federation import LocalFederation
from fedgraft.simulations.deployment.processes import PROC, list_processes

# seconds between two looks
LOOK = 0.1
# a kind of process → a word of its command line, or its name in `top`
KINDS = {
    "ServerApp": "serverapp.py",
    "SuperLink": "flower-superlink",
    "gateway": "fedgraft.server.site.gateway",
    "SuperNode": "supernode.py",
    "ClientApp": "flwr-clientapp",
}
# written into `clear_refs`: the largest resident memory so far is forgotten
FORGET_PEAK = "5"
KILOBYTE = 1024


@dataclass(frozen=True)
class Memory:
    """Bytes of a process: all that is resident, and of it what is not the content of a file."""

    resident: int = 0
    anonymous: int = 0

    def or_more(self, other: Memory) -> Memory:
        """Return the larger of both, each by itself."""
        resident = max(self.resident, other.resident)
        return Memory(resident, max(self.anonymous, other.anonymous))


class MemoryWatch(threading.Thread):
    """Peaks of the processes of a federation, by phase and kind; the largest process of a kind.

    Attributes:
        peaks: phase → kind → memory.
    """

    def __init__(self, federation: LocalFederation, phase: str = "idle") -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, dict[str, Memory]] = {}
        self._folder = str(federation.folder).encode()
        self._kinds: dict[int, str] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._phase = phase
        self.begin(phase)

    def begin(self, phase: str) -> None:
        """Begin a phase: the peaks from now on are its own."""
        with self._lock:
            self._phase = phase
            self.peaks[phase] = dict.fromkeys(KINDS, Memory())
            for pid in self._kinds:
                with contextlib.suppress(OSError):
                    (PROC / str(pid) / "clear_refs").write_text(FORGET_PEAK)

    def run(self) -> None:
        """Look until it is ended."""
        while not self._ended.wait(LOOK):
            self.look()

    def look(self) -> None:
        """Look once."""
        with self._lock:
            peaks = self.peaks[self._phase]
            self._kinds = dict(self._find())
            for pid, kind in self._kinds.items():
                peaks[kind] = peaks[kind].or_more(read_memory(pid))

    def _find(self) -> Iterator[tuple[int, str]]:
        for process in list_processes():
            known = self._kinds.get(process.pid)
            if known is not None and known != "ClientApp":
                yield process.pid, known
                continue
            kind = self._kind_of(process.pid, process.name)
            if kind is not None:
                yield process.pid, kind

    def _kind_of(self, pid: int, name: str) -> str | None:
        """Return the kind of one of the federation's processes; None for any other."""
        if name == KINDS["ClientApp"]:
            return "ClientApp" if self._is_ours(pid) else None
        try:
            command = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            return None
        for kind, word in KINDS.items():
            if kind != "ClientApp" and word in command and "python" in command:
                return kind if self._is_ours(pid) else None
        return None

    def _is_ours(self, pid: int) -> bool:
        return is_of(self._folder, pid)

    def __enter__(self) -> Self:
        self.look()
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self.join()


def count_processor_seconds(federation: LocalFederation) -> float:
    """Return what all processes of a federation have computed so far, children that ended too."""
    folder = str(federation.folder).encode()
    ticks = 0
    for process in list_processes():
        if is_of(folder, process.pid):
            ticks += sum(_read_ticks(process.pid))
    return ticks / os.sysconf("SC_CLK_TCK")


def _read_ticks(pid: int) -> list[int]:
    """Return a process's own time as user and system, and that of its children that ended."""
    try:
        _, _, rest = (PROC / str(pid) / "stat").read_text().rpartition(")")
    except OSError:
        return []
    return [int(word) for word in rest.split()[11:15]]


def is_of(folder: bytes, pid: int) -> bool:
    """Return whether a process was started below a folder, by its environment."""
    try:
        return folder in (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False


def read_memory(pid: int | str) -> Memory:
    """Return the largest resident memory of a process so far, and what it has of its own now; zero
    once it is gone.
    """
    values: dict[str, int] = {}
    try:
        lines = (Path(PROC) / str(pid) / "status").read_text().splitlines()
    except OSError:
        return Memory()
    for line in lines:
        key, _, rest = line.partition(":")
        if key in ("VmHWM", "RssAnon"):
            values[key] = int(rest.split()[0]) * KILOBYTE
    return Memory(values.get("VmHWM", 0), values.get("RssAnon", 0))
