"""`fedgraft simulate`: one plan, some seeds, some baselines, one table, one folder."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedgraft.common import run_files
from fedgraft.common.errors import Interrupted, RunFailed, UserError
from fedgraft.common.files.whole_files import write_whole
from fedgraft.common.files.yaml_file import parse_yaml
from fedgraft.common.model.assembly import plan_backbone, plan_model
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.common.result import DataFacts, Result, SeedResults
from fedgraft.server.papers.manifest import run_facts, write_manifest
from fedgraft.server.papers.progress import Progress
from fedgraft.server.papers.run_folder import RunFolder
from fedgraft.server.papers.surroundings import sha256_of
from fedgraft.simulations.baselines import VARIANTS, alone, chosen_baselines, pooled
from fedgraft.simulations.engines.engine import ENGINES, nodes_on_disk, simulate
from fedgraft.simulations.results_table import count_round_bytes, print_table


def simulate_plan(
    plan: str,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    engine: str = "inprocess",
    seeds: int = 1,
    baselines: str = "",
    resume: bool = False,
    workers: int | None = None,
    ledger: Path | None = None,
    policy: Sequence[str] = (),
    together: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a plan's federation on this machine, with its baselines, and print the table.

    Args:
        plan: a file, or the name of a ready plan.
        out: the run's folder; with several seeds, a folder for each seed inside it.
        seeds: how many seeds, counted up from the plan's own.
        baselines: names from `simulations/baselines.py`, comma-separated.
        ledger: folder of privacy ledgers that outlast this run; default: in the run's folder, each
            run starts fresh.
        policy: clauses of every node's policy, such as "max_epsilon_total=3".
        together: see `fedgraft.simulations.engines.engine.simulate`.
        quiet: print nothing.

    Returns:
        result.json of the run; with several seeds, `{"seeds": [result, …]}`.

    Raises:
        UserError, RunFailed: see `fedgraft.simulations.engines.engine.simulate`.
        Interrupted: Ctrl-C, with a message that says what was kept and how to go on.
    """
    if engine not in ENGINES:
        raise UserError(
            f"{engine!r} is no engine",
            where="--engine",
            remedy=f"write one of {', '.join(ENGINES)}",
        )
    if together and engine != "inprocess":
        remedy = "leave it out, or use --engine inprocess"
        raise UserError(
            "nodes are trained at once in one process only", where="--together", remedy=remedy
        )
    asked, clauses = chosen_baselines(baselines), clauses_of(policy)
    path, first = find_plan(plan), load_plan(plan, overrides)
    if resume and (out is None or seeds > 1):
        raise UserError(
            "needs the one run to go on with",
            where="--resume",
            remedy="add --out FOLDER of that run",
        )
    folder = out or Path("runs") / f"{first.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if seeds > 1 and folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise UserError(
            "exists and is not empty", where=f"--out {folder}", remedy="name a new folder"
        )

    results: list[Result] = []
    for seed in range(first.seed, first.seed + seeds):
        chosen = [*overrides, f"seed={seed}"]
        target = folder / f"seed-{seed}" if seeds > 1 else folder
        try:
            results.append(
                run_seed(
                    plan,
                    path,
                    chosen,
                    target,
                    engine,
                    asked,
                    resume,
                    workers,
                    ledger,
                    clauses,
                    quiet,
                    together=together,
                )
            )
        except (KeyboardInterrupt, RunFailed, UserError, OSError) as error:
            again = [
                "simulate",
                plan,
                *(word for item in chosen for word in ("--set", item)),
                "--out",
                str(target),
            ]
            more = ["--engine", engine] if engine != ENGINES[0] else []
            more += ["--together"] if together else []
            more += ["--baselines", ",".join(asked)] if asked else []
            more += ["--ledger", str(ledger)] if ledger else []
            more += [word for clause in policy for word in ("--policy", clause)]
            kept = _kept(target, [*again, *more])
            if isinstance(error, KeyboardInterrupt):
                nothing = (
                    "before the first round was finished: nothing to go on from; start anew, into"
                    " another folder"
                )
                raise Interrupted(f"interrupted {kept or nothing}") from None
            if kept and (isinstance(error, RunFailed) or _disk_is_full(error)):
                raise RunFailed(f"{error}\n{kept}") from error
            raise
    if not quiet:
        print_table([result.to_json() for result in results], Console())
        Console().print(f"[bold]{folder}[/bold]", soft_wrap=True)
    if seeds == 1:
        return results[0].to_json()
    RunFolder(folder).write_result(SeedResults(schema_=1, seeds=tuple(results)))
    return {"seeds": [result.to_json() for result in results]}


