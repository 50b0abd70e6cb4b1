"""The shared model on disk: what the hospitals receive, and the one function that opens it again.

adapter_model.safetensors, adapter_config.json   the adapter and the head (LoRA: as PEFT lays it
out) model.json                                       classes, preprocessing, backbone by
fingerprint, plan backbone.safetensors                             the backbone itself, so that the
folder stands alone MODEL_CARD.md                                    for people
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgraft.common.backbones.backbone import (
    Backbone,
    backbone_from_state,
    backbone_state,
    fingerprint_of,
)
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import read_tensors, write_tensors
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.model.adapter_files import load_adapter, save_adapter
from fedgraft.common.model.assembly import plan_model
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import canonical, plan_from_json


@dataclass(frozen=True)
class SharedModel:
    """A shared model that is ready to use."""

    model: GraftedModel
    preprocess: Preprocess
    plan: Plan
    classes: tuple[str, ...]

    @torch.inference_mode()
    def probabilities(self, raw: Tensor) -> Tensor:
        """Raw images `(n, 1 or 3, H, W)` uint8, or tables `(n, columns)` → class probabilities `(n,
        classes)`.
        """
        return self.model(self.preprocess(raw)).softmax(dim=1)


def save_shared_model(
    folder: Path, model: GraftedModel, backbone: Backbone, plan: Plan, card: str
) -> None:
    """Write the shared model into `folder`; what was there is replaced in one step."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_adapter(model, part)
    write_tensors(backbone_state(backbone), part / "backbone.safetensors", {"name": backbone.name})
    about = {
        "schema": 1,
        "classes": list(plan.task.classes),
        "preprocess": backbone.preprocess.to_json(),
        "backbone": {
            "name": backbone.name,
            "fingerprint": backbone.fingerprint,
            "head": backbone.head_name,
        },
        "plan": json.loads(canonical(plan)),
    }
    (part / "model.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    (part / "MODEL_CARD.md").write_text(card)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def load_shared_model(folder: str | Path, backbone: str | Path | None = None) -> SharedModel:
    """Open a shared model; gives the same outputs as the model that was saved.

    Args:
        folder: a `shared_model` folder, or the run's folder it lies in.
        backbone: the backbone's file, if it does not lie in the folder.

    Raises:
        UserError: no shared model there, or files that are damaged or do not belong together.
    """
    place = Path(folder)
    if (place / "shared_model").is_dir():
        place = place / "shared_model"
    try:
        about: Mapping[str, Any] = json.loads((place / "model.json").read_text())
        plan = plan_from_json(json.dumps(about["plan"]))
        wanted, preprocess = about["backbone"], Preprocess.from_json(about["preprocess"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "holds no shared model that can be read",
            where=str(folder),
            remedy="give the folder of a finished run, such as runs/NAME-TIME",
        ) from error
    file = Path(backbone) if backbone else place / "backbone.safetensors"
    try:
        net = backbone_from_state(wanted["name"], read_tensors(file), preprocess)
    except UserError as error:
        raise UserError(error.what, where=str(file), remedy=error.remedy) from error
    found = fingerprint_of(backbone_state(net))
    if found != wanted["fingerprint"]:
        raise UserError(
            f"is backbone {found}; this model was grafted onto {wanted['fingerprint']}",
            where=str(file),
            remedy="give the backbone that the run used",
        )
    model = plan_model(net, plan)
    load_adapter(model, place)
    return SharedModel(model, preprocess, plan, tuple(about["classes"]))
