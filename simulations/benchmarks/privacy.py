"""What sample-level privacy costs on `pneumonia`: accuracy and AUROC at ε ∈ {1, 3, 8, ∞}, and the time of a step.

    .venv/bin/python -m simulations.benchmarks.privacy           # the table: 12 federations
    .venv/bin/python -m simulations.benchmarks.privacy --steps   # the times alone, on a machine that is idle

Added biases, since noise grows with the number of values and they are the fewest; in the last block only, since what
lies before it is then computed once; a larger batch and learning rate than without noise; ten rounds. Each node's
noise is calibrated to its own data, so every node's ε is the target. The same settings without privacy give the row ∞;
the ready plan's own (LoRA everywhere) are better without noise.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from common.assembly import plan_backbone
from common.plan_file import find_plan, load_plan
from simulations.simulate import simulate_plan

SETTINGS = (
    "adapter.method=bias",
    "adapter.targets=last-block",
    "train.batch_size=128",
    "train.rounds=10",
    "train.optimizer.lr=0.03",
    "train.schedule=cosine",
)
EPSILONS = (1.0, 3.0, 8.0)
SEEDS = 3
STEPS = 12  # timed, after two that are not


def main() -> None:
    """Print both tables in Markdown."""
    if "--steps" not in sys.argv[1:]:
        _utility()
    _steps()


def _utility() -> None:
    print("| ε of every node (δ = 1e-5, example, PRV) | accuracy | AUROC | loss | largest ε counted |")
    print("|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for target in (*EPSILONS, None):
            private = () if target is None else ("privacy.mode=sample", f"privacy.target_epsilon={target:g}")
            ran = simulate_plan(
                "pneumonia",
                overrides=[*SETTINGS, *private],
                out=Path(folder) / f"{target}",
                seeds=SEEDS,
                quiet=True,
            )
            cells = [_spread(ran["seeds"], key) for key in ("accuracy", "auroc", "loss")]
            spent = [entry["epsilon"] for result in ran["seeds"] for entry in result["privacy"].values()]
            counted = f"{max(spent):.4f}" if spent else "–"
            print(f"| {'∞' if target is None else f'{target:g}'} | {' | '.join(cells)} | {counted} |", flush=True)


def _spread(results: list[dict[str, Any]], key: str) -> str:
    values = [result["final"]["global"][key] for result in results]
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def _steps() -> None:
    """One step on a batch of 32 X-rays, one thread, as a node takes it; the median, in milliseconds."""
    from client.privacy import Mechanism, wrapped
    from client.training import build_optimizer
    from client.workplace import working_model
    from common.randomness import Randomness

    torch.set_num_threads(1)
    images = torch.randn((32, 3, 28, 28), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(32) % 2
    print("\n| adapter, batch 32, one thread | plain, ms | DP, hooks, ms | DP, ghost, ms |\n|---|---:|---:|---:|")
    for method in ("head", "bias", "bottleneck", "lora"):
        cells = []
        for mode in ("", "hooks", "ghost"):
            private = (f"privacy={{mode: sample, noise_multiplier: 1.0, grad_sample_mode: {mode}}}",) if mode else ()
            plan = load_plan("pneumonia", [f"adapter.method={method}", *private])
            model = working_model(plan_backbone(plan, find_plan("pneumonia").parent), plan)
            optimizer = build_optimizer(model, plan.train.optimizer, 1e-3)
            took = []
            if mode:
                mechanism = Mechanism(1.0, 0.1, 1, 32.0, 1.0, "example", mode)
                with wrapped(model, optimizer, mechanism, randomness=Randomness()) as stepping:
                    for _ in range(STEPS + 2):
                        clock = time.perf_counter()
                        stepping.step(images, labels)
                        took.append(time.perf_counter() - clock)
            else:
                for _ in range(STEPS + 2):
                    clock = time.perf_counter()
                    optimizer.zero_grad(set_to_none=True)
                    F.cross_entropy(model(images), labels).backward()
                    optimizer.step()
                    took.append(time.perf_counter() - clock)
            cells.append(f"{1000 * float(np.median(took[2:])):.1f}")
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
