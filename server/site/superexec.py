"""Flower's SuperExec as the coordinator runs it: a SuperLink in trouble does not end it, and a
ServerApp that was killed is told at once.

It starts a run's ServerApp, which ends with it. Flower's own ends with the first answer of 500, and
the run is interrupted: `database is locked` is enough. That a ServerApp was killed, as happens
where memory is short, Flower notices after a minute of missing heartbeats.

    python -m fedgraft.server.site.superexec --runtime-api-address 127.0.0.1:9091 …
"""

from __future__ import annotations

import functools
import subprocess
import threading
import time
from types import SimpleNamespace
from typing import Any

import httpx
from flwr.supercore.cli import flower_superexec
from flwr.supercore.superexec import executor
from flwr.supercore.superexec import run_superexec as loop
from flwr.supercore.superexec.executor import subprocess_executor as starter

from fedgraft.common.wire.lost_process import fail_task, how_it_ended
from fedgraft.common.wire.patience import be_patient

# seconds between two attempts to tell, and for all: Flower has noticed by itself then
AGAIN = 1.0
NOTICED = 60.0


def main() -> None:
    """Run Flower's SuperExec, with our executor in it; it asks again where it is answered 500."""
    be_patient(loop, "the SuperLink")
    loop.get_executor = lambda *_, **__: Watching()  # pyright: ignore[reportPrivateImportUsage]
    flower_superexec()


class Watching(executor.SubprocessExecutor):
    """Starts the process of a task as Flower does, and waits for its end."""

    def launch(self, spec: Any) -> Any:
        """Start what the specification describes."""
        begin = functools.partial(begin_watched, spec)
        seen = SimpleNamespace(Popen=begin, DEVNULL=subprocess.DEVNULL)
        starter.subprocess = seen  # pyright: ignore[reportPrivateImportUsage]
        return super().launch(spec)


def begin_watched(spec: Any, words: list[str], **options: Any) -> None:
    """Start a process, and wait for its end in a thread."""
    process = subprocess.Popen(words, **options)
    threading.Thread(target=tell_its_end, args=(process, spec), daemon=True).start()


def tell_its_end(process: subprocess.Popen[bytes], spec: Any) -> None:
    """Wait for the end of a task's process; tell the SuperLink if it could not do so itself."""
    status = process.wait()
    if status == 0:
        return
    reason = f"the process of this run {how_it_ended(status)}"
    until = time.monotonic() + NOTICED
    answer = fail_task(spec, reason)
    while is_away(answer) and time.monotonic() < until:
        time.sleep(AGAIN)
        answer = fail_task(spec, reason)
    if answer == httpx.codes.OK:
        print(f"Lost: {reason}", flush=True)


def is_away(answer: int) -> bool:
    """Return whether an answer says nothing of the task, and it is to be told again."""
    return answer == 0 or answer >= httpx.codes.INTERNAL_SERVER_ERROR


if __name__ == "__main__":
    main()
