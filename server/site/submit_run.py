"""`fedgraft server run` and `resume`: submit a plan, follow it, say truly how it ended.

The ServerApp runs on this host, as a child of SuperExec, and writes the run's folder; progress is
read from there. It needs two things that a run's folder does not hold, the plan's own file and
where its weights lie: they are kept in the state's `plans/` and `submitted.jsonl`, for `resume`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.common import run_files
from fedgraft.common.errors import Interrupted, RunFailed, UserError
from fedgraft.common.extensions import read_offered
from fedgraft.common.files.bundle import signed_name
from fedgraft.common.model.assembly import check_scales, plan_backbone, plan_model
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import find_plan, load_plan, plan_hash, plan_yaml
from fedgraft.common.result import Status
from fedgraft.server.papers.progress import Progress
from fedgraft.server.papers.tracking import Tracker
from fedgraft.server.site import nodes
from fedgraft.server.site.flower_processes import Flower
from fedgraft.server.site.follow_run import (
    Follower,
    Say,
    completed,
    how_to_go_on,
    read_state,
    wait_for_end,
)
from fedgraft.server.site.server_file import Server
from fedgraft.server.site.start_server import connect
from fedgraft.server.site.submitted_runs import Submitted, add_submitted, read_submitted


@dataclass(frozen=True)
class Submission:
    """What is submitted: a plan, where its weights lie, the run's folder, nodes to wait for."""

    plan: Plan
    weights: str
    folder: Path
    expected: int
    resume: bool


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
    path = find_plan(plan)
    chosen = load_plan(plan, overrides)
    # a mistake is told here, not in another process's log
    check_scales(chosen)
    plan_model(plan_backbone(chosen, path.parent), chosen)
    weights = _weights(chosen, path.parent)
    if out is None:
        out = server.runs / f"{chosen.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = out.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "exists and is not an empty folder"
        remedy = f"name a new folder, or go on with what is there: fedgraft server resume {folder}"
        raise UserError(what, where=f"--out {folder}", remedy=remedy)
    count = _expected(server, chosen, expected)
    return _follow(server, Submission(chosen, weights, folder, count, resume=False), quiet)


def resume(
    server: Server, folder: Path, *, expected: int | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Go on with a run that was cut off, from its last finished round. As `run` otherwise.

    Raises:
        UserError: the folder holds no run, or one that is completed.
        RunFailed: that run is still going on.
    """
    folder = folder.absolute()
    where = str(folder)
    written = folder / run_files.PLAN
    if not written.is_file():
        remedy = "name the folder of a run that was cut off"
        raise UserError("holds no run", where=where, remedy=remedy)
    plan = load_plan(written)
    if read_state(folder).get("status") == Status.COMPLETED:
        remedy = "look at it: fedgraft report RUN"
        raise UserError("this run is completed", where=where, remedy=remedy)
    earlier = [submitted for submitted in read_submitted(server) if submitted.out == where]
    if earlier:
        weights = earlier[-1].weights
        wait_for_end(connect(server), earlier[-1].run)
    else:
        weights = _weights(plan, None)
    count = _expected(server, plan, expected)
    return _follow(server, Submission(plan, weights, folder, count, resume=True), quiet)


# ── submit and follow ─────────────────────────────────────────────────────────────────────────────
def _follow(server: Server, submission: Submission, quiet: bool) -> dict[str, Any]:
    flower = connect(server)
    plan = submission.plan
    folder = submission.folder
    expected = submission.expected
    say = _say_nothing if quiet else _say
    with contextlib.closing(Tracker.open(server.tracking, plan, folder)) as tracker:
        run_id = _submit(server, flower, submission)
        say(f"run {run_id} of {plan.name} ({plan_hash(plan)[:19]}…), {expected} nodes")
        say(f"folder {folder}")
        try:
            with (
                Progress(plan, quiet=quiet) as progress,
                progress.follow("shared model", folder),
            ):
                beside: Say = _say_nothing if progress.shown else say
                status = Follower(flower, run_id, folder, tracker, beside).wait()
                return completed(flower, run_id, status, folder)
        except KeyboardInterrupt:
            with contextlib.suppress(RunFailed):
                flower.stop(run_id)
            stopped = f"interrupted: run {run_id} is stopped"
            raise Interrupted(f"{stopped}\n{how_to_go_on(folder)}") from None


def _submit(server: Server, flower: Flower, submission: Submission) -> str:
    """Hand a run to Flower, write down what a resume needs, and return the run's id."""
    plan = str(_save_plan(server, submission.plan))
    app = _find_app(server, flower, submission.plan)
    config = {
        "plan": plan,
        "weights": submission.weights,
        "out": str(submission.folder),
        "nodes-expected": submission.expected,
        "resume": submission.resume,
    }
    run_id = flower.submit(app, config)
    submitted = Submitted(
        run=run_id,
        name=submission.plan.name,
        time=time.time(),
        resume=submission.resume,
        plan=plan,
        weights=submission.weights,
        out=str(submission.folder),
    )
    add_submitted(server, submitted)
    return run_id


def _find_app(server: Server, flower: Flower, plan: Plan) -> Path | str:
    """Return the code that the run is of: a folder, with every extension that a person named here,
    as `fedgraft server bundle` writes them; or the name that the consortium's hub has it by.

    Raises:
        UserError: the hub's cannot be what the plan needs.
    """
    if server.hub is None:
        return flower.make_app(read_offered())
    if plan.extensions:
        names = ", ".join(extension.name for extension in plan.extensions)
        what = f"the plan needs {names}, and the hub has the release alone"
        remedy = "leave `hub` out of server.yaml for this run"
        raise UserError(what, where="extensions", remedy=remedy)
    return signed_name()


# ── small ─────────────────────────────────────────────────────────────────────────────────────────
def _say(words: str) -> None:
    print(words, flush=True)


def _say_nothing(words: str) -> None:
    pass


def _weights(plan: Plan, base: Path | None) -> str:
    """Return where a plan's weights lie, or their name; empty where it has none."""
    if plan.backbone.weights_file is not None:
        return str(resolve(plan.backbone.weights_file, base))
    return plan.backbone.weights or ""


def _save_plan(server: Server, plan: Plan) -> Path:
    copy = server.state / "plans" / f"{plan.name}-{plan_hash(plan)[7:19]}.yaml"
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(plan_yaml(plan))
    return copy


def _expected(server: Server, plan: Plan, chosen: int | None) -> int:
    """Return how many nodes to wait for. Raises `UserError` where they are too few for the plan."""
    expected = chosen or nodes.count(server)
    least = plan.aggregate.min_nodes
    if expected < least:
        what = f"aggregate.min_nodes is {least}, and the nodes to wait for are {expected}"
        remedy = "register more: fedgraft server nodes add NAME KEY.pub"
        raise UserError(what, where=plan.name, remedy=remedy)
    return expected
