"""The preflight: each thing that can be wrong before a start is found, with its remedy, and nothing
is changed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedgraft.cli import app
from fedgraft.client.node import machine_findings
from fedgraft.client.node.check import check_node
from fedgraft.client.node.finding import Finding
from fedgraft.client.node.node_file import load_node
from fedgraft.client.store.journal import Journal
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import agreement_hash, load_plan

HEADER = "name: hospital-a\ndata: {path: data.npz}\nstore: store\n"


def hospital(folder: Path, more: str = "", *, classes: tuple[int, ...] = (0, 1)) -> Path:
    """A node's file and its images: 40 training and 10 test images of these classes."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 40), ("test", 10)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.resize(classes, count)
    np.savez(folder / "data.npz", **arrays)
    (folder / "node.yaml").write_text(HEADER + more)
    return folder / "node.yaml"


def look(file: Path, plan: Plan | None = None) -> dict[str, Finding]:
    return {finding.what: finding for finding in check_node(load_node(file), plan)}


@pytest.fixture
def plan() -> Plan:
    return load_plan("pneumonia")


def test_a_node_in_order(tmp_path: Path, plan: Plan) -> None:
    found = look(hospital(tmp_path), plan)
    assert not [finding for finding in found.values() if finding.state == "wrong"]
    assert found["training data"].detail == "40: normal 20, pneumonia 20"
    assert found["test data"].detail == "10: normal 5, pneumonia 5"
    assert found["connection"].state == "skipped"
    assert not (tmp_path / "store").exists(), "a preflight writes nothing"


def test_labels_that_are_not_the_plans(tmp_path: Path, plan: Plan) -> None:
    found = look(hospital(tmp_path, classes=(0, 1, 2)), plan)
    assert found["data"].state == "wrong"
    assert "2" in found["data"].detail
    assert "task.classes" in found["data"].remedy
    assert found["policy: examples"].state == "skipped", "what needs the data is not judged"


def test_a_class_that_is_missing(tmp_path: Path, plan: Plan) -> None:
    found = look(hospital(tmp_path, classes=(1,)), plan)
    assert found["training data"].state == "wrong"
    assert "none of normal" in found["training data"].detail


def test_what_there_is_to_choose_by(tmp_path: Path, plan: Plan) -> None:
    """A node without validation records under a plan that chooses by them, and nobody knows."""
    file = hospital(tmp_path)
    assert "validation data" not in look(file, plan)
    keeps = load_plan("pneumonia", ["train.keep=best"])
    assert look(file, keeps)["validation data"].state == "skipped"
    share = load_plan("pneumonia", ["train.keep=best", "evaluate.validation_fraction=0.2"])
    found = look(file, share)
    assert found["validation data"].detail == "8: normal 4, pneumonia 4"
    assert found["training data"].detail == "32: normal 16, pneumonia 16"


def test_data_that_is_not_there(tmp_path: Path, plan: Plan) -> None:
    file = hospital(tmp_path)
    (tmp_path / "data.npz").unlink()
    assert look(file, plan)["data"].state == "wrong"
    assert look(file)["data"].state == "wrong", "without a plan, too"


def test_patients_in_training_and_in_test(tmp_path: Path, plan: Plan) -> None:
    file = hospital(tmp_path)
    with np.load(tmp_path / "data.npz") as old:
        arrays = dict(old)
    names = np.array([f"p{number}" for number in range(50)])
    for shared, what, state in ((False, "patients", "ok"), (True, "data", "wrong")):
        if shared:
            names[45] = "p3"
        arrays |= {"train_patient": names[:40], "test_patient": names[40:]}
        np.savez(tmp_path / "data.npz", **arrays)
        found = look(file, plan)
        assert found[what].state == state, found
    assert "patient" in found["data"].detail


@pytest.mark.parametrize(
    ("policy", "clause", "says"),
    [
        ("approved_plans: recorded", "policy: plan", "not approved"),
        ("approved_plans: [sha256:" + "0" * 64 + "]", "policy: plan", "not approved"),
        ("dp_required: true", "policy: privacy", "dp_required"),
        ("min_examples: 41", "policy: examples", "40 for training, min_examples 41"),
    ],
)
def test_each_clause_that_the_plan_would_meet(
    tmp_path: Path, plan: Plan, policy: str, clause: str, says: str
) -> None:
    found = look(hospital(tmp_path, f"policy: {{{policy}}}\n"), plan)
    wrong = [finding.what for finding in found.values() if finding.state == "wrong"]
    assert wrong == [clause]
    assert says in found[clause].detail
    if clause == "policy: plan":
        assert agreement_hash(plan) in found[clause].remedy


def test_a_budget_that_does_not_hold_the_plan(tmp_path: Path) -> None:
    private = load_plan(
        "pneumonia", ["privacy={mode: sample, noise_multiplier: 0.5, delta: 1.0e-4}"]
    )
    policy = "policy: {dp_required: true, max_epsilon_run: 0.5, max_delta: 1.0e-3}\n"
    found = look(hospital(tmp_path, policy), private)
    assert found["privacy budget"].state == "wrong"
    assert "ceiling of 0.5" in found["privacy budget"].detail
    assert not (tmp_path / "store").exists(), "nothing is spent, no ledger is made"


def test_little_disk_memory_or_too_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_findings, "LEAST_DISK", 1 << 60)
    monkeypatch.setattr(machine_findings, "free_memory", lambda: 5_000_000)
    found = look(hospital(tmp_path, "threads: 1000\n"))
    assert [found[what].state for what in ("store", "memory", "processors")] == ["wrong"] * 3


def test_a_ledger_that_was_cut(tmp_path: Path) -> None:
    file = hospital(tmp_path)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "ledger.sqlite").write_bytes(b"not a ledger")
    assert look(file)["privacy ledger"].state == "wrong"


def test_an_audit_log_that_was_cut(tmp_path: Path) -> None:
    file = hospital(tmp_path, "audit: true\n")
    assert look(file)["audit log"].state == "ok"
    for _ in range(2):
        Journal(tmp_path / "store" / "audit.jsonl").append("in", {})
    log = tmp_path / "store" / "audit.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    assert "the last 1 of 2 entries are gone" in look(file)["audit log"].detail


def test_the_command_its_table_and_its_exit_status(tmp_path: Path) -> None:
    file, run = hospital(tmp_path), CliRunner()
    done = run.invoke(app, ["node", "check", str(file), "--plan", "pneumonia"])
    assert done.exit_code == 0
    assert "✓  training data" in done.output
    said = json.loads(run.invoke(app, ["node", "check", str(file), "--json"]).output)
    assert said["ok"] is True
    file.write_text(HEADER + "policy: {dp_required: true}\n")
    done = run.invoke(app, ["node", "check", str(file), "--plan", "pneumonia"])
    assert "→" in done.output
    assert "1 of" in str(done.exception)
