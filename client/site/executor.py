"""`flower-superexec` as this node runs it: each message's process is forked from one that has its
imports behind it.

    SuperNode → SuperExec (here) ──pipe──▶ forker: torch and Flower imported, nothing else ──fork──▶
    launcher.py

Flower starts a new interpreter for each message, which imports Flower and torch anew: 2.4 s of
processor time, 3.7 with Opacus (`import` of PRELOADED, once, two cores), at every node and in every
round. The forker imports packages from the registry only. The approved code is read and checked for
each message in the forked process, by `launcher.py`, as if it had been started alone. It never uses
a GPU itself: a fork could not use it, then. Where the forker dies, the next message starts another.

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
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import IO, Any, NoReturn

PRELOADED = ("flwr.supernode.cli", "flwr.clientapp", "torch", "opacus")
FORKER = "--forker"
# Flower's name for the program and the task; what `top` shows of a message's process
NAME = "flwr-clientapp"
# of prctl(2)
PR_SET_NAME = 15


def main() -> None:
    """Run Flower's SuperExec, with our executor in it."""
    from flwr.supercore.cli import flower_superexec
    from flwr.supercore.superexec import executor
    from flwr.supercore.superexec import run_superexec as loop

    # another Flower than this was written for
    if not callable(getattr(loop, "get_executor", None)):
        sys.exit("this release of Flower has no get_executor in its SuperExec")
    forker = Forker()

    class Forking(executor.SubprocessExecutor):
        """Asks the forker for a process."""

        def launch(self, spec: Any) -> Any:
            """Start what the specification describes."""
            if spec.task_type != NAME:
                return super().launch(spec)
            forker.start(arguments(spec))
            return executor.LaunchResult.accepted()

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
    """

    def __init__(self) -> None:
        self._process = self._begin()

    def start(self, words: list[str]) -> None:
        """Fork one process with these words as its command line."""
        try:
            self._send(words)
        # it was killed
        except OSError:
            self._process.wait()
            self._process = self._begin()
            self._send(words)

    def _send(self, words: list[str]) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        pipe.write(json.dumps(words) + "\n")
        pipe.flush()

    @staticmethod
    def _begin() -> subprocess.Popen[str]:
        command = [sys.executable, "-P", __file__, FORKER]
        return subprocess.Popen(command, stdin=subprocess.PIPE, text=True)


# ── the side of the forker ────────────────────────────────────────────────────────────────────────
def fork_for_ever(orders: IO[str]) -> None:
    """Import; then fork for each line, until the SuperExec is gone."""
    for name in PRELOADED:
        # the forked process meets it again, and says so
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # nobody waits for them: no zombies
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in orders:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            become(json.loads(line))


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
        fork_for_ever(sys.stdin)
    else:
        main()
