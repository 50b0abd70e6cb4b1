"""`fedgraft server run` and `resume`: submit a plan, follow it, say truly how it ended.

The ServerApp runs on this host, as a child of SuperExec, and writes the run's folder; progress is
read from there. It needs two things that a run's folder does not hold, the plan's own file and
where its weights lie: they are kept in the state's `plans/` and `submitted.jsonl`, for `resume`.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedgraft.common.errors import Interrupted, RunFailed, UserError
from fedgraft.common.files.bundle import signed_name
from fedgraft.common.model.assembly import plan_backbone, plan_model
from fedgraft.common.plan.plan import WEIGHT_FILES, Plan
from fedgraft.common.plan.plan_file import find_plan, load_plan, plan_hash, plan_yaml, resolve
from fedgraft.server.papers.progress import Progress
from fedgraft.server.papers.run_folder import RunFolder
from fedgraft.server.papers.tracking import Tracker
from fedgraft.server.site import nodes
from fedgraft.server.site.flower_processes import COMPLETED, Flower
from fedgraft.server.site.server_file import Server
from fedgraft.server.site.start_server import connect

LOOK = 1.0  # seconds between two looks at the run's folder
ASK = 5.0  # seconds between two questions to the SuperLink: each is a process of its own


def run(
    server: Server,
    plan: str,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    expected: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a plan over the registered nodes and wait for its end.

    Args:
        plan: a file, or a ready plan's name.
        out: the run's folder, new or empty; default: the server's `runs`, by name and time.
        expected: nodes to wait for (two minutes at most); default: all that are registered.

    Returns:
        The content of result.json, with the folder as `folder`.

    Raises:
        UserError: the plan, its weights or the folder are not in order; nothing was submitted.
        RunFailed: the SuperLink does not answer, or the run failed; what was finished is in the
            folder.
        Interrupted: Ctrl-C; the run was stopped.
    """
    path, wanted = find_plan(plan), load_plan(plan, overrides)
    plan_model(
        plan_backbone(wanted, path.parent), wanted
    )  # a mistake is told here, not in another process's log
    folder = (out or server.runs / f"{wanted.name}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    weights = wanted.backbone.weights or ""
    if weights.lower().endswith(WEIGHT_FILES):
        weights = str(resolve(weights, path.parent))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        remedy = f"name a new folder, or go on with what is there: fedgraft server resume {folder}"
        raise UserError("exists and is not an empty folder", where=f"--out {folder}", remedy=remedy)
    return _follow(
        server,
        wanted,
        folder,
        weights,
        _expected(server, wanted, expected),
        resume=False,
        quiet=quiet,
    )


def resume(
    server: Server, folder: Path, *, expected: int | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Go on with a run that was cut off, from its last finished round. As `run` otherwise.

    Raises:
        UserError: the folder holds no run, or one that is completed.
        RunFailed: that run is still going on.
    """
    folder = folder.absolute()
    if not (folder / "plan.yaml").is_file():
        raise UserError(
            "holds no run", where=str(folder), remedy="name the folder of a run that was cut off"
        )
    wanted = load_plan(folder / "plan.yaml")
    if _result(folder).get("status") == "completed":
        raise UserError(
            "this run is completed", where=str(folder), remedy="look at it: fedgraft report RUN"
        )
    last = next((line for line in reversed(submitted(server)) if line["out"] == str(folder)), None)
    if last is None:
        weights = wanted.backbone.weights or ""
        weights = str(resolve(weights, None)) if weights.lower().endswith(WEIGHT_FILES) else weights
    else:
        weights = last["weights"]
        _must_have_ended(connect(server), last["run"])
    return _follow(
        server,
        wanted,
        folder,
        weights,
        _expected(server, wanted, expected),
        resume=True,
        quiet=quiet,
    )


def submitted(server: Server) -> list[dict[str, Any]]:
    """What was submitted so far, oldest first: run id, plan, folder, weights, time."""
    if not server.submitted.exists():
        return []
    return [
        json.loads(line) for line in server.submitted.read_text().splitlines() if line.endswith("}")
    ]


# ── submit and follow ─────────────────────────────────────────────────────────────────────────────
def _follow(
    server: Server,
    plan: Plan,
    folder: Path,
    weights: str,
    expected: int,
    *,
    resume: bool,
    quiet: bool,
) -> dict[str, Any]:
    flower = connect(server)
    config = {"plan": str(_keep(server, plan)), "weights": weights, "out": str(folder)}
    say = (lambda words: None) if quiet else (lambda words: print(words, flush=True))
    with contextlib.closing(Tracker.open(server.tracking, plan, folder)) as tracker:
        app = flower.bundled() if server.hub is None else signed_name()
        run_id = flower.submit(app, config | {"nodes-expected": expected, "resume": resume})
        entry = {"run": run_id, "name": plan.name, "time": time.time(), "resume": resume}
        with server.submitted.open("a") as file:
            file.write(json.dumps(entry | config) + "\n")
        say(
            f"run {run_id} of {plan.name} ({plan_hash(plan)[:19]}…), {expected} nodes\nfolder"
            f" {folder}"
        )
        try:
            with (
                Progress(plan, expected, quiet=quiet) as progress,
                progress.follow("shared model", folder),
            ):
                status = _wait(
                    flower,
                    run_id,
                    folder,
                    tracker,
                    say if not progress.shown else lambda words: None,
                )
                return _completed(flower, run_id, status, folder)
        except KeyboardInterrupt:
            with contextlib.suppress(RunFailed):
                flower.stop(run_id)
            raise Interrupted(
                f"interrupted: run {run_id} is stopped\n{_how_to_go_on(folder)}"
            ) from None


def _completed(flower: Flower, run_id: str, status: str, folder: Path) -> dict[str, Any]:
    """The result of a run that Flower and the run's own folder call completed. Raises `RunFailed`
    for any other.
    """
    result = _result(folder)
    if status == COMPLETED and result.get("status") == "completed":
        return result | {"folder": str(folder), "run": run_id}
    said = (
        result.get("error")
        or f"Flower ended it as {status}; the end of its log:\n{flower.log(run_id)}"
    )
    raise RunFailed(f"run {run_id} failed: {said}\n{_how_to_go_on(folder)}")


def _wait(
    flower: Flower, run_id: str, folder: Path, tracker: Tracker, say: Callable[[str], None]
) -> str:
    """Follow a run to its end; the SuperLink may be away for a while, the run goes on without
    it.
    """
    told, asked, away = 0, time.monotonic(), 0
    while True:
        time.sleep(LOOK)
        rows = lines(folder)
        tracker.write(rows)
        told = _tell(rows, told, say)
        if time.monotonic() - asked < ASK and _result(folder).get("status") in (None, "running"):
            continue
        asked = time.monotonic()
        try:
            status, away = flower.status(run_id), 0
        except RunFailed as error:
            away += 1
            if away == 1:
                say("the SuperLink does not answer; waiting for it")
            if away * ASK > 600:
                raise RunFailed(
                    f"the SuperLink is away for ten minutes: {error}\n{_how_to_go_on(folder)}"
                ) from error
            continue
        if status.startswith("finished"):
            rows = lines(folder)
            tracker.write(rows)
            _tell(rows, told, say)
            return status


def lines(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl so far."""
    try:
        text = (folder / "metrics.jsonl").read_text()
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _tell(rows: Sequence[dict[str, Any]], told: int, say: Callable[[str], None]) -> int:
    """One line for each round that is new, where no bar shows it."""
    last = max((row["round"] for row in rows if "final" not in row), default=0)
    for number in range(told + 1, last + 1):
        here = [row for row in rows if row["round"] == number and "final" not in row]
        refused = [f"{row['node']}: {row['refused']}" for row in here if "refused" in row]
        said = f"round {number}: {len(here) - len(refused)} of {len(here)} nodes"
        say("; ".join([said, *refused]))
    return max(told, last)


# ── small ─────────────────────────────────────────────────────────────────────────────────────────
def _keep(server: Server, plan: Plan) -> Path:
    copy = server.state / "plans" / f"{plan.name}-{plan_hash(plan)[7:19]}.yaml"
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(plan_yaml(plan))
    return copy


def _expected(server: Server, plan: Plan, asked: int | None) -> int:
    expected = asked or nodes.count(server)
    if expected < plan.aggregate.min_nodes:
        what = (
            f"aggregate.min_nodes is {plan.aggregate.min_nodes}, and the nodes to wait for are"
            f" {expected}"
        )
        raise UserError(
            what, where=plan.name, remedy="register more: fedgraft server nodes add NAME KEY.pub"
        )
    return expected


def _must_have_ended(flower: Flower, run_id: str) -> None:
    """Flower notices within a minute that a ServerApp is gone; until then it lists the run as
    running.
    """
    deadline = time.monotonic() + 90
    while not (status := flower.status(run_id)).startswith("finished"):
        if time.monotonic() > deadline:
            remedy = "wait for its end, or stop it with Ctrl-C where it was started"
            raise RunFailed(f"run {run_id} is still {status}\n  → {remedy}")
        time.sleep(ASK)


def _result(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, json.JSONDecodeError):
        return json.loads((folder / "result.json").read_text())
    return {}


def _how_to_go_on(folder: Path) -> str:
    checkpoint = RunFolder(folder).latest() if folder.is_dir() else None
    if checkpoint is None:
        return "  → no round was finished; start anew, into another folder"
    again = shlex.join(["fedgraft", "server", "resume", str(folder)])
    return f"{checkpoint.round} finished rounds are kept\n  → go on: {again}"
