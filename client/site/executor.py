"""`flower-superexec` as this node runs it: each message's process is forked from one that has its
imports behind it.

    SuperNode → SuperExec (here) ──pipe──▶ forker: torch and Flower imported, nothing else ──fork──▶
    launcher.py

Flower starts a new interpreter for each message, which imports Flower and torch anew: 2.4 s of
processor time, 3.7 with Opacus (`import` of PRELOADED, once, two cores), at every node and in every
round. The forker imports packages from the registry only. The approved code is read and checked for
each message in the forked process, by `launcher.py`, as if it had been started alone. It never uses
a GPU itself: a fork could not use it, then. Where the forker dies, the next message starts another.

The forker says how each process ended. One that ended by a signal or with an error has told nobody,
if it was killed: the SuperNode is told then that its task failed, and answers the message
(`supernode.py`), where Flower would wait for a minute of missing heartbeats.

The node starts this file by its path, under the name of Flower's program. It imports nothing of
fedgraft.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

PRELOADED = ("flwr.supernode.cli", "flwr.clientapp", "torch", "opacus")
FORKER = "--forker"
# seconds between two looks at it
LOOK = 0.1
# what the node's watch waits for
READY = "Executor ready"
# Flower's name for the program and the task; what `top` shows of a message's process
NAME = "flwr-clientapp"
# of prctl(2)
PR_SET_NAME = 15

_COMMON = Path(__file__).parents[2] / "common"
# read by its path, as this file itself is
lost_process = SimpleNamespace(**runpy.run_path(str(_COMMON / "wire" / "lost_process.py")))
how_it_ended = lost_process.how_it_ended


def main() -> None:
    """Run Flower's SuperExec, with our executor in it."""
    from flwr.supercore.cli import flower_superexec
    from flwr.supercore.superexec import executor
    from flwr.supercore.superexec import run_superexec as loop

    # another Flower than this was written for
    if not callable(getattr(loop, "get_executor", None)):
        sys.exit("this release of Flower has no get_executor in its SuperExec")

    class Forking(executor.SubprocessExecutor):
        """Asks the forker for a process, and tells the SuperNode of one that was killed."""

        def __init__(self) -> None:
            # by token
            self._specs: dict[str, Any] = {}
            self._forker = Forker(self._ended)

        def reconcile(self) -> None:
            """Wait, before a task is asked for, until a process could be forked for it."""
            if self._forker.wait():
                print(READY, flush=True)

        def launch(self, spec: Any) -> Any:
            """Start what the specification describes."""
            if spec.task_type != NAME:
                return super().launch(spec)
            self._specs[spec.token] = spec
            self._forker.start(arguments(spec))
            return executor.LaunchResult.accepted()

        def _ended(self, words: list[str], status: int) -> None:
            spec = self._specs.pop(words[words.index("--token") + 1])
            if status != 0:
                reason = f"the process of this message {how_it_ended(status)}"
                lost_process.fail_task(spec, reason)

    loop.get_executor = lambda *_, **__: Forking()  # pyright: ignore[reportPrivateImportUsage]
    flower_superexec()


def arguments(spec: Any) -> list[str]:
    """Return the words of `flwr-clientapp` for a task, as Flower would write them."""
    words = [NAME, "--runtime-api-address", spec.runtime_api_address, "--token", spec.token]
    if spec.insecure:
        words.append("--insecure")
    elif spec.root_certificates_path is not None:
        words += ["--root-certificates", spec.root_certificates_path]
    if spec.parent_pid is not None:
        words += ["--parent-pid", str(spec.parent_pid)]
    return words


# ── the side of the SuperExec ─────────────────────────────────────────────────────────────────────
class Forker:
    """The process that others are forked from.

    It imports while the SuperExec starts, and ends with its pipe.

    Args:
        ended: is told the words that a process was started with and its exit status, from a thread.
    """

    def __init__(self, ended: Callable[[list[str], int], None]) -> None:
        self._ended = ended
        self._ready = threading.Event()
        self._process = self._begin()

    def wait(self) -> bool:
        """Wait until it has its imports behind it; return whether there was anything to wait for.

        A task that was taken and whose process is not there after 30 s goes back to its queue.

        Raises:
            SystemExit: it ended before.
        """
        if self._process.poll() is not None:
            self._begin_again()
        if self._ready.is_set() and self._announced:
            return False
        while not self._ready.wait(LOOK):
            status = self._process.poll()
            if status is not None:
                sys.exit(f"the forker {how_it_ended(status)} before it was ready")
        self._announced = True
        return True

    def start(self, words: list[str]) -> None:
        """Fork one process with these words as its command line."""
        try:
            self._send(words)
        # it was killed
        except OSError:
            self._begin_again()
            self._send(words)

    def _begin_again(self) -> None:
        status = self._process.wait()
        print(f"Forker {how_it_ended(status)}; another is started", flush=True)
        self._process = self._begin()

    def _send(self, words: list[str]) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        pipe.write(json.dumps(words) + "\n")
        pipe.flush()

    def _begin(self) -> subprocess.Popen[str]:
        self._ready = threading.Event()
        self._announced = False
        reader, writer = os.pipe()
        command = [sys.executable, "-P", __file__, FORKER, str(writer)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, pass_fds=[writer])
        os.close(writer)
        hearing = (reader, self._ready)
        threading.Thread(target=self._hear, args=hearing, daemon=True).start()
        return process

    def _hear(self, reader: int, ready: threading.Event) -> None:
        with open(reader) as ends:
            if ends.readline():
                ready.set()
            for line in ends:
                words, status = json.loads(line)
                self._ended(words, status)


# ── the side of the forker ────────────────────────────────────────────────────────────────────────
def fork_for_ever(orders: int, ends: int) -> None:
    """Import and say so; then fork for each line of orders, and write how each process ended.

    It returns once the SuperExec is gone.

    Args:
        orders, ends: file descriptors.
    """
    for name in PRELOADED:
        # the forked process meets it again, and says so
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    woken = wake_at_ends()
    os.write(ends, b"ready\n")
    working: dict[int, list[str]] = {}
    rest = b""
    while True:
        ready, _, _ = select.select([orders, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            report(working, ends)
        if orders not in ready:
            continue
        piece = os.read(orders, 65536)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            words = json.loads(line)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(ends)
                become(words)
            working[pid] = words


def wake_at_ends() -> int:
    """Return a file descriptor that can be read when a child has ended."""
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    # a signal that is ignored wakes nobody
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return woken


def report(working: dict[int, list[str]], ends: int) -> None:
    """Write how each child ended that has, a line of JSON each; take it out of those at work."""
    for pid in list(working):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            line = json.dumps([working.pop(pid), os.waitstatus_to_exitcode(status)])
            with contextlib.suppress(OSError):
                os.write(ends, line.encode() + b"\n")


def become(words: list[str]) -> NoReturn:
    """Run the launcher in this process, as if it had been started with these words."""
    status = 1
    try:
        os.close(0)
        os.open(os.devnull, os.O_RDONLY)
        if sys.platform.startswith("linux"):
            ctypes.CDLL(None).prctl(PR_SET_NAME, NAME.encode())
        sys.argv = words
        launcher = Path(__file__).with_name("launcher.py")
        runpy.run_path(str(launcher), run_name="__main__")
        status = 0
    except SystemExit as end:
        status = _status_of(end)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _status_of(end: SystemExit) -> int:
    """Return the exit status as an interpreter would; words are printed."""
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code
    print(end.code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    if FORKER in sys.argv[1:]:
        fork_for_ever(sys.stdin.fileno(), int(sys.argv[-1]))
    else:
        main()
