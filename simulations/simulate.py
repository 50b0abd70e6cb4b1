"""`fedgraft simulate`: one plan, some seeds, some baselines, one table, one folder."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.errors import Interrupted, RunFailed, UserError, UserErrors
from fedgraft.common.files.yaml_file import parse_yaml
from fedgraft.common.model.assembly import check_scales, plan_backbone, plan_model
from fedgraft.common.plan.phases import purpose_of
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.common.result import Result, SeedResults
from fedgraft.common.tasks import TASKS
from fedgraft.server.papers.progress import Progress
from fedgraft.server.papers.run_folder import RunFolder
from fedgraft.server.papers.run_manifest import run_facts, write_manifest
from fedgraft.simulations.baselines import (
    BASELINES,
    VARIANTS,
    default_baselines,
    list_changes,
    measure_alone,
    measure_pooled,
)
from fedgraft.simulations.data_facts import (
    NodeCounts,
    count_nodes,
    describe_data,
    note_reference,
    note_small_nodes,
)
from fedgraft.simulations.engines.engine import EngineOptions, nodes_on_disk, simulate
from fedgraft.simulations.results_table import count_round_bytes, print_table

PICTURE = "labels_by_node.png"


@dataclass(frozen=True)
class SimulationOptions:
    """How a plan is simulated on this machine.

    Attributes:
        engine: which engine, and how.
        baselines: what the shared model is measured against; names of `baselines.BASELINES`.
            Default: `default_baselines`.
        ledger: folder of privacy ledgers that outlast the run; default: in the run's folder, each
            run starts fresh.
        policy: clauses of every node's policy.
        quiet: show no progress and print nothing.
        summary: print the table at the end.
        pages: write the picture, the page and the manifest.
    """

    engine: EngineOptions = field(default_factory=EngineOptions)
    baselines: tuple[str, ...] | None = None
    ledger: Path | None = None
    policy: Mapping[str, Any] = field(default_factory=dict)
    quiet: bool = False
    summary: bool = True
    pages: bool = True


def simulate_plan(
    plan: str,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    seeds: int = 1,
    options: SimulationOptions | None = None,
) -> dict[str, Any]:
    """Run a plan's federation on this machine, with its baselines, and print the table.

    Args:
        plan: a file, or the name of a ready plan.
        overrides: keys of the plan that are changed, such as "train.rounds=3".
        out: the run's folder; with several seeds, a folder for each seed inside it.
        seeds: how many seeds, counted up from the plan's own.

    Returns:
        result.json of the run; with several seeds, `{"seeds": [result, …]}`.

    Raises:
        UserError, RunFailed: see `fedgraft.simulations.engines.engine.simulate`.
        Interrupted: Ctrl-C, with a message that says what was kept and how to go on.
    """
    options = options or SimulationOptions()
    first = load_plan(plan, overrides)
    if options.engine.resume and (out is None or seeds > 1):
        what = "needs the one run to go on with"
        raise UserError(what, where="--resume", remedy="add --out FOLDER of that run")
    folder = out or Path("runs") / f"{first.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if seeds > 1:
        _check_empty(folder)

    results: list[Result] = []
    for seed in range(first.seed, first.seed + seeds):
        target = folder
        if seeds > 1:
            target = folder / f"seed-{seed}"
        job = SeedJob(plan, find_plan(plan), (*overrides, f"seed={seed}"), target, options)
        results.append(run_seed_or_explain(job))
    if options.summary and not options.quiet:
        print_table([result.to_json() for result in results], Console())
        Console().print(str(folder), style="bold", soft_wrap=True, markup=False)
    if seeds == 1:
        return results[0].to_json()
    RunFolder(folder).write_result(SeedResults(schema_=1, seeds=tuple(results)))
    return {"seeds": [result.to_json() for result in results]}


def _check_empty(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        what = "exists and is not empty"
        raise UserError(what, where=f"--out {folder}", remedy="name a new folder")


# ── one seed ──────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class SeedJob:
    """One seed of a simulation.

    Attributes:
        name: the plan, as it was given.
        path: the plan's file; data and weights are looked up beside it.
        overrides: keys of the plan that are changed.
        out: the run's folder.
    """

    name: str | Path
    path: Path
    overrides: tuple[str, ...]
    out: Path
    options: SimulationOptions

    def command(self) -> str:
        """Return the command that goes on with this run."""
        options = self.options
        words = ["fedgraft", "simulate", str(self.name)]
        for override in self.overrides:
            words += ["--set", override]
        words += ["--out", str(self.out)]
        if not options.engine.is_default:
            words += ["--engine", options.engine.name]
        if options.engine.together:
            words.append("--together")
        if options.engine.device != "cpu":
            words += ["--device", options.engine.device]
        if options.baselines is not None:
            words += ["--baselines", ",".join(options.baselines) or "none"]
        if options.ledger:
            words += ["--ledger", str(options.ledger)]
        for key, value in options.policy.items():
            words += ["--policy", f"{key}={value}"]
        return shlex.join([*words, "--resume"])


def run_seed_or_explain(job: SeedJob) -> Result:
    """Run one seed; say what is kept, and how to go on, where it is cut off."""
    try:
        return run_seed(job)
    except KeyboardInterrupt:
        nothing = (
            "before the first round was finished: nothing to go on from; start anew, into another"
            " folder"
        )
        raise Interrupted(f"interrupted: {_describe_kept(job) or nothing}") from None
    except (RunFailed, UserError, OSError) as error:
        kept = _describe_kept(job)
        if kept and (isinstance(error, RunFailed) or _disk_is_full(error)):
            raise RunFailed(f"{error}\n{kept}") from error
        raise


def run_seed(job: SeedJob) -> Result:
    """Run the federation of one seed and its baselines; with `pages`, draw its picture and write
    its page.
    """
    plan = load_plan(job.name, job.overrides)
    options = job.options
    started = time.perf_counter()
    if not options.engine.resume:
        check_scales(plan)
    baselines, variants = plan_baselines(job, plan)
    ledgers = options.ledger or job.out / "ledgers"
    device = options.engine.device
    with nodes_on_disk(plan, job.path, ledgers, options.policy, device) as nodes:
        counts = count_nodes(plan, nodes)
        backbone = plan_backbone(plan, job.path.parent)
        # an adapter that does not fit is told here, before anything is written
        plan_model(backbone, plan)
        seconds = {"prepare": time.perf_counter() - started}
        with Progress(plan, quiet=options.quiet) as progress:
            with progress.follow("shared model", job.out):
                result = simulate(plan, job.path, job.out, nodes=nodes, options=options.engine)
            result = _note_circumstances(job, plan, result, counts)
            result = result.but(notes=(*result.notes, *note_reference(plan, backbone)))
            if options.pages:
                _draw_picture(plan, counts, job.out)
            for name in baselines:
                clock = time.perf_counter()
                if name in variants:
                    measured = _run_variant(job, name, variants[name], nodes, progress)
                else:
                    measured = run_baseline(name, plan, backbone, nodes, progress)
                seconds[name] = time.perf_counter() - clock
                result = result.but(baselines=result.baselines | {name: measured})
    result = result.but(seconds=result.seconds | seconds)
    RunFolder(job.out).write_result(result)
    if options.pages:
        _write_papers(job)
    return result


def _choose_baselines(options: SimulationOptions, plan: Plan) -> tuple[str, ...]:
    if options.baselines is None:
        return default_baselines(plan)
    return options.baselines


def _note_circumstances(
    job: SeedJob, plan: Plan, result: Result, counts: Sequence[NodeCounts]
) -> Result:
    """Return the result with engine, ledger, data and notes."""
    result = result.but(engine=job.options.engine.describe())
    if plan.privacy.at_node:
        ledger = "this run's own, in ledgers/: it started empty"
        if job.options.ledger:
            ledger = str(job.options.ledger)
        result = result.but(ledger=ledger)
    return result.but(
        notes=tuple(note_small_nodes(plan, counts)),
        data=describe_data(plan, job.path, counts),
    )


def run_baseline(
    name: str, plan: Plan, backbone: Backbone, nodes: Sequence[Path], progress: Progress
) -> dict[str, Any]:
    """Return the metrics of a baseline that is no federation of its own."""
    if name == "alone":
        with progress.count(name, len(nodes)) as step:
            return measure_alone(plan, backbone, nodes, on_node=step)
    with progress.count(name, 1) as step:
        measured = measure_pooled(plan, backbone, nodes)
        step()
    return measured


def plan_baselines(job: SeedJob, plan: Plan) -> tuple[list[str], dict[str, Plan]]:
    """Return the baselines of a run, and the plans of those that are federations of their own: what
    does not go together is told before anything is trained. Of all, those that do are taken.
    """
    names: list[str] = []
    variants: dict[str, Plan] = {}
    chosen = _choose_baselines(job.options, plan)
    for name in chosen:
        if name in VARIANTS:
            try:
                changed = load_plan(job.name, [*job.overrides, *list_changes(name, plan)])
            except UserError as error:
                if chosen == BASELINES:
                    continue
                first = error.errors[0] if isinstance(error, UserErrors) else error
                what = f"{name} does not go with this plan: {first.what}"
                remedy = f"leave {name} out; `all` takes those that go"
                raise UserError(what, where="--baselines", remedy=remedy) from error
            variants[name] = changed
        names.append(name)
    return names, variants


def _run_variant(
    job: SeedJob, name: str, changed: Plan, nodes: Sequence[Path], progress: Progress
) -> dict[str, Any]:
    """Run the federation with another adapter or backbone."""
    out = job.out / "baselines" / name
    engine = job.options.engine
    if engine.resume and RunFolder(out).latest() is None:
        shutil.rmtree(out, ignore_errors=True)
        engine = replace(engine, resume=False)
    with contextlib.ExitStack() as stack:
        if changed.privacy.at_node and purpose_of(changed.train, 1) == "sums":
            # beside the run, not after it: the hospitals' ledgers are not those of the run
            ledgers = out / "ledgers"
            own = nodes_on_disk(changed, job.path, ledgers, job.options.policy, engine.device)
            nodes = stack.enter_context(own)
        stack.enter_context(progress.follow(name, out, changed.train.rounds))
        result = simulate(changed, job.path, out, nodes=list(nodes), options=engine)
    return result.final.global_ | {
        "bytes": count_round_bytes(result.bytes.model_dump()),
        "adapter_bytes": result.bytes.adapter,
        "nodes": result.final.nodes,
    }


def _draw_picture(plan: Plan, counts: Sequence[NodeCounts], out: Path) -> None:
    # matplotlib takes a second to import
    from fedgraft.simulations.figures import draw_labels_by_node

    names = [node.name for node in counts]
    labels = [node.train for node in counts]
    counted = TASKS[plan.task.question].counted(plan.task)
    draw_labels_by_node(labels, names, counted, out / PICTURE)


def _write_papers(job: SeedJob) -> None:
    # the page's pictures take a second to import
    from fedgraft.simulations.report.run_page import write_run_page

    write_run_page(job.out)
    facts = {
        "plan_folder": os.path.relpath(job.path.parent, job.out),
        "engine": job.options.engine.name,
        "policy": dict(job.options.policy),
    }
    write_manifest(job.out, run_facts(job.out) | facts)


# ── what was kept of a run that was cut off ───────────────────────────────────────────────────────
def _describe_kept(job: SeedJob) -> str:
    """Return what of a run is there, and how to go on; empty where there is nothing."""
    checkpoint = RunFolder(job.out).latest()
    if checkpoint is None:
        return ""
    kept = f"{checkpoint.round} finished rounds are kept in {job.out}"
    return f"{kept}\n  → go on: {job.command()}"


def _disk_is_full(error: BaseException) -> bool:
    """Whether the disk filled up in the middle of a run; some writers tell it as their own
    error.
    """
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
    return False


# ── words of the command line ─────────────────────────────────────────────────────────────────────
def read_clauses(policy: Sequence[str]) -> dict[str, Any]:
    """Return `max_epsilon_total=3` as {"max_epsilon_total": 3}. Raise `UserError` for what is no
    `key=value`.
    """
    clauses: dict[str, Any] = {}
    for text in policy:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            remedy = "write --policy max_epsilon_total=3"
            raise UserError(f"{text!r} is no clause", where="--policy", remedy=remedy)
        clauses[key.strip()], _ = parse_yaml(value, f"--policy {key}")
    return clauses


def partition_plan(plan: str, overrides: Sequence[str], out: Path) -> list[Path]:
    """Write the nodes of a plan into a new folder, with a picture of who has what.

    Raises:
        UserError: a folder that is not empty or cannot be written, or data that cannot be dealt so.
    """
    # its partitioners take a second to import
    from fedgraft.simulations.simulated_nodes import write_nodes

    chosen = load_plan(plan, overrides)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "exists and is not an empty folder"
        raise UserError(what, where=f"--out {out}", remedy="name a new folder")
    paths = write_nodes(chosen, find_plan(plan), out)
    _draw_picture(chosen, count_nodes(chosen, paths), out)
    return paths
