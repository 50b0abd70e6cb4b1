"""Studies: what a file may say, which cells come of it, what is run again and what is not, and the
tidy table.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pyarrow import csv, parquet

from fedgraft.common.errors import RunFailed, UserError, UserErrors
from fedgraft.common.plan.plan_file import load_plan, plan_hash
from fedgraft.simulations.engines.engine import ACTIVATIONS
from fedgraft.simulations.flatten import flatten_numbers
from fedgraft.simulations.study import cell_job
from fedgraft.simulations.study.cells import load_study
from fedgraft.simulations.study.run_cells import _one_frozen_pass
from fedgraft.simulations.study.run_study import run_study
from fedgraft.simulations.study.study_file import READY_STUDIES, list_ready_studies
from fedgraft.simulations.study.study_table import list_columns, write_table

STUDY = """
name: ranks
question: Does a higher rank help?
plan: plan.yaml
set: {train.rounds: 1}
cases:
  plain: {}
  private: {privacy: {mode: sample, target_epsilon: 5, delta: 1.0e-3}}
grid:
  adapter.rank: [1, 2]
seeds: [3, 4]
"""


@pytest.fixture
def place(tiny, tmp_path: Path) -> Path:
    tiny(2)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def told(path: Path) -> list[str]:
    with pytest.raises(UserError) as raised:
        load_study(path)
    error = raised.value
    return [str(each) for each in (error.errors if isinstance(error, UserErrors) else (error,))]


def test_cells_are_every_combination_as_plans(place):
    """A combination that is missing, twice, or not the plan that `--set` would make."""
    _, plan_file, cells = load_study(place / "study.yaml")
    assert [tuple(cell.labels.values()) for cell in cells] == [
        (case, rank, seed) for case in ("plain", "private") for rank in (1, 2) for seed in (3, 4)
    ]
    by_hand = load_plan(
        plan_file,
        [
            "train.rounds=1",
            "privacy={mode: sample, target_epsilon: 5, delta: 1e-3}",
            "adapter.rank=2",
            "seed=4",
        ],
    )
    assert cells[-1].plan == by_hand
    assert cells[-1].plan_hash == plan_hash(by_hand)
    assert len({cell.folder for cell in cells}) == 8
    assert cells[-1].folder.startswith("private_2_seed-4_")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("adapter.rank: [1, 2]", "adapter.rnak: [1, 2]", ["study.yaml:10", "adapter.rnak", "rank"]),
        (
            "adapter.rank: [1, 2]",
            "adapter.rank: [1, zwei]",
            ["study.yaml:10", "adapter.rank", "zwei"],
        ),
        ("train.rounds: 1", "train.rounds: 0", ["study.yaml:5", "train.rounds", "0"]),
        ("delta: 1.0e-3}", "delta: 3}", ["study.yaml:8", "privacy.delta", "3"]),
        ("seeds: [3, 4]", "seeds: [3, 3]", ["study.yaml:11", "seeds", "more than once"]),
        ("seeds: [3, 4]", "seeds: []", ["study.yaml:11", "seeds", "at least 1"]),
        ("plan: plan.yaml", "plan: plam.yaml", ["study.yaml:4", "plan", "pneumonia"]),
        ("seeds: [3, 4]", "sedes: [3, 4]", ["study.yaml:11", "sedes", "seeds"]),
        ("seeds: [3, 4]", "attacks: [loss-treshold]", ["study.yaml:11", "loss-threshold"]),
        ("train.rounds: 1", "seed: 1", ["seeds here only"]),
        ("  plain: {}", "  plain: {}\n  same: {}", ["same plan"]),
        ("seeds: [3, 4]", "baselines: [alnoe]", ["study.yaml:11", "alone"]),
    ],
)
def test_mistakes_are_told_with_their_line(place, old, new, words):
    """A wrong key found only after an hour of cells, or told without its line in the study's
    file.
    """
    path = place / "study.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    text = "\n".join(told(path))
    for word in words:
        assert word in text, text


def test_a_study_that_is_not_there_names_those_that_are():
    with pytest.raises(UserError, match="membership"):
        load_study("membershp")


@pytest.mark.parametrize("name", list_ready_studies())
def test_ready_studies_are_valid(name):
    """A ready study whose plans no longer validate, or whose header is not the command that runs
    it.
    """
    study, _, cells = load_study(name)
    assert study.name == name
    assert cells
    assert (READY_STUDIES / f"{name}.yaml").read_text().startswith(f"# fedgraft study {name}\n")


@pytest.mark.slow
def test_finished_cells_are_not_run_again(place, monkeypatch):
    """Cells run twice; a cell of another plan, or one that was cut off, taken for finished."""
    out = place / "out"
    ran = []
    monkeypatch.setattr(
        cell_job,
        "_federate",
        lambda job, real=cell_job._federate: (ran.append(job.cell.folder), real(job)),
    )
    path = place / "study.yaml"
    path.write_text(
        STUDY.replace("adapter.rank: [1, 2]", "adapter.rank: [1]").replace(
            "seeds: [3, 4]", "seeds: [3]\nattacks: [loss-threshold]"
        )
    )
    first = run_study(str(path), out=out, workers=1, quiet=True)
    assert (first["run"], len(first["rows"]), len(ran)) == (2, 2, 2)
    assert run_study(str(path), out=out, workers=1, quiet=True)["run"] == 0
    assert len(ran) == 2

    for change in ("running", "another plan"):
        file = next((out / "cells").glob("plain_*")) / "result.json"
        result = json.loads(file.read_text())
        result |= (
            {"status": "running"} if change == "running" else {"plan_hash": "sha256:" + "0" * 64}
        )
        file.write_text(json.dumps(result))
        again = run_study(str(path), out=out, workers=1, quiet=True)
        assert again["run"] == 1
        assert timeless(again["rows"]) == timeless(first["rows"])

    path.write_text(
        path.read_text().replace("seeds: [3]", "seeds: [3, 4]")
    )  # more of it: only what is new
    assert run_study(str(path), out=out, workers=1, quiet=True)["run"] == 2


def timeless(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def test_a_cell_that_fails_does_not_stop_the_others(place):
    """One bad cell that takes the study with it, or that nobody hears of."""
    path = place / "study.yaml"
    path.write_text(
        STUDY.replace("train.rounds: 1", "train.rounds: 1, simulation.partition.min_examples: 1")
    )
    path.write_text(
        path.read_text().replace("adapter.rank: [1, 2]", "train.optimizer.lr: [0.01, 1.0e+30]")
    )
    path.write_text(
        path.read_text()
        .replace("  private: {privacy:", "  # private: {privacy:")
        .replace("3, 4", "3")
    )
    with pytest.raises(RunFailed, match="1 of 2 cells failed") as failed:
        run_study(str(path), out=place / "out", workers=1, quiet=True)
    assert "1e+30" in str(failed.value)
    assert parquet.read_table(place / "out" / "table.parquet").num_rows == 1


def test_another_study_s_folder_is_left_alone(place):
    """A folder with other things in it, overwritten."""
    out = place / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("four years")
    with pytest.raises(UserError, match="holds something else"):
        run_study(str(place / "study.yaml"), out=out, workers=1, quiet=True)
    assert [file.name for file in out.iterdir()] == ["thesis.txt"]


def test_shared_baselines_are_measured_once(place):
    """`pooled` trained anew for every ε, or one cell given another seed's."""
    path = place / "study.yaml"
    path.write_text(
        STUDY.replace("adapter.rank: [1, 2]", "adapter.rank: [1]") + "baselines: [pooled]\n"
    )
    rows = run_study(str(path), out=place / "out", workers=1, quiet=True)["rows"]
    assert len(list((place / "out" / "baselines").iterdir())) == 2
    pooled = {(row["case"], row["seed"]): row["baseline.pooled.loss"] for row in rows}
    assert pooled["plain", 3] == pooled["private", 3] != pooled["plain", 4] == pooled["private", 4]


