"""The preflight: each thing that can be wrong before a start is found, with its remedy, and nothing
is changed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fedgraft.cli import app
from fedgraft.client.node import machine_findings, precision_findings
from fedgraft.client.node.check import check_node
from fedgraft.client.node.finding import Finding
from fedgraft.client.node.node_file import load_node
from fedgraft.client.store.journal import Journal
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.model.assembly import shape_options
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


def picture(file: Path, number: int) -> None:
    """Write an image of noise, another for each number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(file)


def test_files_are_counted_and_the_counts_add_up(tmp_path: Path, plan: Plan) -> None:
    """An engineer who exported 31 files and reads "20 records" must see where eleven went."""
    for number in range(20):
        picture(tmp_path / "x" / plan.task.classes[number % 2] / f"{number}.png", number)
    picture(tmp_path / "x" / "normal" / "@eaDir" / "thumb.jpg", 50)
    (tmp_path / "x" / "normal" / "notes.txt").write_text("x")
    for number in range(8):
        picture(tmp_path / "x" / "normal" / f"{number * 2}_mask.png", 60 + number)
    (tmp_path / "x" / "normal" / "broken.png").write_bytes(b"x")
    more = "max_unreadable: 0.1, leave_out: ['*_mask*']"
    file = tmp_path / "node.yaml"
    file.write_text(f"name: a\ndata: {{path: x, {more}}}\nstore: store\n")
    found = look(file, plan)
    assert found["files"].detail == (
        "31 files: 20 read, 1 of other kinds (.txt 1), 1 of the system (@eaDir 1),"
        " 8 left out by data.leave_out, 1 unreadable"
    )
    file.write_text("name: a\ndata: {path: x, max_unreadable: 0.1}\nstore: store\n")
    found = look(file, plan)
    assert found["data"].state == "wrong"
    assert "data.leave_out: ['*mask*'] in node.yaml" in found["data"].remedy


def test_everything_that_smells_is_told_at_once(tmp_path: Path, plan: Plan) -> None:
    """One mistake a run makes a long morning."""
    file = hospital(tmp_path)
    with np.load(tmp_path / "data.npz") as old:
        arrays = dict(old)
    arrays["test_images"][:5] = arrays["train_images"][:5]
    arrays |= {"train_patient": np.array(["NA"] * 40), "test_patient": np.array(["b"] * 10)}
    np.savez(tmp_path / "data.npz", **arrays)
    found = check_node(load_node(file), plan)
    wrong = [finding.detail for finding in found if finding.what == "data"]
    assert len(wrong) == 2
    assert "40 of 50 records are of a patient who is nobody" in wrong[0]
    assert "5 of 10 images in test are also in train" in wrong[1]


def test_what_is_there_twice_is_told(tmp_path: Path, plan: Plan) -> None:
    """Each image four times under other names: ε is for one of them, and nobody counted."""
    for number in range(40):
        picture(tmp_path / "x" / plan.task.classes[number % 2] / f"{number:03}.png", number // 4)
    (tmp_path / "node.yaml").write_text("name: a\ndata: {path: x}\nstore: store\n")
    private = load_plan("pneumonia", ["privacy={mode: sample, target_epsilon: 3, delta: 1.0e-3}"])
    detail = look(tmp_path / "node.yaml", private)["copies"].detail
    assert detail.startswith(
        "30 of 40 images are duplicates, 10 are distinct; one is there 4 times"
    )
    assert "10 images have several labels" in detail
    assert "none is in two splits" in detail
    assert "ε is for one of them" in detail


def test_a_patient_with_many_records_is_told(tmp_path: Path) -> None:
    """Sixty slices of one person under privacy by example: ε is for a slice."""
    file = hospital(tmp_path)
    with np.load(tmp_path / "data.npz") as old:
        arrays = dict(old)
    names = np.array([f"p{number // 10}" for number in range(50)])
    arrays |= {"train_patient": names[:40], "test_patient": names[40:]}
    np.savez(tmp_path / "data.npz", **arrays)
    private = ["privacy={mode: sample, target_epsilon: 3, delta: 1.0e-3}"]
    detail = look(file, load_plan("pneumonia", private))["patients"].detail
    assert "up to 10 training records of one patient: ε is for one of them, not for a" in detail
    assert "ε" not in look(file, load_plan("pneumonia"))["patients"].detail


@pytest.mark.parametrize(
    ("tests", "state", "words"),
    [
        ([0, 1] * 5, "ok", "10: normal 5, pneumonia 5"),
        ([0] * 10, "wrong", "10: normal 10, pneumonia 0: none of pneumonia"),
        ([], "skipped", "none: nothing is measured here"),
    ],
)
def test_tests_that_measure_nothing_are_no_tick(
    tmp_path: Path, plan: Plan, tests: list[int], state: str, words: str
) -> None:
    """A test split of one class, or of nothing, had the tick of one that is in order."""
    file = hospital(tmp_path)
    with np.load(tmp_path / "data.npz") as old:
        arrays = dict(old)
    arrays["test_images"] = arrays["test_images"][: len(tests)]
    arrays["test_labels"] = np.array(tests, np.int64)
    np.savez(tmp_path / "data.npz", **arrays)
    finding = look(file, plan)["test data"]
    assert finding.state == state
    assert finding.detail.startswith(words)


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


@pytest.mark.parametrize(
    ("speed", "allowed", "state"), [(2.0, 0, "ok"), (0.6, 0, "wrong"), (0.6, 1, "ok")]
)
def test_bfloat16_that_is_slower_than_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed: float, allowed: int, state: str
) -> None:
    """A hospital without units for bfloat16 that learns it from a night of computing."""
    plan = load_plan("pneumonia-one-round", ["backbone.precision=bfloat16"])
    monkeypatch.setattr(precision_findings, "measure_speed", lambda *arguments: speed)
    found = look(hospital(tmp_path, f"slow_bfloat16: {bool(allowed)}\n".lower()), plan)
    assert found["bfloat16"].state == state
    assert f"{speed} times as fast as float32" in found["bfloat16"].detail
    if state == "wrong":
        assert "slow_bfloat16: true" in found["bfloat16"].remedy
    assert "bfloat16" not in look(hospital(tmp_path), load_plan("pneumonia-one-round"))


def test_bfloat16_is_timed_on_made_up_records(tmp_path: Path) -> None:
    """A figure that nobody measured; or threads that stay as the measurement set them."""
    plan = load_plan("pneumonia-one-round", ["backbone.precision=bfloat16"])
    threads = torch.get_num_threads()
    backbone = load_backbone(plan.backbone.name, **shape_options(plan))
    assert 0.01 < precision_findings.measure_speed(backbone, plan, 1) < 100
    assert torch.get_num_threads() == threads


def test_bfloat16_where_nothing_is_frozen(tmp_path: Path) -> None:
    plan = load_plan("pneumonia", ["backbone.precision=bfloat16"])
    found = look(hospital(tmp_path), plan)["bfloat16"]
    assert found.state == "wrong"
    assert "nothing worth it is frozen" in found.detail