def run_seed(
    name: str | Path,
    path: Path,
    overrides: Sequence[str],
    out: Path,
    engine: str,
    asked: tuple[str, ...],
    resume: bool,
    workers: int | None,
    ledger: Path | None,
    clauses: dict[str, Any],
    quiet: bool,
    pages: bool = True,
    together: bool = False,
) -> Result:
    """The federation of one seed and its baselines; with `pages`, its picture and its page."""
    from fedgraft.simulations.figures import draw_labels_by_node
    from fedgraft.simulations.report.run_page import write_run_page

    plan = load_plan(name, overrides)
    started = time.perf_counter()
    places = nodes_on_disk(plan, path, ledger or out / run_files.LEDGERS, clauses)
    with places as nodes, Progress(plan, len(nodes), quiet=quiet) as progress:
        counts, names = count_labels(plan, nodes)
        backbone = plan_backbone(plan, path.parent)
        plan_model(
            backbone, plan
        )  # an adapter that does not fit is told here, before anything is written
        seconds: dict[str, float] = {"prepare": time.perf_counter() - started}
        with progress.follow("shared model", out):
            result = simulate(
                plan,
                path,
                out,
                nodes=nodes,
                engine=engine,
                resume=resume,
                workers=workers,
                together=together,
            )
        result = result.but(engine=f"{engine}, nodes together" if together else engine)
        if plan.privacy.at_node:
            own = "this run's own, in ledgers/: it started empty"
            result = result.but(ledger=str(ledger) if ledger else own)
        data = DataFacts(
            labels=dict(zip(names, counts, strict=True)),
            classes=list(plan.task.classes),
            **data_facts(plan, path, nodes),
        )
        result = result.but(notes=tuple(notes(plan, counts, names)), data=data)
        if pages:
            draw_labels_by_node(counts, names, plan.task.classes, out / "labels_by_node.png")

        for baseline in asked:
            clock = time.perf_counter()
            if baseline in VARIANTS:
                changed = load_plan(name, [*overrides, *VARIANTS[baseline]])
                place = out / run_files.BASELINES / baseline
                begun = resume and RunFolder(place).latest() is not None
                if resume and not begun:
                    shutil.rmtree(place, ignore_errors=True)
                with progress.follow(baseline, place):
                    ran = simulate(
                        changed,
                        path,
                        place,
                        nodes=nodes,
                        engine=engine,
                        resume=begun,
                        workers=workers,
                        together=together,
                    )
                found = ran.final.global_ | {
                    "bytes": count_round_bytes(ran.bytes.model_dump()),
                    "adapter_bytes": ran.bytes.adapter,
                    "nodes": ran.final.nodes,
                }
            else:
                if baseline == "alone":
                    with progress.count("alone", len(nodes)) as step:
                        found = alone(plan, backbone, nodes, on_node=step)
                else:
                    with progress.count("pooled", 1) as step:
                        found = pooled(plan, backbone, nodes)
                        step()
            seconds[baseline] = time.perf_counter() - clock
            result = result.but(baselines=result.baselines | {baseline: found})
    result = result.but(seconds=result.seconds | seconds)
    RunFolder(out).write_result(result)
    if pages:
        write_run_page(out)
        beside = {
            "plan_folder": os.path.relpath(path.parent, out),
            "engine": engine,
            "policy": clauses,
        }
        write_manifest(out, run_facts(out) | beside)
    return result


def clauses_of(policy: Sequence[str]) -> dict[str, Any]:
    """`max_epsilon_total=3` → {"max_epsilon_total": 3}. Raises `UserError` for what is no
    `key=value`.
    """
    clauses = {}
    for text in policy:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(
                f"{text!r} is no clause",
                where="--policy",
                remedy="write --policy max_epsilon_total=3",
            )
        clauses[key.strip()], _ = parse_yaml(value, f"--policy {key}")
    return clauses


