"""Flower's SuperNode as this node runs it: it asks for a message every second, and nothing in it
ends unseen.

    Flower's loop ── started with ──▶ SuperExec (executor.py), started again where it ends
         │
    its state of messages (answering_state.py): one whose process ended is answered at once

Flower's own loop sleeps 3 s when there is no message: since it asks right after it has answered,
when the next round is not there yet, every round begins with these 3 s, whatever it does. One small
request in a second is what a node costs the coordinator then.

Four things end in Flower's SuperNode while its process stays, connected for ever and never
answering: its loop (one answer of 500 is enough), its heartbeat (the same), its SuperExec (killed
where memory is short), and the process that works on a message. Here the loop and the heartbeat
bear a server in trouble, a SuperExec is started again, a message is answered, and what cannot be
mended ends the process: `fedgraft node start` starts another.

The node starts this file by its path and reads what it prints (`watch.py`). It imports nothing of
fedgraft.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

# seconds between two questions
PAUSE = 1.0
# seconds before a SuperExec is started again, the first time and at most
SHORTEST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
# seconds after which a SuperExec counts as well
SETTLED = 60.0
# so many in a row that did not settle: messages that wait for one are answered, too
FEW = 3
# seconds after which a SuperExec that begins no message is ended
STUCK = 300.0
# seconds between two looks at it
LOOK = 1.0


def _read(path: Path) -> SimpleNamespace:
    """Return what a file defines, read by its path, as this file itself is."""
    return SimpleNamespace(**runpy.run_path(str(path)))


_COMMON = Path(__file__).parents[2] / "common"
how_it_ended = _read(_COMMON / "wire" / "lost_process.py").how_it_ended
patience = _read(_COMMON / "wire" / "patience.py")


def main() -> None:
    """Run Flower's SuperNode, and leave when any part of it that is needed has ended."""
    cli = importlib.import_module("flwr.supernode.cli.flower_supernode")
    factory = importlib.import_module("flwr.supernode.nodestate.nodestate_factory")
    fleet = importlib.import_module("flwr.supernode.fleet_http_connection")
    loop = importlib.import_module("flwr.supernode.start_client_internal")
    start = cli.start_client_internal

    def start_loop(**settings: Any) -> None:
        state = settings["state_factory"].state()
        replace(loop, "time", SimpleNamespace(sleep=lambda seconds: pause(seconds, state)))
        replace(loop, "subprocess", SimpleNamespace(Popen=Executor(state).begin))
        start(**settings)

    replace(cli, "start_client_internal", start_loop)
    state_of_messages = _read(Path(__file__).with_name("answering_state.py")).AnsweringState
    replace(factory, "InMemoryNodeState", state_of_messages)
    patience.be_patient(fleet, "the coordinator")
    replace(fleet, "HeartbeatSender", flower_heartbeat)
    leave_after(cli.flower_supernode)


def replace(module: ModuleType, name: str, ours: Any) -> None:
    """Put something of ours in the place of Flower's. Raises `SystemExit` where Flower has none."""
    # another Flower than this was written for
    if getattr(module, name, None) is None:
        sys.exit(f"this release of Flower has no {name} in {module.__name__}")
    setattr(module, name, ours)


def leave_after(run: Callable[[], None]) -> None:
    """Run Flower's SuperNode; end the process when it returns, whatever threads there are."""
    status = 1
    try:
        run()
        print("ERROR :     The SuperNode's loop ended", flush=True)
    except SystemExit as end:
        if isinstance(end.code, int):
            status = end.code
        else:
            print(f"ERROR :     {end.code}", flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


# ── the loop ──────────────────────────────────────────────────────────────────────────────────────
def pause(seconds: float, state: Any) -> None:
    """Sleep between two questions. Raises `SystemExit` where the loop waits for what cannot come.

    Flower waits without end for the rest of a reply whose process died while it handed it over.
    """
    if state.is_torn:
        sys.exit("a reply was cut off: its process ended while it handed it over")
    time.sleep(min(seconds, PAUSE))


def flower_heartbeat(beat: Callable[[], bool]) -> Any:
    """Return Flower's sender of heartbeats, whose thread does not die of an answer.

    A SuperLink in trouble is asked again; one that does not know this node ends the process.
    """
    from flwr.supercore.heartbeat import HeartbeatSender

    def beat_on() -> bool:
        try:
            return beat()
        except Exception as error:
            if patience.status_of(error) >= patience.INTERNAL_SERVER_ERROR:
                return False
            print(f"ERROR :     {error}", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            return False

    return HeartbeatSender(beat_on)


# ── the SuperExec ─────────────────────────────────────────────────────────────────────────────────
class Executor:
    """Flower's SuperExec, started again where it ends.

        Executor(state).begin(["flower-superexec", …])

    Args:
        state: an `AnsweringState`.
    """

    def __init__(self, state: Any) -> None:
        self._state = state

    def begin(self, command: Sequence[str]) -> None:
        """Start it, in place of Flower's `Popen`, and look after it from a thread."""
        threading.Thread(target=self._look_after, args=(command,), daemon=True).start()

    def _look_after(self, command: Sequence[str]) -> None:
        wait = SHORTEST_PAUSE
        in_a_row = 0
        while True:
            began = time.monotonic()
            end = self._run(command)
            in_a_row += 1
            if time.monotonic() - began > SETTLED:
                wait = SHORTEST_PAUSE
                in_a_row = 1
            print(f"Executor {end}; again in {wait:g} s", flush=True)
            reason = f"what starts processes for messages at this node {end}"
            self._state.fail(reason, waiting=in_a_row >= FEW)
            time.sleep(wait)
            wait = min(LONGEST_PAUSE, 2 * wait)

    def _run(self, command: Sequence[str]) -> str:
        """Run it to its end, and return how it ended. One that begins no message is ended."""
        try:
            process = subprocess.Popen(command)
        except OSError as error:
            return f"cannot be started ({error.strerror})"
        idle = 0.0
        while True:
            try:
                return how_it_ended(process.wait(LOOK))
            except subprocess.TimeoutExpired:
                idle = idle + LOOK if self._state.waits() else 0.0
            if idle > STUCK:
                process.kill()
                process.wait()
                return f"began no message for {STUCK:g} s"


if __name__ == "__main__":
    main()
