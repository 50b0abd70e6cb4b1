"""`fedgraft reproduce`: what a manifest describes is run again, and each thing that can be compared
is compared.

files as they were → code, packages, machine → run again → data, backbone, ledger, shared model,
metrics, attacks
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedgraft.common import run_files
from fedgraft.common.errors import RunFailed, UserError
from fedgraft.common.plan.plan_file import load_plan, plan_hash
from fedgraft.server.papers.run_manifest import problems_in, read_manifest, run_facts, signer
from fedgraft.server.papers.surroundings import code, machine, packages
from fedgraft.simulations.flatten import flatten_numbers
from fedgraft.simulations.report.attack_results import read_attack_results
from fedgraft.simulations.study.cell_job import CellJob
from fedgraft.simulations.study.cells import Cell
from fedgraft.simulations.study.run_cells import run_cells

# a manifest, or the facts of one run in it
Facts = Mapping[str, Any]

# names in a sentence; more are counted
MOST_NAMES = 5


@dataclass(frozen=True)
class Check:
    """One thing that was compared. `needed`: whether the manifest stands or falls with it."""

    what: str
    agrees: bool
    said: str = ""
    needed: bool = True


@dataclass(frozen=True)
class Difference:
    """The largest difference between two sets of numbers, the number's name, and how many were
    compared; infinite where a number is missing.
    """

    largest: float
    name: str
    count: int

    def as_check(self, what: str) -> Check:
        """Return whether all numbers are the same, to the last digit."""
        if not self.largest:
            return Check(what, True, f"{self.count} numbers, to the last digit")
        words = f"{self.count} numbers; {self.name} differs by {self.largest:.3g}"
        return Check(what, False, words)


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
    manifest = read_manifest(path)
    folder = (path if path.is_dir() else path.parent).absolute()
    if "engine" not in manifest:
        what = "of a run whose data are at its hospitals; it cannot be run again here"
        raise UserError(what, where=str(path), remedy="verify it instead: --verify")
    problems = problems_in(path)
    if problems:
        return [Check("files", False, problem) for problem in problems]

    written = f"{len(manifest['files'])} files are as they were written"
    checks = [Check("files", True, written), *_compare_surroundings(manifest)]
    runs = _select_runs(manifest, cells)
    with tempfile.TemporaryDirectory(prefix="fedgraft-again-") as again:
        jobs = {}
        for name in runs:
            jobs[name] = _make_job(folder, name, manifest, Path(again))
        _run_again(jobs, manifest["name"], workers, quiet)
        for name, job in jobs.items():
            before = folder / "cells" / name if name else folder
            checks += _compare_runs(name, runs[name], run_facts(job.run))
            checks += _compare_attacks(name, before, job.run)
    return checks


def list_failures(checks: Sequence[Check]) -> list[Check]:
    """Return checks that a reproduction stands or falls with, and that do not agree."""
    return [check for check in checks if check.needed and not check.agrees]


def verify_manifest(path: Path, key: Path | None) -> str:
    """Return a sentence about a manifest that holds. Raise `RunFailed` naming everything that does
    not.
    """
    problems = problems_in(path, key)
    if problems:
        lines = [f"{path} does not hold:"]
        lines += [f"  ✗ {problem}" for problem in problems]
        raise RunFailed("\n".join(lines))
    by = signer(path)
    signed = f"signed with {by}" if by else "nobody signed it"
    files = len(read_manifest(path)["files"])
    return f"✓ {path}: {files} files are there and unchanged; {signed}"


# ── run again ─────────────────────────────────────────────────────────────────────────────────────
def _select_runs(manifest: Facts, most: int | None) -> dict[str, Facts]:
    """Return the facts of each run by its cell's name, "" for the one run; at most so many, spread
    over the study.
    """
    if manifest["kind"] == "run":
        return {"": manifest}
    cells = manifest["cells"]
    if most is None or most >= len(cells):
        return cells
    step = math.ceil(len(cells) / most)
    chosen = list(cells.items())[::step]
    return dict(chosen)


def _make_job(folder: Path, name: str, manifest: Facts, again: Path) -> CellJob:
    """Return a cell with the plan as it was run; a run is a study of one."""
    run = folder / "cells" / name if name else folder
    plan_folder = folder / manifest["plan_folder"]
    plan = load_plan(run / run_files.PLAN)
    return CellJob(
        plan_file=run / run_files.PLAN,
        cell=Cell(name or "run", {}, (), plan, plan_hash(plan)),
        base=plan_folder if plan_folder.is_dir() else run,
        out=again,
        engine=manifest["engine"],
        baselines=(),
        attacks=tuple(manifest.get("attacks", ())),
        policy=manifest.get("policy", {}),
    )


def _run_again(jobs: Mapping[str, CellJob], name: str, workers: int | None, quiet: bool) -> None:
    """Run every job. Raise `RunFailed` naming those that failed."""
    if workers is None and len(jobs) == 1:
        workers = 1
    failed = run_cells(list(jobs.values()), name, len(jobs), workers, quiet)
    if failed:
        lines = []
        for cell, reason in failed.items():
            lines.append(f"{cell or 'the run'} failed: {reason}")
        raise RunFailed("\n".join(lines))


# ── compare ───────────────────────────────────────────────────────────────────────────────────────
def _compare_surroundings(manifest: Facts) -> list[Check]:
    """Return what may explain a difference, and is no difference in itself."""
    then = manifest["code"]["files"]
    now = code()["files"]
    changed = [name for name, digest in then.items() if now.get(name) != digest]
    changed += [name for name in now if name not in then]
    words = _name_some(changed) or "every source file is the same"
    return [
        Check("code", not changed, words, needed=False),
        _compare_versions("packages", manifest["packages"], packages()),
        _compare_versions("machine", manifest["machine"], machine()),
    ]


def _compare_versions(what: str, then: Facts, now: Facts) -> Check:
    changes = []
    for key, value in then.items():
        if value != now.get(key):
            changes.append(f"{key} {value} → {now.get(key)}")
    return Check(what, not changes, _name_some(changes) or "the same", needed=False)


def _compare_runs(name: str, then: Facts, now: Facts) -> list[Check]:
    """Return what came out, against what is written."""
    checks = [
        Check("plan", then["plan"] == now["plan"], now["plan"]),
        _compare_data(then["data"], now["data"]),
        _compare_backbones(then["backbone"], now["backbone"]),
        _compare_privacy(then, now),
    ]
    checks += _compare_results(then["results"], now["results"])
    if not name:
        return checks
    return [replace(check, what=f"{name}: {check.what}") for check in checks]


def _compare_data(then: Facts, now: Facts) -> Check:
    differing = _name_some(_list_differing(then, now))
    return Check("data", then == now, differing or "the same records")


def _compare_backbones(then: Facts, now: Facts) -> Check:
    return Check("backbone", then == now, now["fingerprint"])


def _compare_privacy(then: Facts, now: Facts) -> Check:
    return Check("privacy", _list_spent(then) == _list_spent(now), _describe_epsilon(now))


def _compare_results(then: Facts, now: Facts) -> list[Check]:
    same = then["adapter"] == now["adapter"]
    metrics = _subtract(flatten_numbers(then["final"]), flatten_numbers(now["final"]))
    return [
        Check("shared model", same, "bit for bit" if same else "its bytes differ"),
        metrics.as_check("metrics"),
    ]


def _compare_attacks(name: str, before: Path, after: Path) -> list[Check]:
    """Return what attacks found on two runs, but for their seconds."""
    now = read_attack_results(after)
    checks = []
    for attack, measured in read_attack_results(before).items():
        what = f"{name}: {attack}" if name else attack
        again = now.get(attack, {})
        difference = _subtract(_timeless_numbers(measured), _timeless_numbers(again))
        checks.append(difference.as_check(what))
    return checks


def _timeless_numbers(measured: Facts) -> dict[str, Any]:
    numbers = flatten_numbers(measured)
    return {key: value for key, value in numbers.items() if not key.endswith("seconds")}


def _subtract(before: Facts, after: Facts) -> Difference:
    largest = 0.0
    name = ""
    for key in before.keys() | after.keys():
        difference = math.inf
        if key in before and key in after:
            difference = abs(before[key] - after[key])
        if difference > largest:
            largest = difference
            name = key
    return Difference(largest, name, len(after))


def _list_differing(then: Facts, now: Facts) -> list[str]:
    """Return the names of what is not the same in two levels of mappings."""
    names = []
    for key, before in then.items():
        after = now[key]
        for name in before.keys() | after.keys():
            if before.get(name) != after.get(name):
                names.append(name)
    return names


def _list_spent(facts: Facts) -> dict[str, tuple[float, Any]]:
    spent = {}
    for node, entry in facts["ledger"].items():
        spent[node] = (entry["epsilon"], entry["history"])
    return spent


def _describe_epsilon(facts: Facts) -> str:
    epsilons = [entry["epsilon"] for entry in facts["ledger"].values()]
    if not epsilons:
        return "none was asked for"
    return f"largest ε {max(epsilons):.4g}, every step counted"


def _name_some(names: Sequence[str]) -> str:
    some = ", ".join(sorted(names)[:MOST_NAMES])
    if len(names) > MOST_NAMES:
        some += f" and {len(names) - MOST_NAMES} more"
    return some
