"""The shared model on disk: what the hospitals receive, and the one function that opens it again.

adapter_model.safetensors, adapter_config.json   the adapter and the head (LoRA: as PEFT does)
model.json                                       classes, preparation, backbone, plan
backbone.safetensors                             so that the folder stands alone
variance.safetensors                             how sure a solved head is, if the plan asks for it
MODEL_CARD.md                                    for people
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
    preparation_from_json,
)
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import fingerprint_of, read_tensors, write_tensors
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.material import Preparation, Raw
from fedgraft.common.inputs.volume import VolumePreparation
from fedgraft.common.model.adapter_files import load_adapter, save_adapter
from fedgraft.common.model.assembly import plan_model
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import canonical, plan_from_json
from fedgraft.common.run_files import SHARED_MODEL, VARIANCE
from fedgraft.common.statistics.predictive_variance import PredictiveVariance
from fedgraft.common.tasks import TASKS
from fedgraft.common.tasks.task import Task

BACKBONE = "backbone.safetensors"
ABOUT = "model.json"
CARD = "MODEL_CARD.md"


@dataclass(frozen=True)
class Told:
    """What a shared model says of some records.

    Attributes:
        values: `(n, columns)`.
        answers: in words, one a record; None: the values are the answer.
    """

    values: Tensor
    answers: list[str] | None


@dataclass(frozen=True)
class SharedModel:
    """A shared model that is ready to use.

        shared = load_shared_model("runs/pneumonia-20261123-221500")
        shared.predict(images)  # uint8 (n, 1 or 3, H, W) → (n, classes)

    Attributes:
        model: backbone, adapters and head.
        preprocess: what raw records go through first.
        plan: that it was trained by.
        classes: what is told apart; empty where answers are no classes.
        variance: how sure a head is that was solved for, where the plan asks for it.
        threshold: the probability from which on the second of two classes is answered; None: the
            likeliest is.
    """

    model: GraftedModel
    preprocess: Preparation
    plan: Plan
    classes: tuple[str, ...]
    variance: PredictiveVariance | None = None
    threshold: float | None = None

    @property
    def question(self) -> Task:
        """What it answers."""
        return TASKS[self.plan.task.question]

    @property
    def columns(self) -> tuple[str, ...]:
        """Return what the columns of what is told are called, such as `p_NAME` of each class."""
        return self.question.columns(self.plan.task)

    @torch.inference_mode()
    def predict(self, raw: Raw) -> Tensor:
        """Raw images `(n, channels, H, W)` uint8, tables `(n, columns)`, or n texts → what is told
        of each, `(n, columns)`: probabilities of classes, or numbers in their unit.
        """
        outputs = self.model(self.preprocess(raw)).cpu()
        return self.question.predict(outputs, self.plan.task)

    @torch.inference_mode()
    def tell(self, raw: Raw, tokens: int | None = None) -> Told:
        """Raw records, as of `predict` → what is told of each, and the answer in words.

        Args:
            tokens: that are written at most, where answers are; None: the usual number.
        """
        write = self.question.write
        if write is not None:
            texts: Any = raw
            answers = write(self.model, texts, self.preprocess, tokens)
            return Told(torch.empty(len(answers), 0), answers)
        outputs = self.model(self.preprocess(raw)).cpu()
        task = self.plan.task
        values = self.question.predict(outputs, task)
        if self.question.locate is None:
            return Told(values, self.answers(values))
        return Told(values, self.question.locate(outputs, raw, self.preprocess, task))

    @property
    def has_answers(self) -> bool:
        """Whether it answers in words."""
        question = self.question
        ways = (question.answer, question.locate, question.write)
        return any(way is not None for way in ways)

    def answers(self, told: Tensor) -> list[str] | None:
        """What is told `(n, columns)` → the answer for each record, in words; None where what is
        told is the answer.
        """
        answer = self.question.answer
        if answer is None:
            return None
        return answer(told, self.plan.task, self.threshold)

    @torch.inference_mode()
    def predict_sliding(self, raw: Raw) -> Tensor:
        """n volumes, of any extent → what is told of each, `(n, columns)`: the mean over
        overlapping crops that cover it.

        Raises:
            UserError: a model that takes no volumes, or a plan that brings them to one size.
        """
        if not isinstance(self.preprocess, VolumePreparation) or isinstance(raw, Tensor):
            what = "crops are of volumes, as they lie in files"
            raise UserError(what, where="--sliding", remedy="leave it out")
        task = self.plan.task
        means: list[Tensor] = []
        for volume in raw:
            told: list[Tensor] = []
            for crop in self.preprocess.crops(volume):
                told.append(self.question.predict(self.model(crop).cpu(), task))
            means.append(torch.cat(told).mean(0))
        return torch.stack(means)

    @torch.inference_mode()
    def deviations(self, raw: Raw) -> Tensor | None:
        """Return the predictive standard deviation of each regression score `(n, classes)`, on the
        scale of the targets 0 and 1, or of a number in its unit, `(n, 1)`; None where the plan does
        not ask for it.

        Much more than the others' says that a record is unlike those of the training.
        """
        if self.variance is None:
            return None
        return self.variance.deviations(self.model.features(self.preprocess(raw)))

    @torch.inference_mode()
    def vectors(self, prepared: Batch) -> Tensor:
        """Return what the head reads of each prepared record, `(n, d)`: the adapted backbone's
        features, of all depths where the head reads those.

        Raises:
            UserError: the head answers for places or tokens, and no one vector is a record's; or
                features that are not finite.
        """
        if self.question.takes != "pooled":
            what = f"the answers of {self.plan.task.kind} are for places or tokens of a record"
            remedy = "take a run whose head reads one vector for each record"
            raise UserError(f"{what}, and no one vector is the record's", remedy=remedy)
        features = self.model.features(prepared)
        if not bool(torch.isfinite(features).all()):
            remedy = "take a record out that holds infinite or missing numbers"
            raise UserError("a record's features are not finite", remedy=remedy)
        return features


@dataclass(frozen=True)
class Beside:
    """What is kept of a shared model beside its tensors.

    Attributes:
        round: that it is of: in the plan's last it may have another head.
        variance: how sure the head is, where it was solved for and the plan asks for it.
        threshold: the probability from which on the second of two classes is answered.
    """

    round: int
    variance: PredictiveVariance | None = None
    threshold: float | None = None


def save_shared_model(
    folder: Path,
    model: GraftedModel,
    backbone: Backbone,
    plan: Plan,
    card: str,
    beside: Beside,
) -> None:
    """Write the shared model into `folder`; what was there is replaced in one step."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_adapter(model, part)
    write_tensors(backbone_state(backbone), part / BACKBONE, {"name": backbone.name})
    if beside.variance is not None:
        write_tensors(beside.variance.tensors(), part / VARIANCE, {})
    described = {
        "name": backbone.name,
        "fingerprint": backbone.fingerprint,
        "head": backbone.head_name,
    }
    about = {
        "schema": 1,
        "classes": list(plan.task.classes),
        "preprocess": backbone.preprocess.to_json(),
        "backbone": described,
        "plan": json.loads(canonical(plan)),
    }
    if beside.round != plan.train.rounds:
        about["round"] = beside.round
    if beside.threshold is not None:
        about["threshold"] = beside.threshold
    text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    (part / ABOUT).write_text(text)
    (part / CARD).write_text(card)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def load_shared_model(folder: str | Path, backbone: str | Path | None = None) -> SharedModel:
    """Open a shared model; it gives the same outputs as the model that was saved.

    Args:
        folder: a `shared_model` folder, or the run's folder it lies in.
        backbone: the backbone's file, if it does not lie in the folder.

    Raises:
        UserError: no shared model there, or files that are damaged or do not belong together.
    """
    inside = Path(folder)
    if (inside / SHARED_MODEL).is_dir():
        inside = inside / SHARED_MODEL
    try:
        about: Mapping[str, Any] = json.loads((inside / ABOUT).read_text())
        plan = plan_from_json(json.dumps(about["plan"]))
        described = about["backbone"]
        preparation = preparation_from_json(described["name"], about["preprocess"])
        threshold = _read_threshold(about)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "holds no shared model that can be read",
            where=str(folder),
            remedy="give the folder of a finished run, such as runs/NAME-TIME",
        ) from error
    file = Path(backbone or inside / BACKBONE)
    backbone_here = _open_backbone(file, described, preparation)
    model = plan_model(backbone_here, plan, about.get("round"))
    load_adapter(model, inside)
    variance = None
    if (inside / VARIANCE).exists():
        variance = _read_variance(inside / VARIANCE, model)
    classes = tuple(about["classes"])
    return SharedModel(model, backbone_here.preprocess, plan, classes, variance, threshold)


