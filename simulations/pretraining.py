"""A backbone pre-trained on the plan's `pretrain` data, kept with its fingerprint and
provenance.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedgraft.client.data.data_set import DataSource, TaskData, open_records
from fedgraft.client.data.split import Split
from fedgraft.client.round import generator_of
from fedgraft.client.training.local_steps import build_optimizer, evaluate, train
from fedgraft.common.backbones.backbone import (
    backbone_state,
    fingerprint_of,
    load_backbone,
    save_backbone,
)
from fedgraft.common.backbones.mlp import Mlp
from fedgraft.common.errors import UserError
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import plan_hash


def pretrain(plan: Plan, plan_path: Path) -> dict[str, Any]:
    """Train the plan's backbone from scratch with a classifier of its own, which is thrown away.

    Returns:
        Where it lies, its fingerprint, its held-out accuracy and its provenance.

    Raises:
        UserError: no `pretrain` section, weights that are not a file to be made, or data that is
            missing.
    """
    if plan.pretrain is None or not (plan.backbone.weights or "").endswith(".safetensors"):
        raise UserError(
            "says nothing of how to make its backbone",
            where=f"{plan_path}: pretrain",
            remedy=(
                "add `pretrain: {data: FILE, labels: [0, 1], epochs: 20}` and backbone.weights:"
                " FILE.safetensors"
            ),
        )
    wanted = plan.pretrain
    task = replace(
        TaskData.of(plan.task), classes=tuple(map(str, wanted.labels)), labels=wanted.labels
    )
    records = open_records(DataSource(resolve(wanted.data, plan_path.parent)), task)
    torch.set_num_threads(plan.train.threads)
    backbone = load_backbone(
        plan.backbone.name,
        image_size=plan.backbone.image_size,
        hidden=plan.backbone.hidden,
        columns=plan.task.inputs,
        seed=wanted.seed,
    )
    split = Split(records, records.splits["train"], backbone.preprocess)
    held_out = Split(records, records.splits["test"], backbone.preprocess)
    if isinstance(backbone.net, Mlp):
        backbone.net.standardise.fit(records.read(split.rows))

    # Batch normalisation and dropout draw on the data and on the global random state here, and
    # nowhere later.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(wanted.seed)
        model = nn.Sequential(backbone.net, nn.Linear(backbone.features, len(wanted.labels)))
        model.requires_grad_(True).train()
        train(
            model,
            split,
            epochs=wanted.epochs,
            batch_size=wanted.batch_size,
            optimizer=build_optimizer(model, wanted.optimizer, wanted.optimizer.lr),
            proximal=0.0,
            augment="none",
            generator=generator_of(wanted.seed, 0, "pretrain"),
        )
    model.requires_grad_(False).eval()
    accuracy = evaluate(model, held_out, len(wanted.labels)).summary()["accuracy"]
    trained = replace(backbone, fingerprint=fingerprint_of(backbone_state(backbone)))
    path = Path(plan.backbone.weights or "")
    provenance = {
        "made_by": "fedgraft pretrain",
        "plan": plan.name,
        "plan_hash": plan_hash(plan),
        "data": wanted.data,
        "data_fingerprint": records.fingerprint,
        "labels": list(wanted.labels),
        "examples": len(split),
        "held_out_examples": len(held_out),
        "held_out_accuracy": accuracy,
        "epochs": wanted.epochs,
        "seed": wanted.seed,
        "versions": {name: version(name) for name in ("fedgraft", "torch")},
    }
    save_backbone(trained, path, provenance)
    return {
        "path": str(path),
        "fingerprint": trained.fingerprint,
        "accuracy": accuracy,
        "provenance": provenance,
    }