def partition_plan(plan: str, overrides: Sequence[str], out: Path) -> list[Path]:
    """Write the nodes of a plan into a new folder, with a picture of who has what.

    Raises:
        UserError: a folder that is not empty or cannot be written, or data that cannot be dealt so.
    """
    from fedgraft.simulations.figures import draw_labels_by_node
    from fedgraft.simulations.simulated_nodes import write_nodes

    path, wanted = find_plan(plan), load_plan(plan, overrides)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            "exists and is not an empty folder", where=f"--out {out}", remedy="name a new folder"
        )
    paths = write_nodes(wanted, path, out)
    counts, names = count_labels(wanted, paths)
    draw_labels_by_node(counts, names, wanted.task.classes, out / "labels_by_node.png")
    return paths


def count_labels(plan: Plan, nodes: Sequence[Path]) -> tuple[list[list[int]], list[str]]:
    """Training examples by node and class, and the nodes' names.

    Raises:
        UserError: a class of the plan of which no node has an example.
    """
    from fedgraft.client.node.node_file import load_node
    from fedgraft.client.node_task import open_splits
    from fedgraft.common.inputs.image import Preprocess

    counts, names = [], []
    for path in nodes:
        node = load_node(path)
        train, _ = open_splits(node, plan, Preprocess())
        counts.append(train.labels.bincount(minlength=len(plan.task.classes)).tolist())
        names.append(node.name)
    for number, name in enumerate(plan.task.classes):
        if not any(row[number] for row in counts):
            raise UserError(
                f"no node has a training example of {name!r}",
                where=f"task.classes[{number}]",
                remedy=(
                    "take it out of task.classes, or see whether task.labels names it as the"
                    " data do"
                ),
            )
    return counts, names


def data_facts(plan: Plan, plan_path: Path, nodes: Sequence[Path]) -> dict[str, Any]:
    """What a simulation's data are, by hash: each file, and each node's records; and its test
    examples by class.
    """
    from fedgraft.client.node.node_file import load_node
    from fedgraft.client.node_task import open_splits
    from fedgraft.common.inputs.image import Preprocess

    assert plan.simulation is not None  # there are nodes
    files = {name: resolve(name, plan_path.parent) for name in plan.simulation.files}
    fingerprints, tests = {}, {}
    for path in nodes:
        node = load_node(path)
        train, test = open_splits(node, plan, Preprocess())
        fingerprints[node.name] = train.records.fingerprint
        tests[node.name] = test.labels.bincount(minlength=len(plan.task.classes)).tolist()
    return {
        "files": {name: sha256_of(file) for name, file in files.items() if file.is_file()},
        "fingerprints": fingerprints,
        "test_labels": tests,
    }


def notes(plan: Plan, counts: Sequence[Sequence[int]], names: Sequence[str]) -> list[str]:
    """What is no mistake and yet worth knowing, in sentences."""
    small = [
        name for name, row in zip(names, counts, strict=True) if sum(row) < plan.train.batch_size
    ]
    if not small:
        return []
    shown = ", ".join(small[:5]) + (", …" if len(small) > 5 else "")
    return [
        f"train.batch_size {plan.train.batch_size} is more than the training data of {shown}: one"
        " step an epoch"
    ]


def rewrite(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result in one step. Raises `ValueError` for NaN or infinity."""
    write_whole(path, json.dumps(result, indent=1, allow_nan=False) + "\n")


def _kept(out: Path, again: Sequence[str]) -> str:
    """What of a run that was cut off is there, and how to go on; empty where there is nothing."""
    checkpoint = RunFolder(out).latest()
    if checkpoint is None:
        return ""
    return (
        f"{checkpoint.round} finished rounds are kept in {out}\n  → go on: fedgraft"
        f" {shlex.join(again)} --resume"
    )


def _disk_is_full(error: BaseException) -> bool:
    """Whether the disk filled up in the middle of a run; some writers tell it as their own
    error.
    """
    causes = (error, error.__cause__, error.__context__)
    return any(
        isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT) for each in causes
    )
