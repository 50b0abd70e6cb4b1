"""A public reference that `fedgraft pretrain` makes of source data; private plans read it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedgraft.common.backbones.reference import Reference
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import write_tensors
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.model.public_reference import is_norm_alone
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.simulations.data_facts import note_reference
from fedgraft.simulations.pretraining import pretrain
from tests.simulations.conftest import write_table

PLAN = """
name: source
task: {kind: tabular-classification, classes: [no, yes], columns: [a, b, c]}
backbone: {name: mlp, weights: FOLDER/net.safetensors, hidden: [8, 8]}
adapter: {method: head}
train: {method: closed-form}
pretrain: {data: FOLDER/source.csv, labels: [0, 1], epochs: 2}
seed: 3
"""
PRIVATE = ("privacy.mode=sample", "privacy.target_epsilon=1")


@pytest.fixture
def plan_path(tmp_path: Path) -> Path:
    """A plan whose backbone was trained on 60 rows: not many more than it has features."""
    write_table(tmp_path / "source.csv", 60, 4)
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.replace("FOLDER", str(tmp_path)))
    pretrain(load_plan(path), path)
    return path


def reference_of(path: Path, *changes: str) -> Reference:
    """The reference that a plan's backbone has."""
    backbone = plan_backbone(load_plan(path, changes), path.parent)
    reference = backbone.net.get_submodule("reference")
    assert isinstance(reference, Reference)
    return reference


def test_source_data_centre_and_whiten(plan_path: Path) -> None:
    """A reference that is made and not read; or one that blows up what few records do not show."""
    reference = reference_of(plan_path, *PRIVATE)
    assert not reference.is_norm_alone()
    net = plan_backbone(load_plan(plan_path), plan_path.parent).net
    assert "reference" not in dict(net.named_children())
    # Ledoit and Wolf: no direction counts a hundred times as much as another
    lengths = reference.whiten.norm(dim=0)
    assert float(lengths.max() / lengths.min()) < 100


def test_the_weights_stay_what_they_were(plan_path: Path) -> None:
    """Plans without privacy name their fingerprint."""
    made = pretrain(load_plan(plan_path), plan_path)
    assert plan_backbone(load_plan(plan_path), plan_path.parent).fingerprint == made["fingerprint"]
    private = plan_backbone(load_plan(plan_path, PRIVATE), plan_path.parent)
    assert private.fingerprint != made["fingerprint"]
    again = plan_backbone(load_plan(plan_path, PRIVATE), plan_path.parent)
    assert again.fingerprint == private.fingerprint


def test_without_one_features_are_brought_to_norm_one(plan_path: Path) -> None:
    """A plan of weights from elsewhere must run, and say what it lacks."""
    plan = load_plan(plan_path, PRIVATE)
    assert note_reference(plan, plan_backbone(plan, plan_path.parent)) == []
    (plan_path.parent / "net.reference.safetensors").unlink()
    backbone = plan_backbone(plan, plan_path.parent)
    assert is_norm_alone(backbone)
    (note,) = note_reference(plan, backbone)
    assert "brought to norm 1 and no more" in note
    plain = load_plan(plan_path)
    assert note_reference(plain, plan_backbone(plain, plan_path.parent)) == []


def test_a_random_backbone_has_no_reference_of_the_learnt_one(plan_path: Path) -> None:
    assert reference_of(plan_path, *PRIVATE, "backbone.random=true").is_norm_alone()


def test_a_reference_of_other_features_or_weights_is_refused(plan_path: Path) -> None:
    """It would whiten nothing, and nobody would see it."""
    other = "train.closed_form={features: last}"
    with pytest.raises(UserError, match="other features"):
        reference_of(plan_path, *PRIVATE, other)
    pretrain(load_plan(plan_path, [other]), plan_path)
    assert len(reference_of(plan_path, *PRIVATE, other).mean) == 8
    kept = (plan_path.parent / "net.reference.safetensors").read_bytes()
    pretrain(load_plan(plan_path, ["pretrain.seed=9", other]), plan_path)
    (plan_path.parent / "net.reference.safetensors").write_bytes(kept)
    with pytest.raises(UserError, match="other weights"):
        reference_of(plan_path, *PRIVATE, other)


def test_a_damaged_reference_is_told_in_words(plan_path: Path) -> None:
    path = plan_path.parent / "net.reference.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="cut short or damaged"):
        reference_of(plan_path, *PRIVATE)
    write_tensors({"mean": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="other features"):
        reference_of(plan_path, *PRIVATE)
