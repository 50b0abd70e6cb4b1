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
from collections.abc import Callable

import torch
import torch.nn.functional as F

from fedgraft.client.privacy import dp_sgd as privacy
from fedgraft.client.privacy.dp_sgd import Mechanism, Randomness, wrapped
from fedgraft.client.training.optimizers import new_optimizer
from fedgraft.common.adapters.fused import fuse
from fedgraft.common.backbones.backbone import load_backbone
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import GraftedModel, graft
from fedgraft.common.plan.train_section import OptimizerSection

BATCH = 32
ADAMW = OptimizerSection(name="adamw")
NETWORKS = (("cifar-resnet20", 32), ("resnet18", 64))
ADAPTERS = (
    ("full", "auto"),
    ("head", "auto"),
    ("lora", "last-block"),
    ("lora", "auto"),
    ("bottleneck", "last-block"),
    ("bottleneck", "auto"),
    ("bias", "auto"),
)
Step = Callable[[], object]
_open = contextlib.ExitStack()  # models stay wrapped while their steps are taken


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--networks", nargs="*", default=[name for name, _ in NETWORKS])
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, python {sys.version.split()[0]}, one thread, batch {BATCH}, ms"
        " (median)"
    )
    print(
        f"{'network':15} {'adapter':21} {'whole':>7} {'cut':>7} {'dp':>7} {'hooks':>7} |"
        f" {'cut/full':>8} {'dp/cut':>7}"
    )
    for name, size in NETWORKS:
        if name in given.networks:
            rows(name, size, given.repeats)


def rows(name: str, size: int, repeats: int) -> None:
    """One network's part of the table."""
    backbone = load_backbone(name, image_size=size)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, size, size, generator=generator)
    labels = torch.randint(0, 2, (BATCH,), generator=generator)
    full = 0.0
    for method, targets in ADAPTERS:
        model = graft(backbone, method=method, classes=2, targets=targets)
        steps = variants(model, images, labels)
        with _open:
            found = medians(steps, repeats)
        cut = found.get("cut", found["whole"])
        full = full or found["whole"]
        dp = f"{found['dp'] / cut:7.2f}" if "dp" in found else f"{'':7}"
        columns = " ".join(
            f"{found[key]:7.2f}" if key in found else f"{'':7}"
            for key in ("whole", "cut", "dp", "hooks")
        )
        print(
            f"{name:15} {method + ' ' + targets:21} {columns} | {cut / full:8.2f} {dp}", flush=True
        )


def variants(model: GraftedModel, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Step]:
    """The same step in every way that it can be taken; each has a model of its own."""
    prefix = frozen_prefix(model)
    plain = copy.deepcopy(model)
    fuse(plain.net)
    steps: dict[str, Step] = {"whole": plain_step(plain, images, labels)}
    inputs = images
    if prefix is not None:
        inputs = prefix(images)
        behind = frozen_prefix(plain)
        assert behind is not None
        steps["cut"] = plain_step(behind.tail, inputs, labels)
    if model.method != "full":
        steps["dp"] = private_step(
            copy.deepcopy(model), inputs, labels, cut=prefix is not None, ours=True
        )
        steps["hooks"] = private_step(
            copy.deepcopy(model), inputs, labels, cut=prefix is not None, ours=False
        )
    return steps


def plain_step(model: GraftedModel, x: torch.Tensor, labels: torch.Tensor) -> Step:
    """Forward, backward, AdamW."""
    optimizer = new_optimizer(model.trainable_parameters().values(), ADAMW, 1e-3)

    def step() -> None:
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def private_step(
    model: GraftedModel, x: torch.Tensor, labels: torch.Tensor, *, cut: bool, ours: bool
) -> Step:
    """The same under DP-SGD: with the tape of `client/privacy/per_example.py`, or with Opacus's
    hooks.
    """
    if cut and (prefix := frozen_prefix(model)) is not None:
        model = prefix.tail
    optimizer = new_optimizer(model.trainable_parameters().values(), ADAMW, 1e-3)
    takes, privacy.takes = privacy.takes, lambda model: ours
    wrapping = wrapped(
        model, optimizer, Mechanism(1.0, 0.1, 1, BATCH, 1.0), randomness=Randomness()
    )
    private = _open.enter_context(wrapping)
    privacy.takes = takes
    return lambda: private.step(x, labels)


def medians(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Milliseconds of each, taken in turns, after two to warm up; quick ones are repeated within a
    turn.
    """
    often = {}
    for name, step in steps.items():
        step()
        clock = time.process_time()
        step()
        often[name] = max(1, min(50, int(0.01 / (time.process_time() - clock))))
    seen: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            clock = time.process_time()
            for _ in range(often[name]):
                step()
            seen[name].append(1000 * (time.process_time() - clock) / often[name])
    return {name: statistics.median(times) for name, times in seen.items()}


if __name__ == "__main__":
    main()
