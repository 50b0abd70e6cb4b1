"""A model that is a folder of Hugging Face's, over TLS: approved, handed out, trained."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from fedgraft.common.plan.plan_file import load_plan
from fedgraft.simulations.deployment.local_federation import LocalFederation
from fedgraft.simulations.simulated_nodes import write_nodes
from tests.huggingface_folders import write_folder

pytestmark = [pytest.mark.slow, pytest.mark.deployment]

PLAN = """
name: letters
task:
  kind: text-classification
  classes: [ill, well]
  text: letter
  target: label
backbone: {name: huggingface, weights: ./model, max_length: 12}
adapter: {method: lora, rank: 2}
train: {rounds: 1, batch_size: 8}
privacy: {mode: sample, target_epsilon: 8, delta: 1.0e-4}
simulation: {data: [north.csv, south.csv], partition: {kind: files}}
"""
LETTERS = {"ill": "fever and cough, three weeks", "well": "no known rash, nothing found"}


def test_letters_at_two_hospitals(tmp_path: Path, seen) -> None:
    """A plan that simulates and that no hospital can approve, or no node build: its network is
    described by a folder that only the coordinator has in place.
    """
    write_folder(tmp_path / "model")
    (tmp_path / "plan.yaml").write_text(PLAN)
    for name in ("north", "south"):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["letter", "label"])
            for number in range(60):
                label = ("ill", "well")[number % 2]
                table.writerow([f"{LETTERS[label]}, {name} {number}", label])
    plan = tmp_path / "plan.yaml"
    files = write_nodes(load_plan(plan), plan, tmp_path / "nodes")
    nodes: dict[str, Path] = {"north": files[0], "south": files[1]}
    with LocalFederation(tmp_path / "federation", nodes, plan) as federation:
        done = federation.run(plan, tmp_path / "run")
    assert done.code == 0, done
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert sorted(result["privacy"]) == ["north", "south"]
    assert all(entry["epsilon"] <= 8 for entry in result["privacy"].values())
    seen("a Hugging Face folder at 2 hospitals: approved, handed out, one private round of LoRA")
