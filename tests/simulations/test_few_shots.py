"""A few records of each class: who keeps which, what leaves, and an episode from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from fedgraft.common.errors import UserError
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.simulations.engines.engine import EngineOptions
from fedgraft.simulations.simulate import SimulationOptions, simulate_plan
from fedgraft.simulations.simulated_nodes import write_nodes
from tests.simulations.conftest import PLAN, write_table

MEANS = (
    "adapter.method=head",
    "train.method=closed-form",
    "train.rounds=1",
    "train.closed_form.head=class-means",
)
OPTIONS = SimulationOptions(engine=EngineOptions(workers=1), baselines=(), quiet=True)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    data = yaml.safe_load(PLAN.replace("[no, yes]", "[healthy, sick]"))
    files: list[str] = []
    for seed, name in enumerate("ab"):
        file = tmp_path / f"{name}.csv"
        write_table(file, rows=60, seed=seed)
        files.append(str(file))
    data["simulation"] = {"data": files, "partition": {"kind": "files", "min_examples": 1}}
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def rows_of(plan: Path, folder: Path, seed: int) -> list[np.ndarray]:
    loaded = load_plan(plan, [f"seed={seed}", "simulation.shots=3"])
    write_nodes(loaded, plan, folder)
    rows = []
    for number in range(2):
        with np.load(folder / f"node-{number}.rows.npz") as archive:
            rows.append(archive["train"])
    return rows


def test_a_seed_is_an_episode(plan: Path, tmp_path: Path) -> None:
    """The same few records whatever the seed, or others at each start of one episode."""
    first = rows_of(plan, tmp_path / "one", 1)
    assert [len(rows) for rows in first] == [6, 6]
    again = rows_of(plan, tmp_path / "again", 1)
    other = rows_of(plan, tmp_path / "other", 2)
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_class_means_from_end_to_end(plan: Path, tmp_path: Path) -> None:
    """Products of features that leave all the same; a page that says they did."""
    shots = "simulation.shots=5"
    out = tmp_path / "means"
    result = simulate_plan(str(plan), overrides=[*MEANS, shots], out=out, options=OPTIONS)
    assert result["final"]["global"]["accuracy"] > 0.6
    assert "ridge" not in result["closed_form"]
    assert "of their squares" in (out / "report.html").read_text()
    ridge = [change for change in MEANS if "class-means" not in change]
    whole = simulate_plan(
        str(plan), overrides=[*ridge, shots], out=tmp_path / "ridge", options=OPTIONS
    )
    assert result["bytes"]["rounds"][0]["up"] < whole["bytes"]["rounds"][0]["up"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["train.closed_form.variance=true"], "class means go by no products"),
        (["task.kind=tabular-ordinal", "task.classes=[a, b, c]"], "has none"),
    ],
)
def test_what_class_means_do_not_tell(plan: Path, changes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_plan(plan, [*MEANS, *changes])
