"""The figure of a run, as a notebook asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import fedgraft
from fedgraft.run import Run


def test_a_number_is_drawn_by_its_own_measure(tmp_path: Path) -> None:
    """An empty panel called accuracy, where a plan predicts a number."""
    rng = np.random.default_rng(3)
    for name in ("north", "south"):
        rows = rng.normal(size=(60, 3))
        rows[:, 2] = rows[:, 0] - rows[:, 1]
        lines = [",".join(f"{value:.4f}" for value in row) for row in rows]
        (tmp_path / f"{name}.csv").write_text("a,b,target\n" + "\n".join(lines) + "\n")
    plan: dict[str, Any] = {
        "name": "difference",
        "task": {
            "kind": "tabular-regression",
            "columns": ["a", "b"],
            "ranges": [{"columns": ["a", "b"], "low": -4, "high": 4}],
            "number": {"low": -8, "high": 8},
        },
        "backbone": {"name": "mlp", "hidden": [8]},
        "adapter": {"method": "head"},
        "train": {"rounds": 3},
        "simulation": {
            "data": [str(tmp_path / "north.csv"), str(tmp_path / "south.csv")],
            "partition": {"kind": "files"},
            "test_fraction": 0.25,
        },
    }
    # a text, as the command has it
    run = fedgraft.simulate(plan, out=tmp_path / "run", baselines="none", progress=False)
    assert isinstance(run, Run)
    assert not run.result.baselines
    measured, trained = run.plot().axes
    assert measured.get_title().startswith("MAE of the shared model")
    (line,) = measured.lines
    rounds = run.rounds.dropna(subset=["received_mae"])
    (first, *_) = sorted(set(rounds["round"]))
    of_first = rounds[rounds["round"] == first]
    mean = np.average(of_first["received_mae"], weights=of_first["received_examples"])
    assert np.isclose(np.asarray(line.get_ydata())[0], mean)
    assert np.asarray(trained.lines[0].get_ydata()).shape == (3,)
