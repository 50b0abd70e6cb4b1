"""The plan's backbone, and the plan's adapter grafted onto it: the same on both sides of the
wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgraft.common.backbones import family_line, family_of
from fedgraft.common.backbones.backbone import Backbone, backbone_state
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.backbones.quantization import count_plain_bytes
from fedgraft.common.backbones.reference import Reference
from fedgraft.common.errors import UserError
from fedgraft.common.inputs import INPUTS
from fedgraft.common.inputs.material import hash_preparation
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.model.devices import prepare_device
from fedgraft.common.model.frozen_precision import run_frozen_in_bfloat16
from fedgraft.common.model.gradient_checkpointing import checkpoint_gradients
from fedgraft.common.model.grafted_model import (
    DepthChoice,
    GraftedModel,
    copy_sharing,
    graft,
)
from fedgraft.common.model.map_heads import MapChoice
from fedgraft.common.model.public_reference import (
    bring_to_norm,
    fit_public,
    take_declared,
    with_reference,
)
from fedgraft.common.model.reference_files import read_reference, reference_path
from fedgraft.common.model.text_head import with_text_head
from fedgraft.common.model.token_features import TokenChoice, count_of_token, open_tokens
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.phases import (
    begins_with_texts,
    counts_constants,
    has_depth_head,
    has_hinges,
    has_reference,
    rounds_for,
)
from fedgraft.common.plan.plan import Plan
from fedgraft.common.tasks import TASKS, task_line


def plan_backbone(plan: Plan, base: Path, weights: str | None = None) -> Backbone:
    """Load the backbone that a plan names.

    Args:
        base: folder of the plan's file; a file or folder of weights is looked up beside it first.
        weights: where the file lies on this machine, if not where the plan says.

    Raises:
        UserError: weights that are missing, damaged or of another network; says what to do.
    """
    source = find_weights(plan, base, weights)
    backbone = load_network(plan, source)
    if begins_with_texts(plan.train):
        backbone = with_text_head(backbone, plan, source)
    if has_reference(plan.train, plan.privacy):
        return with_reference(backbone, find_reference(plan, backbone, source))
    return backbone


def find_weights(plan: Plan, base: Path, weights: str | None = None) -> str | Path | None:
    """Return where the values of a plan's backbone come from; arguments as of `plan_backbone`."""
    section = plan.backbone
    if weights is None and section.weights_file is not None:
        remedy = "copy the file there, or name another as backbone.weights"
        if family_line(section.name).has_folders:
            remedy = "download the model's folder there; nothing is fetched from a hub by its name"
        if plan.pretrain is not None:
            remedy = f"make it: fedgraft pretrain {plan.name}"
        return resolve(section.weights_file, base, remedy=remedy)
    return weights or section.weights


def load_network(plan: Plan, source: str | Path | None) -> Backbone:
    """Return a plan's backbone without a public reference.

    Args:
        source: as `find_weights` returns it.

    Raises:
        UserError: weights that are missing, damaged, of another network, or with inputs prepared in
            another way than was agreed on.
    """
    section = plan.backbone
    backbone = load_backbone(
        section.name,
        weights=source,
        random=section.random,
        quantization=section.quantization,
        **shape_options(plan),
        seed=plan.seed,
        fingerprint=section.fingerprint,
    )
    if task_line(plan.task.question).has_places:
        whole = INPUTS[plan.task.material].whole(backbone.preprocess)
        backbone = replace(backbone, preprocess=whole)
    mine = hash_preparation(backbone.preprocess)
    if section.preparation not in (None, mine):
        what = f"inputs are prepared as {mine}, and the plan wants {section.preparation}"
        remedy = "use the weights that were agreed on, or correct the plan"
        raise UserError(what, where="backbone.preparation", remedy=remedy)
    return backbone


