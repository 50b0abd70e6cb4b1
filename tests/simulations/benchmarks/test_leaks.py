"""The benchmark of leaks: what is not finished is said to be missing, and what refutes a promise
stands out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.simulations.attacks.empirical_epsilon import Audit
from fedgraft.simulations.benchmarks.leak_tasks import (
    AUDITS,
    BROKEN,
    EPSILONS,
    AuditTask,
    Measured,
    list_tasks,
    run_tasks,
)
from fedgraft.simulations.benchmarks.leaks import make_attacks_table, make_audits_table

FINE = Audit(0.4, 4.8, 1e-5, 0.95, 500, 500, 300, 0.6)


def tables_of(measured: Measured) -> str:
    return make_audits_table(measured).to_markdown() + make_attacks_table(measured).to_markdown()


def test_nothing_that_was_not_measured_looks_measured() -> None:
    """A cell that is empty, zero, or of the tasks that were finished."""
    assert tables_of({}).count("not finished") == 1 + len(EPSILONS) * (1 + len(BROKEN)) + 2 * (
        2 * 2 * 2 + 2 + 3
    )
    measured: dict[Any, Any] = {AuditTask(2.0, seed=seed): FINE for seed in range(AUDITS - 1)}
    assert "| 2 | not finished |" in make_audits_table(measured).to_markdown()
    measured[AuditTask(2.0, seed=AUDITS - 1)] = replace(FINE, epsilon=2.5)
    measured[AuditTask(2.0, "noise off")] = replace(FINE, epsilon=4.8)
    lines = make_audits_table(measured).to_markdown().splitlines()
    (row,) = [line for line in lines if line.startswith("| 2 |")]
    assert row == "| 2 | 0.40 (0.40–2.50), **1 above** | **4.80** | not finished | not finished |"


def test_every_task_has_its_cell() -> None:
    """A task that is run and never shown, or shown and never run."""
    tasks = list_tasks()
    assert len(set(tasks)) == len(tasks)
    measured: dict[Any, Any] = {}
    for task in tasks:
        measured[task] = FINE if isinstance(task, AuditTask) else measured_attack()
    assert "not finished" not in tables_of(measured)


def measured_attack() -> dict[str, Any]:
    view = {"auc": 0.5, "auc_interval": [0.4, 0.6], "tpr": {"0.01": 0.01}}
    return {
        "views": {"shared model": view, "node updates": view},
        "single": 0.5,
        "single_chance": 0.5,
        "counts": 0.7,
        "counts_chance": 0.7,
        "ssim": 0.5,
        "ssim_mean": 0.6,
        "better": 1,
        "images": 4,
    }


def test_a_broken_step_is_broken_in_one_thing_only() -> None:
    """A step without clipping that has no noise either is found out by the noise."""
    right = Mechanism(2.0, 0.5, 3, 10.0, 0.5)
    unclipped = BROKEN["clipping off"](right)
    assert unclipped.max_grad_norm > 1e5
    assert unclipped.noise_multiplier * unclipped.max_grad_norm == pytest.approx(2.0 * 0.5)
    for broken in BROKEN.values():
        assert (broken(right).sample_rate, broken(right).steps) == (0.5, 3)
    assert BROKEN["noise off"](right) == replace(right, noise_multiplier=0.0)


@pytest.mark.slow
def test_time_that_is_up_leaves_the_rest_out(tmp_path) -> None:
    """A benchmark that runs for hours, or that loses what was finished."""
    assert run_tasks(list_tasks(), 0.0, 1) == {}