def _read_threshold(about: Mapping[str, Any]) -> float | None:
    """Return the operating point of a shared model. Raise `ValueError` for what is none."""
    threshold = about.get("threshold")
    if threshold is None:
        return None
    if not isinstance(threshold, float) or not 0 <= threshold <= 1 or len(about["classes"]) != 2:
        raise ValueError("a threshold that is no probability between two classes")
    return threshold


def _read_variance(file: Path, model: GraftedModel) -> PredictiveVariance:
    """Return how sure the head is. Raise `UserError` for a file that is not this head's."""
    tensors = read_tensors(file)
    features = model.count_features()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {"mean": (features,), "root": (features, features)}
    noise = shapes.pop("noise", ())
    if shapes != expected or len(noise) != 2:
        what = "is not what belongs to this model's head"
        raise UserError(what, where=str(file), remedy="take the folder as the run left it")
    return PredictiveVariance(**tensors)


def _open_backbone(file: Path, described: Mapping[str, Any], preparation: Preparation) -> Backbone:
    """Return the backbone in a file. Raise `UserError` where it is not the one described."""
    try:
        backbone = backbone_from_state(described["name"], read_tensors(file), preparation)
    except UserError as error:
        raise UserError(error.what, where=str(file), remedy=error.remedy) from error
    fingerprint = fingerprint_of(backbone_state(backbone))
    agreed = described["fingerprint"]
    if fingerprint != agreed:
        what = f"is backbone {fingerprint}; this model was grafted onto {agreed}"
        raise UserError(what, where=str(file), remedy="give the backbone that the run used")
    return backbone