def check_scales(plan: Plan) -> None:
    """Raise `UserError` where nothing scales the columns of a table, or two things do: a network of
    random values learns little from an income beside an age. Runs that were begun so go on.
    """
    line = family_line(plan.backbone.name)
    if not line.scaled_by_plan:
        return
    if plan.backbone.weights is not None and not line.learns:
        brings = f"and the weights of {plan.backbone.name} bring scales of their own"
        if plan.task.ranges:
            raise UserError(f"there, {brings}", where="task.ranges", remedy="leave them out")
        if plan.train.start == "standardise":
            what = f"standardise, {brings}"
            raise UserError(what, where="train.start", remedy="leave it out")
        return
    if plan.task.ranges or not plan.task.numbers or plan.train.start == "standardise":
        return
    if line.learns and rounds_for(plan.train, "histograms"):
        return
    first = plan.task.numbers[0]
    if line.learns:
        raise UserError(
            f"missing, and nothing scales the columns of {plan.backbone.name}",
            where="task.ranges",
            remedy=(
                "write `start: standardise` under train: in a round of its own all hospitals tell"
                " where their numbers lie; or between which values they lie,"
                f" `task.ranges: [{{columns: [{first}], low: LEAST, high: LARGEST}}]`"
            ),
        )
    raise UserError(
        f"{plan.backbone.name} without weights, and nothing scales its columns",
        where="backbone.weights",
        remedy=(
            "write `start: standardise` under train: in a round of its own all hospitals tell mean"
            " and deviation; or between which values the numbers lie, as under differential"
            f" privacy, `task.ranges: [{{columns: [{first}], low: LEAST, high: LARGEST}}]`; or name"
            " weights that were trained beforehand"
        ),
    )


def find_reference(plan: Plan, backbone: Backbone, source: str | Path | None) -> Reference:
    """Return the public reference for a plan's features, wherever it comes from.

    Args:
        source: of the backbone's weights: a file, a name, or None.
    """
    takes = TASKS[plan.task.question].takes
    if takes == "tokens":
        # of tokens nothing public is known
        return Reference(count_token_features(backbone, plan))
    choice: DepthChoice | MapChoice
    if takes == "maps":
        choice = choose_maps(backbone, plan, plan.train.rounds)
    else:
        choice = choose_depths(backbone, plan)
        made = _find_made(plan, backbone, source, choice)
        if made is not None:
            return made
    public = INPUTS[plan.task.material].public
    if public is None:
        return bring_to_norm(backbone, choice)
    cut = partial(public, backbone.preprocess, plan.backbone, plan.task)
    return fit_public(backbone, choice, cut)


def _find_made(
    plan: Plan, backbone: Backbone, source: str | Path | None, choice: DepthChoice
) -> Reference | None:
    """Return the reference that follows from what a plan declares, or that lies beside the weights;
    None where there is none.
    """
    declare = family_of(backbone.name).reference
    if declare is not None:
        return take_declared(*declare(backbone.net))
    if source is None or plan.backbone.random:
        return None
    path = reference_path(Path(source))
    if not path.is_file():
        return None
    return read_reference(path, backbone, choice)


def count_token_features(backbone: Backbone, plan: Agreement) -> int:
    """Return how many features of a token the plan's solved head reads."""
    choice = choose_tokens(backbone, plan, plan.train.rounds)
    net = copy_sharing(backbone.net, lambda parameter: True)
    return count_of_token(open_tokens(backbone, net, choice), choice.example)


def shape_options(plan: Agreement) -> dict[str, Any]:
    """Return what of a plan the shape of its backbone follows from, as `load_backbone` takes it."""
    declared: tuple[tuple[float, float], ...] | None = None
    line = family_line(plan.backbone.name)
    if line.learns and not counts_constants(plan.train, plan.privacy, learns=True):
        declared = tuple(plan.task.declared[name] for name in plan.task.numbers)
    if _scales_by_ranges(plan):
        declared = tuple(plan.task.declared[name] for name in plan.task.numbers)
    return {
        "image_size": plan.backbone.image_size,
        "channels": plan.backbone.image_channels,
        "max_length": plan.backbone.max_length,
        "pool": plan.backbone.pool,
        "volume": plan.backbone.volume,
        "signal": plan.backbone.signal,
        "hidden": plan.backbone.hidden,
        "columns": plan.task.inputs,
        "category_sizes": plan.task.category_sizes,
        "hinges": has_hinges(plan.train, plan.privacy),
        "ranges": declared,
        "learns_scales": plan.train.start == "standardise",
    }


def _scales_by_ranges(plan: Agreement) -> bool:
    """Whether a plan's ranges scale its columns, and not histograms of a round before a closed
    form.
    """
    line = family_line(plan.backbone.name)
    if line.learns and plan.train.method == "closed-form":
        return False
    return line.scaled_by_plan and bool(plan.task.ranges)


