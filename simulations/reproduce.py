"""`fedgraft reproduce`: what a manifest describes is run again, and each thing that can be compared
is compared.

files as they were → code, packages, machine → run again → data, backbone, ledger, shared model,
metrics, attacks
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.common.errors import RunFailed, UserError
from fedgraft.common.plan.plan_file import load_plan, plan_hash
from fedgraft.server.papers.manifest import problems_in, read_manifest, run_facts, signer
from fedgraft.server.papers.surroundings import code, machine, packages
from fedgraft.simulations.study.run_study import Job, found_by_attacks, run_jobs
from fedgraft.simulations.study.study_file import Cell
from fedgraft.simulations.study.study_table import numbers


@dataclass(frozen=True)
class Check:
    """One thing that was compared. `needed`: whether the manifest stands or falls with it."""

    what: str
    agrees: bool
    said: str = ""
    needed: bool = True


def reproduce(
    path: Path, *, cells: int | None = None, workers: int | None = None, quiet: bool = False
) -> list[Check]:
    """Run a manifest's run, or the cells of its study, again.

    Args:
        path: a manifest.json, or its folder.
        cells: of a study: only so many cells, spread over it; default all.
        workers: cells at once.

    Returns:
        What was compared. Where files were changed nothing is run.

    Raises:
        UserError: no manifest there, or the data or weights that it needs are missing.
        RunFailed: the run failed this time.
    """
    content = read_manifest(path)
    folder = (path if path.is_dir() else path.parent).absolute()
    if "engine" not in content:
        what = "of a run whose data are at its hospitals; it cannot be run again here"
        raise UserError(what, where=str(path), remedy="verify it instead: --verify")
    if found := problems_in(path):
        return [Check("files", False, problem) for problem in found]
    checks = [
        Check("files", True, f"{len(content['files'])} files are as they were written"),
        *_surroundings(content),
    ]
    runs = {"": content} if content["kind"] == "run" else content["cells"]
    if cells is not None and cells < len(runs):
        names = list(runs)
        runs = {
            names[at]: runs[names[at]] for at in range(0, len(names), math.ceil(len(names) / cells))
        }
    with tempfile.TemporaryDirectory(prefix="fedgraft-again-") as again:
        jobs = {name: _job(folder, name, content, Path(again)) for name in runs}
        failed = run_jobs(
            list(jobs.values()),
            content["name"],
            len(jobs),
            workers or (1 if len(jobs) == 1 else None),
            quiet,
        )
        if failed:
            raise RunFailed(
                "\n".join(
                    f"{name or 'the run'} failed: {reason}" for name, reason in failed.items()
                )
            )
        for name, job in jobs.items():
            before = folder / "cells" / name if name else folder
            checks += _compared(name, runs[name], run_facts(job.run))
            checks += _attacks(name, found_by_attacks(before), found_by_attacks(job.run))
    return checks


def _job(folder: Path, name: str, content: Mapping[str, Any], again: Path) -> Job:
    """A cell with the plan as it was run; a run is a study of one."""
    run = folder / "cells" / name if name else folder
    base = folder / content["plan_folder"]
    plan = load_plan(run / "plan.yaml")
    cell = Cell(name or "run", {}, (), plan, plan_hash(plan))
    engine, attacks = content["engine"], tuple(content.get("attacks", ()))
    clauses = content.get("policy", {})
    return Job(
        run / "plan.yaml", cell, base if base.is_dir() else run, again, engine, (), attacks, clauses
    )


def _surroundings(content: Mapping[str, Any]) -> list[Check]:
    """What may explain a difference, and is no difference in itself."""
    now = code()
    changed = [
        name
        for name, digest in content["code"]["files"].items()
        if now["files"].get(name) != digest
    ]
    changed += [name for name in now["files"] if name not in content["code"]["files"]]
    checks = [
        Check("code", not changed, _some(changed) or "every source file is the same", needed=False)
    ]
    for what, then, current in (
        ("packages", content["packages"], packages()),
        ("machine", content["machine"], machine()),
    ):
        other = [
            f"{key} {then.get(key)} → {current.get(key)}"
            for key in then
            if then.get(key) != current.get(key)
        ]
        checks.append(Check(what, not other, _some(other) or "the same", needed=False))
    return checks


def _compared(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Check]:
    """What came out, against what is written."""
    at = f"{name}: " if name else ""
    spent = [
        {node: (each["epsilon"], each["history"]) for node, each in facts["ledger"].items()}
        for facts in (then, now)
    ]
    same = then["results"]["adapter"] == now["results"]["adapter"]
    other = _some(_differing(then["data"], now["data"]))
    before, after = numbers(then["results"]["final"], ""), numbers(now["results"]["final"], "")
    largest, metric = _difference(before, after)
    return [
        Check(f"{at}plan", then["plan"] == now["plan"], now["plan"]),
        Check(f"{at}data", then["data"] == now["data"], other or "the same records"),
        Check(f"{at}backbone", then["backbone"] == now["backbone"], now["backbone"]["fingerprint"]),
        Check(f"{at}privacy", spent[0] == spent[1], _epsilon(now)),
        Check(f"{at}shared model", same, "bit for bit" if same else "its bytes differ"),
        Check(f"{at}metrics", largest == 0, _said(len(after), largest, metric)),
    ]


def _attacks(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Check]:
    """What attacks found, but for their seconds."""
    checks = []
    for attack in then:
        before, after = (
            {
                key: value
                for key, value in numbers(found.get(attack, {}), "").items()
                if not key.endswith("seconds")
            }
            for found in (then, now)
        )
        largest, number = _difference(before, after)
        at = f"{name}: {attack}" if name else attack
        checks.append(Check(at, largest == 0, _said(len(after), largest, number)))
    return checks


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[float, str]:
    """The largest difference between two sets of numbers, and its name; infinite where one is
    missing.
    """
    largest, name = 0.0, ""
    for key in before.keys() | after.keys():
        found = abs(before[key] - after[key]) if key in before and key in after else math.inf
        if found > largest:
            largest, name = found, key.lstrip(".")
    return largest, name


def _said(count: int, largest: float, name: str) -> str:
    return f"{count} numbers" + (
        f"; {name} differs by {largest:.3g}" if largest else ", to the last digit"
    )


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        each
        for key in then
        for each in then[key].keys() | now[key].keys()
        if then[key].get(each) != now[key].get(each)
    ]


def _epsilon(facts: Mapping[str, Any]) -> str:
    found = [each["epsilon"] for each in facts["ledger"].values()]
    return f"largest ε {max(found):.4g}, every step counted" if found else "none was asked for"


def _some(words: Sequence[str]) -> str:
    return ", ".join(sorted(words)[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")


def failing(checks: Sequence[Check]) -> list[Check]:
    """Checks that a reproduction stands or falls with, and that do not agree."""
    return [check for check in checks if check.needed and not check.agrees]


def verified(path: Path, key: Path | None) -> str:
    """A sentence about a manifest that holds. Raises `RunFailed` naming everything that does
    not.
    """
    found = problems_in(path, key)
    if found:
        raise RunFailed(
            f"{path} does not hold:\n" + "\n".join(f"  ✗ {problem}" for problem in found)
        )
    by = signer(path)
    signed = f"signed with {by}" if by else "nobody signed it"
    return f"✓ {path}: {len(read_manifest(path)['files'])} files are there and unchanged; {signed}"
