"""A backbone pre-trained on the plan's `pretrain` data, kept with its fingerprint and
provenance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.client.data.data_set import DataSource, Records, open_records
from fedgraft.client.data.split import Split
from fedgraft.client.readers.pixel_form import PixelForm
from fedgraft.client.round import round_generator
from fedgraft.client.training.local_steps import (
    LocalTraining,
    build_optimizer,
    evaluate,
    train,
)
from fedgraft.common.backbones.backbone import Backbone, backbone_state
from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.backbones.mlp import Mlp, Standardise
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import fingerprint_of
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.model.assembly import choose_depths
from fedgraft.common.model.public_reference import AT_ONCE, fit_source
from fedgraft.common.model.reference_files import reference_path, save_reference
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import plan_hash
from fedgraft.common.plan.pretrain_section import PretrainSection
from fedgraft.common.plan.reading_section import UNDECIDED
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks import TASKS, task_line
from fedgraft.simulations.language_pretraining import pretrain_language

NO_PRETRAIN = (
    "add `pretrain: {data: FILE, labels: [0, 1], epochs: 20}` and backbone.weights:"
    " FILE.safetensors"
)


@dataclass(frozen=True)
class _Data:
    """What a backbone learns from, and what it is tested on."""

    records: Records
    train: Split
    held_out: Split


def pretrain(plan: Plan, plan_path: Path) -> dict[str, Any]:
    """Train the plan's backbone from scratch with a classifier of its own, which is thrown away.

    Returns:
        Where it lies, its fingerprint, its held-out accuracy and its provenance; and where the
        public reference lies that closed forms under differential privacy centre and whiten by.

    Raises:
        UserError: no `pretrain` section, weights that are not a file to be made, or data that is
            missing.
    """
    if task_line(plan.task.question).writes:
        return pretrain_language(plan, plan_path)
    section = plan.pretrain
    weights = plan.backbone.weights or ""
    if section is None or not weights.endswith(".safetensors"):
        raise UserError(
            "says nothing of how to make its backbone",
            where=f"{plan_path}: pretrain",
            remedy=NO_PRETRAIN,
        )
    records = _open(plan, section, plan_path)
    torch.set_num_threads(plan.train.threads)
    backbone = _build(plan, section)
    data = _Data(
        records=records,
        train=Split(records, records.splits["train"], backbone.preprocess),
        held_out=Split(records, records.splits["test"], backbone.preprocess),
    )
    if isinstance(backbone.net, Mlp) and isinstance(backbone.net.standardise, Standardise):
        backbone.net.standardise.fit(records.read(data.train.rows))

    task = source_task(plan.task, section)
    model = _train(section, task, backbone, data.train)
    accuracy = evaluate(model, data.held_out, task).summary()["accuracy"]
    trained = replace(backbone, fingerprint=fingerprint_of(backbone_state(backbone)))
    path = Path(weights)
    provenance = _describe(plan, section, data, accuracy)
    save_backbone(trained, path, provenance)
    return {
        "path": str(path),
        "fingerprint": trained.fingerprint,
        "accuracy": accuracy,
        "reference": _make_reference(plan, trained, data.train, path),
        "provenance": provenance,
    }


def _make_reference(plan: Plan, backbone: Backbone, split: Split, weights: Path) -> str | None:
    """Write where the features of the source data lie and how they spread, for a closed form under
    differential privacy; return the path, or None for a question that has no such form, or whose
    head reads those of places.
    """
    task = TASKS[plan.task.question]
    closed = task.closed_form
    if closed is None or closed.noisy is None or task.takes == "maps":
        return None
    choice = choose_depths(backbone, plan)
    batches = (split.inputs(part) for part in torch.split(torch.arange(len(split)), AT_ONCE))
    path = reference_path(weights)
    save_reference(fit_source(backbone, choice, batches), path, backbone, choice)
    return str(path)


def source_task(task: TaskSection, section: PretrainSection) -> TaskSection:
    """Return what a backbone learns from its source: to tell the source's own labels apart,
    whatever is asked of the nodes' records.
    """
    own = {
        "kind": f"{task.material}-classification",
        "classes": tuple(map(str, section.classes)),
        "labels": section.labels,
        "targets": (),
        "number": None,
    }
    return task.model_copy(update=own)


def _open(plan: Plan, section: PretrainSection, plan_path: Path) -> Records:
    task = source_task(plan.task, section)
    reading = UNDECIDED if plan.simulation is None else plan.simulation.reading
    if task.labels is not None:
        # the section's own labels are those to learn from
        reading = reading.model_copy(update={"labels_left_out": "allow"})
    path = resolve(section.files[0], plan_path.parent)
    form = PixelForm.of(plan.backbone)
    data = DataSource(path, reading=reading, signal=plan.backbone.signal, form=form)
    return open_records(data, task)


def _build(plan: Plan, section: PretrainSection) -> Backbone:
    return load_backbone(
        plan.backbone.name,
        image_size=plan.backbone.image_size,
        channels=plan.backbone.image_channels,
        signal=plan.backbone.signal,
        hidden=plan.backbone.hidden,
        columns=plan.task.inputs,
        seed=section.seed,
    )


class _Classifier(nn.Module):
    """A backbone that is trained as a whole, under a classifier that is thrown away."""

    def __init__(self, net: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.net = net
        self.classifier = classifier

    def forward(self, batch: Batch) -> Tensor:
        """Return logits `(n, classes)`."""
        return self.classifier(self.net(batch.only))


def _train(
    section: PretrainSection, task: TaskSection, backbone: Backbone, split: Split
) -> nn.Module:
    """Train the backbone under a new classifier; return both, frozen."""
    # Batch normalisation and dropout draw on the data and on the global random state here, and
    # nowhere later.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(section.seed)
        classifier = nn.Linear(backbone.features, len(section.classes))
        model = _Classifier(backbone.net, classifier)
        model.requires_grad_(True).train()
        training = LocalTraining(
            epochs=section.epochs,
            batch_size=section.batch_size,
            loss=TASKS[task.question].loss,
        )
        train(
            model,
            split,
            training,
            optimizer=build_optimizer(model, section.optimizer, section.optimizer.lr),
            generator=round_generator(section.seed, 0, "pretrain"),
        )
    return model.requires_grad_(False).eval()


def _describe(
    plan: Plan, section: PretrainSection, data: _Data, accuracy: float | None
) -> dict[str, Any]:
    """Return the provenance that is kept beside the backbone."""
    return {
        "made_by": "fedgraft pretrain",
        "plan": plan.name,
        "plan_hash": plan_hash(plan),
        "data": section.data,
        "data_fingerprint": data.records.fingerprint,
        "labels": list(section.classes),
        "examples": len(data.train),
        "held_out_examples": len(data.held_out),
        "held_out_accuracy": accuracy,
        "epochs": section.epochs,
        "seed": section.seed,
        "versions": {name: version(name) for name in ("fedgraft", "torch")},
    }
