"""The public functions, for notebooks and scripts: what the command does, with objects to look at.

Mistakes in plans and data raise `fedgraft.UserError`, a run that failed `fedgraft.RunFailed`; both
say what to write or do instead.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgraft.common.errors import UserError
from fedgraft.common.files.yaml_file import dump_yaml
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.predictor import Predictor
from fedgraft.run import Run, Runs

# a ready plan's name, a plan's file, or what such a file says
PlanLike = str | Path | Mapping[str, Any]
Changes = Mapping[str, Any]


def validate(plan: PlanLike, *, set: Changes | None = None) -> Plan:
    """Check a plan.

    Args:
        plan: the name of a ready plan, a file, or a mapping with the file's content.
        set: keys of the plan that are changed, such as {"train.rounds": 3}.

    Returns:
        The plan, frozen; its fields are the file's keys.

    Raises:
        UserError: every mistake at once, with key, value found and what to write instead.

    >>> plan = validate("digits", set={"train.rounds": 3})
    >>> plan.adapter.method, plan.train.rounds
    ('lora', 3)
    """
    with _PlanFile(plan) as name:
        return load_plan(name, _overrides(set))


def pretrain(plan: PlanLike, *, set: Changes | None = None) -> dict[str, Any]:
    """Make the plan's backbone from its `pretrain` section.

    Returns:
        `path`, `fingerprint`, `accuracy` on held-out data, `provenance`.

    Raises:
        UserError: the plan has no such section, or its data is missing.

    >>> pretrain("digits")["path"]
    'runs/backbones/digits-0-4.safetensors'
    """
    # torch takes a second to import
    from fedgraft.simulations.pretraining import pretrain as make_backbone

    with _PlanFile(plan) as name:
        return make_backbone(load_plan(name, _overrides(set)), find_plan(name))


def simulate(
    plan: PlanLike,
    *,
    set: Changes | None = None,
    out: str | Path | None = None,
    seeds: int = 1,
    baselines: Sequence[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> Run | Runs:
    """Run a plan's federation on this machine: the same code as a deployment.

    Args:
        plan: the name of a ready plan, a file, or a mapping with the file's content.
        set: keys of the plan that are changed, such as {"train.rounds": 3}.
        out: the run's folder; default runs/NAME-TIME.
        seeds: repeat with this many seeds, from the plan's; more than one gives `Runs`.
        baselines: what the shared model is measured against: one-round, alone, pooled, head, full,
            random-backbone; default one-round, where the plan allows it, and `[]` for nothing. A
            text is read as the command's option is: "alone,head", "none".
        progress: show a bar.
        options: `engine` ("inprocess" or "flower"), `workers`, `together`, `resume`, `device` (cpu,
            cuda, cuda:N, mps or auto), `ledger` (a folder that outlasts the run), `policy` (clauses
            of every node's policy).

    Raises:
        UserError: the plan or its data are not in order; nothing was written.
        RunFailed: the run failed; what was finished is kept.

    >>> run = simulate("digits", set={"train.rounds": 2}, out="two-rounds", progress=False)
    >>> int(run.rounds["round"].max())
    2
    >>> float(run.metrics.loc["shared model", "accuracy"]) > 0.2
    True
    """
    # torch and Flower take seconds to import
    from fedgraft.simulations.simulate import simulate_plan

    changes = _overrides(set)
    with _PlanFile(plan) as name:
        chosen = load_plan(name, changes)
        folder = Path(out) if out is not None else _new_folder(chosen)
        simulate_plan(
            name,
            overrides=changes,
            out=folder,
            seeds=seeds,
            options=_simulation_options(baselines, progress, options),
        )
    if seeds == 1:
        return Run(folder)
    return Runs([Run(folder / f"seed-{chosen.seed + number}") for number in range(seeds)])


def load_run(path: str | Path) -> Run:
    """Open the folder of a run, of this or an earlier release.

    Raises:
        UserError: it holds no run.

    >>> load_run("two-rounds").name
    'digits'
    """
    return Run(path)


def load_shared_model(path: str | Path, backbone: str | Path | None = None) -> Predictor:
    """Open a shared model: a `shared_model` folder, or the run's folder it lies in.

    Args:
        backbone: the backbone's file, if it does not lie in the folder.

    Raises:
        UserError: no shared model there, or files that do not belong together.

    >>> import numpy as np
    >>> images = np.zeros((3, 1, 8, 8), np.uint8)
    >>> load_shared_model("two-rounds").predict(images).shape
    (3, 6)
    """
    return Predictor.load(path, backbone)


def study(
    study: str | Path,
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    engine: str = "inprocess",
    device: str = "cpu",
    ray: str | None = None,
    progress: bool = True,
) -> Any:
    """Put a question to a plan: a grid over its keys and seeds, attacks on each, one table.

    Args:
        study: the name of a ready study, or a file.
        out: the study's folder; default runs/study-NAME. Cells that are finished are not run again.
        workers: cells at once, a process each; default: cores.
        device: where cells compute: cpu, cuda, cuda:N, mps or auto.
        ray: address of a Ray cluster whose machines compute the cells; all of them see `out`.

    Returns:
        A data frame with a row for each cell; `attrs["page"]` is the page's path.

    Raises:
        UserError: the study or its plan are not in order.
    """
    import pandas

    from fedgraft.simulations.study.run_study import run_study

    folder = None if out is None else Path(out)
    done = run_study(
        str(study),
        out=folder,
        workers=workers,
        engine=engine,
        device=device,
        ray=ray,
        quiet=not progress,
    )
    table = pandas.DataFrame(done["rows"])
    table.attrs["page"] = f"{done['folder']}/report.html"
    return table


# ── what is given → what the command is given ─────────────────────────────────────────────────────
class _PlanFile:
    """A plan as a name or a file: a mapping is written to a file for as long as it is needed."""

    def __init__(self, plan: PlanLike) -> None:
        self._plan = plan
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> str:
        if not isinstance(self._plan, Mapping):
            return str(self._plan)
        self._folder = tempfile.TemporaryDirectory(prefix="fedgraft-plan-")
        file = Path(self._folder.name) / "plan.yaml"
        file.write_text(dump_yaml(dict(self._plan)))
        return str(file)

    def __exit__(self, *exception: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def _overrides(changes: Changes | None) -> list[str]:
    """Return keys and values as `--set` has them; JSON is YAML."""
    overrides: list[str] = []
    for key, value in (changes or {}).items():
        try:
            overrides.append(f"{key}={json.dumps(value)}")
        except TypeError:
            what = f"{value!r} is no value of a plan"
            remedy = "give numbers, texts, lists, mappings, True, False or None"
            raise UserError(what, where=f"set: {key}", remedy=remedy) from None
    return overrides


def _new_folder(plan: Plan) -> Path:
    """Return a run's folder that is not there yet."""
    import time

    stem = Path("runs") / f"{plan.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = stem
    number = 1
    while folder.exists():
        number += 1
        folder = stem.with_name(f"{stem.name}-{number}")
    return folder


def _simulation_options(
    baselines: Sequence[str] | None, progress: bool, options: dict[str, Any]
) -> Any:
    """Return the options of a simulation. Raise `UserError` for one that there is not."""
    from fedgraft.simulations.baselines import choose_baselines
    from fedgraft.simulations.engines.engine import EngineOptions
    from fedgraft.simulations.simulate import SimulationOptions

    known = ("engine", "workers", "together", "resume", "device", "ledger", "policy")
    for name in options:
        if name not in known:
            remedy = f"give some of {', '.join(known)}"
            raise UserError(f"{name!r} is no option", where="fedgraft.simulate", remedy=remedy)
    ledger = options.get("ledger")
    chosen: tuple[str, ...] | None = None
    if baselines is not None:
        words = baselines if isinstance(baselines, str) else ",".join(baselines)
        chosen = choose_baselines(words or "none")
    return SimulationOptions(
        engine=EngineOptions(
            options.get("engine", "inprocess"),
            workers=options.get("workers"),
            together=options.get("together", False),
            resume=options.get("resume", False),
            device=options.get("device", "cpu"),
        ),
        baselines=chosen,
        ledger=None if ledger is None else Path(ledger),
        policy=options.get("policy", {}),
        quiet=not progress,
        summary=False,
    )
