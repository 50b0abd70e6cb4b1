"""Follow a run that was submitted to its end, and say truly how it ended."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedgraft.common.errors import RunFailed
from fedgraft.common.result import Status
from fedgraft.common.run_files import RESULT
from fedgraft.server.papers.metric_lines import is_of_training, read_lines
from fedgraft.server.papers.run_folder import RunFolder
from fedgraft.server.papers.tracking import Tracker
from fedgraft.server.site.flower_processes import COMPLETED, Flower

# seconds between two looks at the run's folder
LOOK = 1.0
# seconds between two questions to the SuperLink
ASK = 5.0
# seconds that the SuperLink may be away
PATIENCE = 600.0
# seconds after which Flower has noticed that a ServerApp is gone
NOTICED = 90.0

Say = Callable[[str], None]


class Follower:
    """Looks at one run's folder, and asks the SuperLink about it now and then.

        status = Follower(flower, "123", folder, tracker, print).wait()

    Args:
        run_id: Flower's.
        folder: the run's.
        say: is told a sentence for each round, and where the SuperLink is away.
    """

    def __init__(
        self, flower: Flower, run_id: str, folder: Path, tracker: Tracker, say: Say
    ) -> None:
        self._flower = flower
        self._run_id = run_id
        self._folder = folder
        self._tracker = tracker
        self._say = say
        self._last_round = 0
        self._away = 0

    def wait(self) -> str:
        """Return how Flower says the run ended.

        Raises:
            RunFailed: the SuperLink is away for too long; for a while it may be, the run goes on
                without it.
        """
        last_ask = time.monotonic()
        while True:
            time.sleep(LOOK)
            self._look()
            recently = time.monotonic() - last_ask < ASK
            if recently and read_state(self._folder).get("status") in (None, Status.RUNNING):
                continue
            last_ask = time.monotonic()
            status = self._ask()
            if status.startswith("finished"):
                self._look()
                return status

    def _look(self) -> None:
        """Pass on what the run has written since the last look."""
        lines = read_lines(self._folder)
        self._tracker.write(lines)
        self._last_round = tell_rounds(lines, self._last_round, self._say)

    def _ask(self) -> str:
        """Return the run's status, empty while the SuperLink does not answer."""
        try:
            status = self._flower.status(self._run_id)
        except RunFailed as error:
            self._away += 1
            if self._away == 1:
                self._say("the SuperLink does not answer; waiting for it")
            if self._away * ASK > PATIENCE:
                what = f"the SuperLink is away for ten minutes: {error}"
                raise RunFailed(f"{what}\n{how_to_go_on(self._folder)}") from error
            return ""
        self._away = 0
        return status


def tell_rounds(lines: Sequence[dict[str, Any]], after: int, say: Say) -> int:
    """Say a sentence for each round after one; return the last round there is."""
    training = [line for line in lines if is_of_training(line)]
    last = max((line["round"] for line in training), default=0)
    for number in range(after + 1, last + 1):
        cohort = [line for line in training if line["round"] == number]
        refused = [f"{line['node']}: {line['refused']}" for line in cohort if "refused" in line]
        valid = len(cohort) - len(refused)
        say("; ".join([f"round {number}: {valid} of {len(cohort)} nodes", *refused]))
    return max(after, last)


def completed(flower: Flower, run_id: str, status: str, folder: Path) -> dict[str, Any]:
    """Return the result of a run that Flower and the run's own folder call completed.

    Raises:
        RunFailed: any other run; says why, and how to go on.
    """
    result = read_state(folder)
    if status == COMPLETED and result.get("status") == Status.COMPLETED:
        return result | {"folder": str(folder), "run": run_id}
    reason = result.get("error")
    if not reason:
        reason = f"Flower ended it as {status}; the end of its log:\n{flower.log(run_id)}"
    raise RunFailed(f"run {run_id} failed: {reason}\n{how_to_go_on(folder)}")


def wait_for_end(flower: Flower, run_id: str) -> None:
    """Return once a run has ended.

    Flower notices within a minute that a ServerApp is gone; until then it lists the run as running.

    Raises:
        RunFailed: it is still going on.
    """
    deadline = time.monotonic() + NOTICED
    while not (status := flower.status(run_id)).startswith("finished"):
        if time.monotonic() > deadline:
            remedy = "wait for its end, or stop it with Ctrl-C where it was started"
            raise RunFailed(f"run {run_id} is still {status}\n  → {remedy}")
        time.sleep(ASK)


def read_state(folder: Path) -> dict[str, Any]:
    """Return a run's result, empty before there is one."""
    with contextlib.suppress(OSError, json.JSONDecodeError):
        return json.loads((folder / RESULT).read_text())
    return {}


def how_to_go_on(folder: Path) -> str:
    """Return what of a run that was cut off is kept, and the command that goes on with it."""
    checkpoint = RunFolder(folder).latest() if folder.is_dir() else None
    if checkpoint is None:
        return "  → no round was finished; start anew, into another folder"
    command = shlex.join(["fedgraft", "server", "resume", str(folder)])
    return f"{checkpoint.round} finished rounds are kept\n  → go on: {command}"