def test_csv_and_parquet_hold_the_same_table(tmp_path):
    """Columns lost where the first rows lack them; whole numbers and fractions mixed; None turned
    into 0.
    """
    rows = [
        {"case": "a", "x": 1, "mixed": "text"},
        {"case": "b", "x": 0.5, "late": True, "mixed": 3},
    ]
    write_table(rows, tmp_path)
    table = parquet.read_table(tmp_path / "table.parquet")
    assert table.column_names == list_columns(rows) == ["case", "x", "mixed", "late"]
    assert table.to_pydict() == {
        "case": ["a", "b"],
        "x": [1.0, 0.5],
        "mixed": ["text", "3"],
        "late": [None, True],
    }
    assert csv.read_csv(tmp_path / "table.csv").to_pydict() == table.to_pydict()


def test_numbers_of_an_attack_become_columns():
    """Intervals or nested numbers that are lost; curves of hundreds of points in a table."""
    found = {
        "views": {"shared": {"auc": 0.5, "auc_interval": [0.4, 0.6], "roc": {"fpr": [0, 0.1, 1]}}},
        "kind": "x",
    }
    assert flatten_numbers(found, "attack.loss") == {
        "attack.loss.views.shared.auc": 0.5,
        "attack.loss.views.shared.auc_interval.low": 0.4,
        "attack.loss.views.shared.auc_interval.high": 0.6,
    }


@pytest.mark.slow
def test_processes_and_one_process_give_the_same_table(place):
    """Cells that depend on which process ran what before them."""
    path = place / "study.yaml"
    path.write_text(STUDY.replace("seeds: [3, 4]", "seeds: [3]\nattacks: [loss-threshold]"))
    together = run_study(str(path), out=place / "one", workers=1, quiet=True)["rows"]
    apart = run_study(str(path), out=place / "two", workers=2, quiet=True)["rows"]
    assert timeless(together) == timeless(apart)
    assert any(
        key.startswith("attack.loss-threshold.") and key.endswith(".auc") for key in together[0]
    )


def test_cells_in_several_processes_share_one_frozen_pass(monkeypatch):
    """Each process with activations of its own; a folder of patients' activations left behind, or
    another than the one that a person named.
    """
    monkeypatch.delenv(ACTIVATIONS, raising=False)
    with _one_frozen_pass():
        folder = Path(os.environ[ACTIVATIONS])
        assert folder.is_dir()
    assert not folder.exists()
    assert ACTIVATIONS not in os.environ
    monkeypatch.setenv(ACTIVATIONS, "mine")
    with _one_frozen_pass():
        assert os.environ[ACTIVATIONS] == "mine"
    assert os.environ[ACTIVATIONS] == "mine"
