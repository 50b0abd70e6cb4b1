"""Keeps a few processes running: starts them in order, restarts what ends, stops them in reverse.

A line per event.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgraft.common.errors import RunFailed
from fedgraft.server.site.server_file import Address

# seconds for a process to answer on its port
READY_TIMEOUT = 90.0
# seconds for a process without a port to live
ALIVE_TIMEOUT = 1.0
# seconds for a process to end after SIGTERM
STOP_TIMEOUT = 20.0
# seconds between two starts
SHORTEST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
# seconds after which a process counts as well, and the next pause is short again
SETTLED = 60.0
# bytes; the log before it is kept as .1
LARGEST_LOG = 50_000_000
LAST_LINES = 15


@dataclass
class Child:
    """One process: how it is started, and how it is.

    Attributes:
        port: where it answers once it is ready.
        again: when it is to be started again; 0: it runs.
    """

    name: str
    command: Sequence[str]
    port: Address | None = None
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    pause: float = SHORTEST_PAUSE
    started: float = 0.0
    again: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        return self.process is not None and self.process.poll() is None

    @property
    def waits(self) -> bool:
        """Whether it has ended and is to be started again."""
        return self.again > 0 and not self.alive


class Supervisor:
    """Runs children until SIGTERM or Ctrl-C.

        children = [Child("superlink", ["flower-superlink", …], Address("127.0.0.1", 9091))]
        Supervisor(children, folder=work, logs=logs, environment=os.environ).run("ready")

    Args:
        children: in the order in which they need each other.
        folder: where they run; neutral, so that nothing is imported from it.
        logs: folder for one log file each.
    """

    def __init__(
        self, children: Sequence[Child], *, folder: Path, logs: Path, environment: Mapping[str, str]
    ) -> None:
        self.children = list(children)
        self._folder, self._logs, self._environment = folder, logs, environment
        self._ended = threading.Event()

    def run(self, ready: str) -> None:
        """Start all, say that they are ready, watch them, stop them.

        Raises:
            RunFailed: one did not come up the first time; carries the end of its log.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._ended.set())
        try:
            for child in self.children:
                self._start(child)
                if not self._answers(child) and not self._ended.is_set():
                    what = f"{child.name} did not start"
                    raise RunFailed(f"{what}. The end of its log:\n{self._tail(child)}")
            if not self._ended.is_set():
                say(ready)
            while not self._ended.wait(0.2):
                for child in self.children:
                    self._watch(child)
        finally:
            for child in reversed(self.children):
                self._stop(child)
            say("stopped")

    # ── one child ─────────────────────────────────────────────────────────────────────────────────
    def _start(self, child: Child) -> None:
        path = self._log(child)
        if path.exists() and path.stat().st_size > LARGEST_LOG:
            path.replace(path.with_suffix(".log.1"))
        with path.open("ab") as log:
            child.process = subprocess.Popen(
                child.command,
                cwd=self._folder,
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches this process only: the order of stopping is ours
                start_new_session=True,
            )
        child.starts += 1
        child.started = time.monotonic()
        child.again = 0.0
        say(f"{child.name} started (pid {child.process.pid})")

    def _watch(self, child: Child) -> None:
        """Start a child again that has ended, after a pause."""
        now = time.monotonic()
        if child.waits:
            if now >= child.again:
                self._start(child)
            return
        code = child.process.poll() if child.process is not None else None
        if code is None:
            return
        if now - child.started > SETTLED:
            child.pause = SHORTEST_PAUSE
        child.again = now + child.pause
        when = f"starts again in {child.pause:g} s"
        say(f"{child.name} ended {_how(code)}; {when}; its log: {self._log(child)}")
        child.pause = min(LONGEST_PAUSE, 2 * child.pause)

    def _stop(self, child: Child) -> None:
        if child.process is None or child.waits:
            return
        # with what it started: a run's ServerApp is SuperExec's
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGTERM)
        try:
            child.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            say(f"{child.name} did not end within {STOP_TIMEOUT:g} s and is killed")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
        say(f"{child.name} ended")

    def _answers(self, child: Child) -> bool:
        """Return whether it answers on its port in time.

        Without a port: whether it lives through its first second.
        """
        timeout = READY_TIMEOUT if child.port else ALIVE_TIMEOUT
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and not self._ended.wait(0.1):
            if not child.alive:
                return False
            if child.port:
                with contextlib.suppress(OSError), socket.create_connection(child.port, timeout=1):
                    return True
        return child.port is None

    def _log(self, child: Child) -> Path:
        return self._logs / f"{child.name}.log"

    def _tail(self, child: Child) -> str:
        lines = self._log(child).read_text(errors="replace").splitlines()
        return "\n".join(lines[-LAST_LINES:])


def say(words: str) -> None:
    """Print one event, one line, with its time (UTC)."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    print(f"{now} {words}", flush=True)


def _how(code: int) -> str:
    """Return how a process ended."""
    if code < 0:
        return f"by {signal.Signals(-code).name}"
    return f"with exit status {code}"
