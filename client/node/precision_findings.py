"""What a preflight finds about a plan in bfloat16, how fast this machine is at it; and about one
whose weights are quantized, whether this machine can make them.

A processor without units for bfloat16 computes it in pieces, up to eight times slower than float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor

from fedgraft.client.node.finding import Finding, ok, skipped, wrong
from fedgraft.client.node.node_file import Node
from fedgraft.client.store.activations import BLOCK
from fedgraft.common.backbones import family_line
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.backbones.quantization import check_installed
from fedgraft.common.errors import UserError
from fedgraft.common.inputs import INPUTS
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.model.assembly import plan_model, shape_options
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.instructions import name_instructions
from fedgraft.common.plan.plan import Plan

WHAT = "bfloat16"
# of each precision, after one that warms up
RUNS = 3
# times as fast as float32
LEAST_SPEED = 1.0


def check_precision(node: Node, plan: Plan) -> Iterator[Finding]:
    """Give how fast the plan's frozen part is here in bfloat16, beside float32; nothing for a plan
    in float32.
    """
    if plan.backbone.precision != "bfloat16":
        return
    name = plan.backbone.name
    if family_line(name).described_by_weights:
        yield skipped(WHAT, f"not timed: {name} is described by its weights, which come later")
        return
    try:
        backbone = load_backbone(name, **shape_options(plan))
        speed = measure_speed(backbone, plan, node.threads)
    except UserError as error:
        yield wrong(WHAT, error.what, error.remedy)
        return
    level = name_instructions()
    detail = f"{speed:.1f} times as fast as float32 here, with {level} instructions"
    if speed >= LEAST_SPEED or node.slow_bfloat16:
        yield ok(WHAT, detail)
        return
    remedy = (
        "ask for the plan in float32, or write `slow_bfloat16: true` in the node's file: it works,"
        " and takes longer"
    )
    yield wrong(WHAT, detail, remedy)


def check_quantization(plan: Plan) -> Iterator[Finding]:
    """Give whether this machine has what the plan's weights are made with; nothing for a plan that
    does not quantize.
    """
    kind = plan.backbone.quantization
    if kind is None:
        return
    try:
        check_installed(kind)
    except UserError as error:
        yield wrong("quantization", error.what, error.remedy)
        return
    yield ok("quantization", f"weights of the frozen part in {kind}: this machine can make them")


def measure_speed(backbone: Backbone, plan: Plan, threads: int) -> float:
    """Return how many times as fast as in float32 a plan's frozen part is in bfloat16, on made-up
    records: medians of `RUNS`.

    Raises:
        UserError: nothing is frozen in front of what the plan trains.
    """
    example = INPUTS[plan.task.material].example(backbone.preprocess, plan.backbone, plan.task)
    probes = draw_probes(plan.task.material, backbone.preprocess, example, BLOCK).joined
    seconds: list[float] = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for precision in ("bfloat16", "float32"):
            section = plan.backbone.model_copy(update={"precision": precision})
            model = plan_model(backbone, plan.model_copy(update={"backbone": section}))
            prefix = frozen_prefix(model)
            if prefix is None:
                raise UserError("nothing is frozen in front of what is trained")
            seconds.append(_time(prefix, probes))
    finally:
        torch.set_num_threads(before)
    rounded, exact = seconds
    return exact / rounded


def _time(run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return the median seconds of a call, after one that warms up."""
    run(x)
    taken: list[float] = []
    for _ in range(RUNS):
        started = time.perf_counter()
        run(x)
        taken.append(time.perf_counter() - started)
    return median(taken)
