"""What one step costs: full forward, behind the frozen prefix, private, and full fine-tuning, side
by side.

    python -m fedgraft.simulations.benchmarks.steps [--repeats 15]

Every row's variants take turns in one process on one thread, so that what the machine does
meanwhile hits all of them; figures are medians of processor time in milliseconds for a batch of 32:
forward, backward and optimizer. Random weights and random images: only time is measured here.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.privacy import dp_sgd
from fedgraft.client.privacy.clipping_engine import ClippingEngine, Losses
from fedgraft.client.privacy.dp_sgd import PrivateTraining, make_private
from fedgraft.client.privacy.lots import draw_lots
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.privacy.opacus_hooks import OpacusHooks
from fedgraft.client.training.optimizers import new_optimizer
from fedgraft.common.adapters.fused import fuse
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import GraftedModel, graft
from fedgraft.common.plan.train_section import OptimizerSection
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.tasks.classification import cross_entropies
from fedgraft.simulations.benchmarks.result_files import ResultTable, record

BATCH = 32
ADAMW = OptimizerSection(name="adamw")
RATE = 1e-3
MECHANISM = Mechanism(1.0, 0.1, 1, BATCH, 1.0)
# with the mechanism's sample rate a lot is a batch
UNITS = 10 * BATCH
# name and side of its inputs, pixels
NETWORKS = {"cifar-resnet20": 32, "resnet18": 64}
ADAPTERS = (
    ("full", "auto"),
    ("head", "auto"),
    ("lora", "last-block"),
    ("lora", "auto"),
    ("bottleneck", "last-block"),
    ("bottleneck", "auto"),
    ("bias", "auto"),
)
HEAD = ("network", "adapter", "whole", "cut", "dp", "hooks", "cut ÷ full", "dp ÷ cut")
# a step that is this quick, in seconds, is repeated within a turn
QUICK = 0.01
MOST_REPEATS = 50

Step = Callable[[], object]


def main() -> None:
    """Print the table and record it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    python = sys.version.split()[0]
    print(f"torch {torch.__version__}, python {python}, one thread, batch {BATCH}, ms (median)")
    table = ResultTable(HEAD, words=(0, 1))
    table.print_head()
    for name in NETWORKS:
        if name in options.networks:
            measure_network(name, options.repeats, table)
    record("steps", "steps", table, packages=("torch", "opacus"))


def measure_network(name: str, repeats: int, table: ResultTable) -> None:
    """Add one network's rows to the table."""
    size = NETWORKS[name]
    backbone = load_backbone(name, image_size=size)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, size, size, generator=generator)
    labels = torch.randint(0, 2, (BATCH,), generator=generator)
    full = 0.0
    for method, targets in ADAPTERS:
        model = graft(backbone, method=method, classes=2, targets=targets)
        # models stay wrapped while their steps are taken
        with contextlib.ExitStack() as wrappings:
            steps = make_steps(model, images, labels, wrappings)
            medians = take_turns(steps, repeats)
        full = full or medians["whole"]
        table.add(name, f"{method} {targets}", *show_medians(medians, full))
        table.print_last()


def show_medians(medians: Mapping[str, float], full: float) -> list[str]:
    """Return the cells after the adapter; `full` is what a step of full fine-tuning takes."""
    cells = []
    for variant in ("whole", "cut", "dp", "hooks"):
        cells.append(f"{medians[variant]:.2f}" if variant in medians else "–")
    cut = medians.get("cut", medians["whole"])
    cells.append(f"{cut / full:.2f}")
    cells.append(f"{medians['dp'] / cut:.2f}" if "dp" in medians else "–")
    return cells


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────
def make_steps(
    model: GraftedModel, images: Tensor, labels: Tensor, wrappings: contextlib.ExitStack
) -> dict[str, Step]:
    """Return the same step in every way that it can be taken; each has a model of its own."""
    plain = copy.deepcopy(model)
    fuse(plain.net)
    steps: dict[str, Step] = {"whole": make_plain_step(plain, images, labels)}
    prefix = frozen_prefix(model)
    inputs = images
    if prefix is not None:
        inputs = prefix(images)
        behind = frozen_prefix(plain)
        assert behind is not None
        steps["cut"] = make_plain_step(behind.tail, inputs, labels)
    if model.method == "full":
        return steps

    for variant, ours in (("dp", True), ("hooks", False)):
        private = copy.deepcopy(model)
        tail = frozen_prefix(private)
        if tail is not None:
            private = tail.tail
        steps[variant] = make_private_step(private, inputs, labels, ours, wrappings)
    return steps


def make_plain_step(model: GraftedModel, inputs: Tensor, labels: Tensor) -> Step:
    """Return a step: forward, backward, AdamW."""
    optimizer = new_optimizer(model.trainable_parameters().values(), ADAMW, RATE)

    def step() -> None:
        loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def make_private_step(
    model: GraftedModel,
    inputs: Tensor,
    labels: Tensor,
    ours: bool,
    wrappings: contextlib.ExitStack,
) -> Step:
    """Return the same under DP-SGD, its lot and noise drawn as in a round: by our own engines, or
    with Opacus's hooks.
    """
    optimizer = new_optimizer(model.trainable_parameters().values(), ADAMW, RATE)
    training = PrivateTraining(MECHANISM, cross_entropies)
    randomness = Randomness()
    before = dp_sgd.attach_engine
    dp_sgd.attach_engine = before if ours else attach_opacus
    private = wrappings.enter_context(make_private(model, optimizer, training, randomness))
    dp_sgd.attach_engine = before
    endless = replace(MECHANISM, steps=sys.maxsize)
    lots = draw_lots(endless, UNITS, private.values, randomness)
    return lambda: private.step(inputs, labels, noise=next(lots).noise)


def attach_opacus(model: GraftedModel, losses: Losses, mechanism: Mechanism) -> ClippingEngine:
    """Attach Opacus's hooks, whatever the model."""
    return OpacusHooks(model, losses, mechanism.max_grad_norm)


# ── time ──────────────────────────────────────────────────────────────────────────────────────────
def take_turns(steps: Mapping[str, Step], repeats: int) -> dict[str, float]:
    """Return the milliseconds of each, taken in turns, after two to warm up; quick ones are
    repeated within a turn.
    """
    often = {}
    times: dict[str, list[float]] = {}
    for name, step in steps.items():
        step()
        seconds = _processor_seconds(step, 1)
        often[name] = max(1, min(MOST_REPEATS, int(QUICK / seconds)))
        times[name] = []
    for _ in range(repeats):
        for name, step in steps.items():
            seconds = _processor_seconds(step, often[name])
            times[name].append(1000 * seconds / often[name])
    return {name: statistics.median(taken) for name, taken in times.items()}


def _processor_seconds(step: Step, times: int) -> float:
    started = time.process_time()
    for _ in range(times):
        step()
    return time.process_time() - started


if __name__ == "__main__":
    main()
