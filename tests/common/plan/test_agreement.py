"""The agreement: what a hospital approves is in its hash, what only a researcher decides is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.plan.plan import Plan, agreement_of
from fedgraft.common.plan.plan_file import (
    agreement_from_json,
    agreement_hash,
    amended,
    canonical,
    load_plan,
    plan_from_json,
    plan_hash,
)
from fedgraft.common.plan.plan_keys import describe_keys
from fedgraft.common.plan.section import Section

RECORDED = Path(__file__).parents[2] / "golden" / "e7a320a" / "results.json"

# one change of each key; a list: together, where one alone fits no plan
IMAGES = """
name=other
task.classes=[nine, eight, seven, six, five]
task.labels=[9, 8, 7, 6, 5]
backbone.name=cifar-resnet56
backbone.fingerprint="sha256:{zeros}"
backbone.preparation="sha256:{zeros}"
backbone.image_size=64
backbone.channels=4
backbone.windows=[[0, 80], [-20, 180], [-800, 2000]]
backbone.random=true
backbone.precision=tf32
backbone.quantization=int8
backbone.hidden=[9]
adapter.method=head
adapter.rank=9
adapter.alpha=3
adapter.width=9
adapter.targets=last-block
train.rounds=99
train.local_epochs=9
train.gradient_checkpointing=true
train.batch_size=9
train.optimizer.name=sgd
train.optimizer.lr=9e-3
train.optimizer.weight_decay=0.5
train.optimizer.momentum=0.5
train.proximal=0.5
train.schedule=constant
train.augment=flip
train.loss=balanced
train.loss=focal
train.loss=focal train.focal.gamma=3
train.class_weights=inverse
train.activations=float16
train.method=closed-form train.rounds=1 adapter.method=head
train.start=closed-form
train.finish=closed-form
train.calibrate=temperature
train.keep=best
train.patience=3
train.local_steps=3
pretrain=null backbone.name=huggingface-image backbone.weights=./clip backbone.pool=joint train.start=prompts task.prompts="a digit, {}"
pretrain=null backbone.name=huggingface-image backbone.weights=./clip backbone.pool=joint train.method=zero-shot train.rounds=1 adapter.method=head task.prompts=["a digit, {}", "the {}"]
train.keep=best train.choose_by=auroc
train.closed_form.features=last
train.closed_form.pool=mean-and-deviation
train.closed_form.prior=equal
train.closed_form.bound=32
train.closed_form.bits=18
train.finish=closed-form train.closed_form.variance=true
train.finish=closed-form train.closed_form.head=class-means
aggregate.strategy=median
aggregate.fraction=0.5
aggregate.min_nodes=3
aggregate.missing=allow
aggregate.weighting=equal
aggregate.server_lr=0.5
aggregate.server_momentum=0.5
aggregate.trim=0.25
aggregate.byzantine=1
aggregate.round_timeout=9
aggregate.lora_aggregation=freeze-a
aggregate.encoding=int8
evaluate.every=9
evaluate.metrics=[loss]
evaluate.validation_fraction=0.2
evaluate.subgroups=[{column: sex, values: [f, m]}]
seed=99
pretrain=null task.kind=image-segmentation evaluate.metrics=[loss] train.loss=dice-cross-entropy task.mask={stride: 4} task.mask.stride=2
pretrain=null task.kind=image-segmentation evaluate.metrics=[loss] train.loss=dice-cross-entropy task.mask={stride: 4} task.mask.width=8
pretrain=null task.kind=image-detection evaluate.metrics=[loss] train.loss=focal-giou task.boxes={most: 9} task.boxes.most=8
pretrain=null task.kind=image-detection evaluate.metrics=[loss] train.loss=focal-giou task.boxes={most: 9} task.boxes.width=8
pretrain=null task.kind=image-detection evaluate.metrics=[loss] train.loss=focal-giou task.boxes={most: 9} task.boxes.strides=[4]
"""  # noqa: E501
PRIVATE = """
privacy.mode=local privacy.unit=node
privacy.unit=patient
privacy.target_epsilon=9
privacy.delta=1e-6
privacy.max_grad_norm=9
privacy.max_update_norm=9
privacy.mode=central privacy.unit=node privacy.clipping=adaptive
privacy.quantile=0.25
privacy.target_epsilon=null privacy.noise_multiplier=9
privacy.accountant=rdp
privacy.grad_sample_mode=ghost
train.closed_form.shares=equal
adapter={method: head} train={method: closed-form, rounds: 1, closed_form: {release: products}} train.closed_form.release=products
train.finish=closed-form train.closed_form.epsilon_share=0.25
"""  # noqa: E501
TABLES = """
pretrain=null task.kind=tabular-survival task.classes=[] task.targets=[t, e] task.survival={cuts: [1, 2]} task.survival.cuts=[1, 3] evaluate.metrics=[loss]
pretrain=null task.kind=tabular-survival task.classes=[] task.targets=[t, e] task.survival={cuts: [1, 2]} task.survival.unit=days evaluate.metrics=[loss]
train.operating_point.sensitivity=0.9
train.operating_point.specificity=0.9
task.kind=image-classification task.columns=[] task.categories=[] backbone.name=resnet18
task.columns=[z, x, y]
task.categories=[{column: x, values: [f, n]}]
task.target=z
task.kind=tabular-multilabel evaluate.metrics=[loss] task.targets=[u, v]
task.kind=tabular-multilabel evaluate.metrics=[loss] task.classes=[] task.findings=[{name: u, column: v, above: 1}]
pretrain=null task.classes=[] task.kind=tabular-regression evaluate.metrics=[loss] train.loss=squared-error task.number={low: 0, high: 9} task.number.low=1
pretrain=null task.classes=[] task.kind=tabular-regression evaluate.metrics=[loss] train.loss=squared-error task.number={low: 0, high: 9} task.number.high=8
pretrain=null task.classes=[] task.kind=tabular-regression evaluate.metrics=[loss] train.loss=squared-error task.number={low: 0, high: 9} task.number.unit=days
pretrain=null backbone.weights=null backbone.name=columns adapter.method=head train.method=closed-form train.rounds=2 train.closed_form.hinges=false
pretrain=null backbone.weights=null backbone.name=columns adapter.method=head train.method=closed-form train.rounds=2 task.ranges=[{columns: [y], low: 0, high: 1}]
pretrain=null backbone.weights=null backbone.name=columns adapter.method=head train.method=closed-form train.rounds=1 task.ranges=[{columns: [y], low: 0, high: 1}] train.closed_form.constants=declared
pretrain=null task.kind=text-classification task.columns=[] task.categories=[] task.text=[x] backbone.name=huggingface backbone.weights=./minilm
pretrain=null task.kind=text-classification task.columns=[] task.categories=[] task.text=[x] backbone.name=huggingface backbone.weights=./minilm backbone.max_length=64
pretrain=null task.kind=text-classification task.columns=[] task.categories=[] task.text=[x] backbone.name=huggingface backbone.weights=./minilm backbone.pool=native
pretrain=null task.kind=volume-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=monai/resnet10-3d backbone.volume={} backbone.volume.size=[8, 8, 8]
pretrain=null task.kind=volume-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=monai/resnet10-3d backbone.volume={} backbone.volume.spacing=[1, 2, 3]
pretrain=null task.kind=volume-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=monai/resnet10-3d backbone.volume={} backbone.volume.window=[-100, 300]
pretrain=null task.kind=volume-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=monai/resnet10-3d backbone.volume={mean: [1], std: [1]} backbone.volume.mean=[2]
pretrain=null task.kind=volume-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=monai/resnet10-3d backbone.volume={mean: [1], std: [1]} backbone.volume.std=[2]
pretrain=null task.kind=volume-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=monai/resnet10-3d backbone.volume={} backbone.volume.zscore=false
pretrain=null task.kind=volume-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=monai/resnet10-3d backbone.volume={} backbone.volume.channels=4
pretrain=null task.kind=volume-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=monai/resnet10-3d backbone.volume={} backbone.volume.sequences=[t1, t2]
pretrain=null task.kind=volume-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=monai/resnet10-3d backbone.volume={} backbone.volume.windows=[[0, 80], [-20, 180]]
pretrain=null task.kind=volume-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=resnet18 backbone.volume={slices: 3} backbone.volume.slices=4
pretrain=null task.kind=series-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=series-resnet backbone.signal={samples: 16}
pretrain=null task.kind=series-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=series-resnet backbone.signal={} backbone.signal.samples=99
pretrain=null task.kind=series-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=series-resnet backbone.signal={} train.augment=jitter
pretrain=null task.kind=series-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=series-resnet backbone.signal={} backbone.signal.rate=100
pretrain=null task.kind=series-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=series-resnet backbone.signal={} backbone.signal.channels=[II, V1]
pretrain=null task.kind=series-classification task.columns=[] task.categories=[] backbone.weights=null backbone.name=series-resnet backbone.signal={} backbone.signal.standardise=false
"""  # noqa: E501
RESEARCHERS = """
backbone.weights=other.safetensors
train.threads=2
pretrain.data=other.npz
pretrain.labels=[8, 9]
pretrain.epochs=9
pretrain.batch_size=9
pretrain.optimizer.lr=9e-3
pretrain.optimizer.name=sgd
pretrain.optimizer.weight_decay=0.5
pretrain.optimizer.momentum=0.5
pretrain.seed=9
simulation.nodes=9
simulation.data=other.npz
simulation.partition.kind=iid
simulation.partition.alpha=9
simulation.partition.classes_per_node=1
simulation.partition.column=hospital
simulation.partition.min_examples=9
simulation.test_fraction=0.5
simulation.patient=mrn
simulation.shots=5
simulation.reading.bits=12
simulation.reading.leave_out=[]
simulation.reading.unknown_categories=missing
simulation.reading.labels_left_out=allow
simulation.reading.patient_unknown=apart
simulation.reading.patient_from=none
simulation.reading.max_shared=0.5
"""


def lines(text: str) -> list[str]:
    return [line for line in text.replace("{zeros}", "0" * 64).splitlines() if line]


def changes_of(line: str) -> list[str]:
    """The `--set` options of a line; a space parts them where a key follows."""
    options: list[str] = []
    for word in line.split(" "):
        if "=" in word:
            options.append(word)
        else:
            options[-1] += f" {word}"
    return options


def plan_of(line: str) -> Plan:
    """The plan that a line is a change of."""
    plan = amended(load_plan("digits"), ["simulation.partition.kind=dirichlet"])
    if line in lines(PRIVATE):
        return amended(plan, ["privacy.mode=sample", "privacy.target_epsilon=3"])
    if line in lines(TABLES):
        table = {
            "kind": "tabular-classification",
            "classes": ["a", "b"],
            "columns": ["x", "y"],
            "categories": [{"column": "x", "values": ["f", "m"]}],
        }
        return amended(
            plan, [f"task={json.dumps(table)}", "backbone={name: mlp, weights: m.safetensors}"]
        )
    return plan


@pytest.mark.parametrize("line", lines(IMAGES + PRIVATE + TABLES))
def test_every_key_that_a_hospital_approves_is_in_the_hash(line: str) -> None:
    """A key that could change after the approval, and nobody would see it."""
    plan = plan_of(line)
    changed = amended(plan, changes_of(line))
    assert agreement_hash(changed) != agreement_hash(plan)
    assert plan_hash(changed) != plan_hash(plan)


@pytest.mark.parametrize("line", lines(RESEARCHERS))
def test_what_a_researcher_decides_needs_no_new_approval(line: str) -> None:
    """A hospital asked again since somebody simulates the plan with nine nodes."""
    plan = plan_of(line)
    changed = amended(plan, changes_of(line))
    assert agreement_hash(changed) == agreement_hash(plan)
    assert plan_hash(changed) != plan_hash(plan)


@pytest.mark.parametrize("part", ["simulation", "pretrain"])
def test_a_part_that_a_researcher_drops_needs_no_new_approval(part: str) -> None:
    plan = load_plan("digits")
    assert agreement_hash(amended(plan, [f"{part}=null"])) == agreement_hash(plan)


@pytest.mark.parametrize("key", ["tokens=1024", "layers=3", "width=64", "heads=2"])
def test_how_a_language_model_is_made_needs_no_new_approval(key: str) -> None:
    """A hospital asked again since somebody makes a smaller one; it is held to its fingerprint."""
    plan = load_plan("generate")
    changed = amended(plan, [f"pretrain.language.{key}"])
    assert agreement_hash(changed) == agreement_hash(plan)
    assert plan_hash(changed) != plan_hash(plan)


def test_every_key_of_a_plan_is_tried_here() -> None:
    """A key that is new, and of which nobody has said whether a hospital approves it."""
    # tests/common/test_extensions.py: it needs code
    tried = {"extensions"}
    for line in lines(IMAGES + PRIVATE + TABLES + RESEARCHERS):
        tried |= {option.partition("=")[0] for option in changes_of(line)}
    # what is inside a list is written with the list
    within = (
        "pretrain.language",
        "task.categories.",
        "task.ranges.",
        "task.findings.",
        "evaluate.subgroups.",
    )
    keys: set[str] = set()
    for row in describe_keys():
        if not row.key.startswith(within):
            keys.add(row.key)
    groups = {key for key in keys if any(other.startswith(f"{key}.") for other in keys)}
    assert tried - groups == keys - groups


@pytest.mark.parametrize("name", ["digits", "heart", "pneumonia"])
def test_only_the_agreement_travels(name: str) -> None:
    """A path of the coordinator's machine, or its data's name, at every hospital."""
    plan = load_plan(name)
    agreement = agreement_of(plan)
    assert type(agreement) is Agreement
    content = json.loads(canonical(agreement))
    assert content.keys() == Agreement.model_fields.keys() - set(Agreement.later)
    assert not {"simulation", "pretrain"} & content.keys()
    assert "weights" not in content["backbone"]
    assert "threads" not in content["train"]
    shared = plan.model_dump(mode="json")
    assert _is_part(content, shared)


def _is_part(part: Any, whole: Any) -> bool:
    """Whether every key of nested mappings is in the other ones, with the same value."""
    if not isinstance(part, dict):
        return part == whole
    return all(_is_part(value, whole[key]) for key, value in part.items())


@pytest.mark.parametrize("name", ["digits", "heart", "pneumonia"])
def test_the_agreement_of_an_agreement_is_itself(name: str) -> None:
    """Two sides that take it out of different things, and come to different hashes."""
    plan = load_plan(name)
    agreement = agreement_of(plan)
    assert agreement_of(agreement) is agreement
    assert agreement_from_json(canonical(agreement)) == agreement
    assert agreement_hash(agreement) == agreement_hash(plan)
    sent = agreement_from_json(canonical(agreement))
    assert agreement_hash(sent) == agreement_hash(plan_from_json(canonical(plan)))


def test_sections_of_both_are_read_in_the_same_way() -> None:
    """A key that the plan's own section takes, and the agreement's refuses or takes otherwise."""
    for name, field in Agreement.model_fields.items():
        planned = Plan.model_fields[name]
        if isinstance(field.default, Section):
            assert field.default.model_dump().items() <= planned.default.model_dump().items()
        else:
            assert (field.default, field.is_required()) == (planned.default, planned.is_required())


def test_a_plan_has_the_hash_that_it_had() -> None:
    """Results, studies and run folders of e7a320a that no longer know their plan."""
    recorded = json.loads(RECORDED.read_text())["cases"]
    for name in ("digits", "heart", "pneumonia"):
        assert plan_hash(load_plan(name)) == recorded[name]["plan_hash"]
    changed = ["train.rounds=2", "adapter.method=head"]
    assert plan_hash(load_plan("digits", changed)) == recorded["digits-head"]["plan_hash"]
    private = ["train.rounds=3", "privacy.mode=sample", "privacy.target_epsilon=3"]
    assert plan_hash(load_plan("heart", private)) == recorded["heart-sample"]["plan_hash"]
