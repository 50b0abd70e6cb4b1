"""A ready plan over some seeds, for benchmarks: its results, and a metric's mean and spread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedgraft.simulations.baselines import choose_baselines
from fedgraft.simulations.readable import show_spread
from fedgraft.simulations.simulate import SimulationOptions, simulate_plan

Results = Sequence[dict[str, Any]]


def run_over_seeds(
    plan: str, overrides: Sequence[str], out: Path, *, seeds: int, baselines: str = ""
) -> Results:
    """Run a plan over several seeds and return each one's result.json."""
    options = SimulationOptions(baselines=choose_baselines(baselines), quiet=True)
    ran = simulate_plan(plan, overrides=overrides, out=out, seeds=seeds, options=options)
    return ran["seeds"] if seeds > 1 else [ran]


def show_metric(results: Results, metric: str) -> str:
    """Return a metric of the shared model, `0.861 ± 0.004`."""
    values = [result["final"]["global"][metric] for result in results]
    return show_spread(values)


def list_epsilons(results: Results) -> list[float]:
    """Return what every node spent in every seed."""
    epsilons = []
    for result in results:
        epsilons += [spent["epsilon"] for spent in result["privacy"].values()]
    return epsilons
