"""`fedgraft validate`: whether a plan can be run here, by trying its network, its adapter, its data
and one batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from fedgraft.client.node.finding import Finding, ok, skipped, wrong
from fedgraft.client.node_task import open_splits, working_model
from fedgraft.client.step_memory import count_step
from fedgraft.client.training.local_steps import loss_of
from fedgraft.common.backbones import family_line
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.errors import UserError
from fedgraft.common.inputs import INPUTS
from fedgraft.common.inputs.material import hash_preparation
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.model.assembly import check_scales, plan_backbone
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.phases import rounds_for
from fedgraft.common.plan.plan import Plan
from fedgraft.common.tasks import TASKS
from fedgraft.server.papers.result_builder import peak_rss
from fedgraft.simulations.data_facts import NodeCounts, count_nodes
from fedgraft.simulations.engines.engine import nodes_on_disk
from fedgraft.simulations.engines.simulated_node import load_simulated_node
from fedgraft.simulations.readable import show_bytes

NO_DATA = "the plan has no `simulation`; `fedgraft node check` reads what a hospital has"


def try_plan(plan: Plan, path: Path) -> Iterator[Finding]:
    """Yield what is found, one thing after another.

    Args:
        path: the plan's file; data and weights are looked up beside it.
    """
    backbone, found = _open_backbone(plan, path)
    yield found
    model = None
    if backbone is not None:
        model, found = _graft(plan, backbone)
        yield found
        if model is not None and rounds_for(plan.train, "steps"):
            yield _count_memory(plan, backbone, model)
    if plan.simulation is None:
        yield skipped("data", NO_DATA)
        return
    try:
        with nodes_on_disk(plan, path) as nodes:
            counts = count_nodes(plan, nodes)
            yield ok("data", _describe_data(plan, counts))
            if backbone is not None and model is not None:
                sizes = [sum(each.train) for each in counts]
                largest = sizes.index(max(sizes))
                yield _try_batch(plan, backbone, model, nodes[largest], sizes[largest])
    except UserError as error:
        yield _explain("data", error)


def _open_backbone(plan: Plan, path: Path) -> tuple[Backbone | None, Finding]:
    """Return the plan's backbone; of one whose weights `fedgraft pretrain` has yet to make, the
    same network with random values.
    """
    try:
        check_scales(plan)
        backbone = plan_backbone(plan, path.parent)
    except UserError as error:
        if plan.pretrain is None or not _is_missing(plan, path):
            return None, _explain("backbone", error)
        if family_line(plan.backbone.name).has_folders:
            return None, skipped("backbone", f"its weights are not there yet; {error.remedy}")
        random = plan.backbone.model_copy(update={"random": True, "weights": None})
        backbone = plan_backbone(plan.model_copy(update={"backbone": random}), path.parent)
        return backbone, skipped("backbone", f"its weights are not there yet; {error.remedy}")
    weights = plan.backbone.weights or "values drawn or learnt here"
    prepared = hash_preparation(backbone.preprocess)
    return backbone, ok("backbone", f"{backbone.name}, {weights}; preparation {prepared}")


def _is_missing(plan: Plan, path: Path) -> bool:
    """Whether the file of a plan's weights is nowhere."""
    try:
        return not resolve(plan.backbone.weights_file or "", path.parent).exists()
    except UserError:
        return True


def _graft(plan: Plan, backbone: Backbone) -> tuple[GraftedModel | None, Finding]:
    """Return the model that a node trains in the first round."""
    try:
        model = working_model(backbone, plan, 1)
    except UserError as error:
        return None, _explain("adapter", error)
    state = model.adapter_state()
    values = sum(tensor.numel() for tensor in state.values())
    return model, ok("adapter", f"{plan.adapter.method}, {values:,} values in {len(state)} tensors")


def _count_memory(plan: Plan, backbone: Backbone, model: GraftedModel) -> Finding:
    """Return what memory a step needs at a node, before one is taken."""
    example = INPUTS[plan.task.material].example(backbone.preprocess, plan.backbone, plan.task)
    count = plan.train.batch_size
    inputs = draw_probes(plan.task.material, backbone.preprocess, example, count)
    try:
        memory = count_step(model, plan, inputs)
    except (NotImplementedError, RuntimeError):
        return skipped("memory", "a step of this network cannot be walked without values")
    beside = max(memory.frozen_pass, memory.step)
    return ok(
        "memory",
        f"{show_bytes(memory.in_all)} for a step of {count} records:"
        f" weights {show_bytes(memory.weights)}, what is trained {show_bytes(memory.trained)},"
        f" made on the way {show_bytes(beside)}",
    )


def _describe_data(plan: Plan, counts: list[NodeCounts]) -> str:
    names = TASKS[plan.task.question].counted(plan.task)
    classes = []
    for number, name in enumerate(names):
        total = sum(node.train[number] for node in counts)
        classes.append(f"{name} {total:,}")
    tests = sum(node.tests for node in counts)
    return f"{len(counts)} nodes; training records: {', '.join(classes)}; {tests:,} test records"


def _try_batch(
    plan: Plan, backbone: Backbone, model: GraftedModel, node: Path, records: int
) -> Finding:
    """Return what one batch takes at the largest node, and from it a round of steps there."""
    train, _ = open_splits(load_simulated_node(node), plan, backbone.preprocess)
    count = min(plan.train.batch_size, len(train))
    positions = torch.arange(count)
    torch.set_num_threads(plan.train.threads)
    seconds = []
    # the first one also warms up
    for _ in range(2):
        started = time.perf_counter()
        outputs = model(train.inputs(positions))
        loss_of(plan, train.labels)(outputs, train.labels[positions]).backward()
        seconds.append(time.perf_counter() - started)
    said = f"{count} records in {min(seconds):.2f} s; {show_bytes(peak_rss())} of memory"
    if rounds_for(plan.train, "steps"):
        seen = records * plan.train.local_epochs
        if plan.train.local_steps is not None:
            seen = plan.train.batch_size * plan.train.local_steps
        whole = min(seconds) * seen / count
        said += (
            f"; a round at the largest node ({records:,} records) {whole:.0f} s at most: what stays"
            " the same is computed once"
        )
    return ok("one batch", said)


def _explain(what: str, error: UserError) -> Finding:
    detail = f"{error.where}: {error.what}" if error.where else error.what
    return wrong(what, detail, error.remedy)