def plan_model(backbone: Backbone, plan: Agreement, round_: int | None = None) -> GraftedModel:
    """Return the plan's adapter and a fresh head on a backbone, with the same initial values on
    every side; a head that texts give has them at the coordinator alone.

    Args:
        round_: that it is for: a plan may have another head in its last round; default: that one.
    """
    adapter = plan.adapter
    options = adapter.model_dump(exclude={"method", "targets"})
    number = round_ or plan.train.rounds
    depths = None
    takes = TASKS[plan.task.question].takes
    if takes == "maps":
        depths = choose_maps(backbone, plan, number)
    elif takes == "tokens":
        depths = choose_tokens(backbone, plan, number)
    elif takes == "vocabulary":
        depths = choose_vocabulary(backbone, plan)
    elif has_depth_head(plan.train, number):
        depths = choose_depths(backbone, plan)
    model = graft(
        backbone,
        method=adapter.method,
        classes=count_outputs(plan),
        targets=adapter.targets,
        seed=plan.seed,
        freeze_a=plan.aggregate.lora_aggregation == "freeze-a",
        depths=depths,
        **options,
    )
    if plan.backbone.precision == "bfloat16":
        run_frozen_in_bfloat16(model)
    if plan.train.gradient_checkpointing:
        checkpoint_gradients(model)
    return model


def bring_to(model: GraftedModel, device: torch.device, plan: Agreement) -> GraftedModel:
    """Bring a plan's model to a device, which computes in the plan's precision; return it."""
    prepare_device(device, tf32=plan.backbone.precision == "tf32")
    return model.move_to(device)


def keep_adapters(state: Mapping[str, Tensor], model: GraftedModel) -> dict[str, Tensor]:
    """Return the adapter of a model that has another head: its own head, what else `state` has."""
    fresh = model.adapter_state()
    kept = {name: tensor for name, tensor in state.items() if name in fresh}
    return fresh | kept


def choose_depths(backbone: Backbone, plan: Agreement) -> DepthChoice:
    """Return which features the plan's closed-form head reads."""
    section = plan.train.closed_form
    material = INPUTS[plan.task.material]
    example = material.example(backbone.preprocess, plan.backbone, plan.task)
    probe = draw_probes(plan.task.material, backbone.preprocess, example, 1)
    precision = plan.backbone.precision
    return DepthChoice(section.features, section.pool, probe.joined, precision)


def choose_maps(backbone: Backbone, plan: Agreement, round_: int) -> MapChoice:
    """Return which maps the plan's head for places reads in a round, and which head it is."""
    material = INPUTS[plan.task.material]
    example = material.example(backbone.preprocess, plan.backbone, plan.task)
    if task_line(plan.task.question).has_boxes:
        section = plan.task.box_section
        return MapChoice(
            features=plan.train.closed_form.features,
            example=example.joined,
            width=section.width,
            strides=section.strides,
        )
    width = None
    if not has_depth_head(plan.train, round_):
        width = plan.task.mask_section.width
    return MapChoice(
        features=plan.train.closed_form.features,
        example=example.joined,
        width=width,
        solved=plan.train.start == "closed-form",
        patches=plan.train.augment == "patches",
        precision=plan.backbone.precision,
    )


def choose_tokens(backbone: Backbone, plan: Agreement, round_: int) -> TokenChoice:
    """Return which features of a token the plan's head reads in a round."""
    material = INPUTS[plan.task.material]
    example = material.example(backbone.preprocess, plan.backbone, plan.task)
    if has_depth_head(plan.train, round_):
        return TokenChoice(example.joined, plan.train.closed_form.features)
    return TokenChoice(example.joined)


def choose_vocabulary(backbone: Backbone, plan: Agreement) -> TokenChoice:
    """Return that the head is the language model's own."""
    material = INPUTS[plan.task.material]
    example = material.example(backbone.preprocess, plan.backbone, plan.task)
    return TokenChoice(example.joined, of_vocabulary=True)


def count_outputs(plan: Agreement) -> int:
    """Return how many values the head of a plan's model gives for one record."""
    return TASKS[plan.task.question].outputs(plan.task)


def backbone_bytes(backbone: Backbone) -> int:
    """Return the size of the backbone's tensors, buffers included."""
    return sum(tensor.nbytes for tensor in backbone_state(backbone).values())


def full_model_bytes(backbone: Backbone, outputs: int) -> int:
    """Return what full fine-tuning would send each way: all parameters of the backbone and a head,
    no buffers.
    """
    head = 4 * outputs * (backbone.features + 1)
    return head + count_plain_bytes(backbone.net)
