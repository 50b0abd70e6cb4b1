"""What attacks and audits find, beside guessing and beside the ε that is stated, on real chest
X-rays: two tables.

    .venv/bin/python -m fedgraft.simulations.benchmarks.leaks              # ten minutes at most on
    two cores .venv/bin/python -m fedgraft.simulations.benchmarks.leaks --minutes 3  # what is not
    finished by then is said to be missing

Audits   500 canaries beside about a hundred X-rays of one hospital (Steinke, Nasr and Jagielski
         2023): the lower bound on ε that they prove, for a mechanism as it is and for three that
         are broken. Broken by what the step is told, so that the plan states its ε all the same: no
         noise; a tenth of it; a clipping norm that nothing reaches, with the noise that it had. In
         the tests the code itself is broken.
Attacks  against a plan made to leak: 48 X-rays at two hospitals, 30 % of their labels wrong,
         everything trained 75 times over them at 8 × 8 pixels; and against the head trained on the
         same X-rays under ε = 1. Images are rebuilt from one record's gradient, at three sizes.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.client.privacy.dp_sgd import Mechanism, mechanism_for
from fedgraft.common.model.assembly import plan_backbone, plan_model
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.simulations.attacks import ATTACKS
from fedgraft.simulations.attacks.canaries import CANARIES, canary_scores
from fedgraft.simulations.attacks.empirical_epsilon import Audit, audit
from fedgraft.simulations.attacks.target import node_data
from fedgraft.simulations.engines.engine import nodes_on_disk, simulate

XRAYS, WEIGHTS = (
    "../shared/data/pneumoniamnist.npz",
    "../shared/data/weights/cifar10_resnet20.safetensors",
)
LEAKING = f"""
name: xrays
task: {{kind: image-classification, classes: [normal, pneumonia]}}
backbone: {{name: cifar-resnet20, weights: {WEIGHTS}, image_size: 8}}
adapter: {{method: full}}
train: {{rounds: 3, local_epochs: 25, batch_size: 24, optimizer: {{name: adamw, lr: 1.0e-3}}}}
evaluate: {{every: 100}}
seed: 3
simulation: {{nodes: 2, data: xrays.npz, partition: {{kind: iid}}}}
"""
PRIVATE = (
    "adapter.method=head",
    "train.optimizer.lr=0.01",
    "train.local_epochs=5",
    "privacy={mode: sample, target_epsilon: 1, delta: 1.0e-3}",
)
AUDITED = f"""
name: audited
task: {{kind: image-classification, classes: [normal, pneumonia]}}
backbone: {{name: cifar-resnet20, weights: {WEIGHTS}, image_size: 8}}
adapter: {{method: head}}
train: {{rounds: 2, local_epochs: 5, batch_size: 100, optimizer: {{name: adamw, lr: 1.0e-2}}}}
privacy: {{mode: sample, target_epsilon: 2, delta: 1.0e-5}}
simulation: {{nodes: 24, data: {XRAYS}, partition: {{kind: iid}}}}
"""
EPSILONS = (1.0, 2.0, 4.0, 8.0)
AUDITS = 20  # of each mechanism as it is; one of each that is broken
SIZES = (8, 12, 28)  # pixels
BROKEN: Mapping[str, Callable[[Mechanism], Mechanism]] = {
    "noise off": lambda right: replace(right, noise_multiplier=0.0),
    "a tenth of the noise": lambda right: replace(
        right, noise_multiplier=right.noise_multiplier / 10
    ),
    "clipping off": lambda right: replace(
        right,
        noise_multiplier=right.noise_multiplier / 1e6,
        max_grad_norm=right.max_grad_norm * 1e6,
    ),
}


# ── audits ────────────────────────────────────────────────────────────────────────────────────────
def audited(epsilon: float | None, broken: str, seed: int) -> Audit:
    """One audit of the mechanism that states this ε (None: no privacy), perhaps broken."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.yaml"
        path.write_text(AUDITED)
        plan = load_plan(
            path, [f"privacy.target_epsilon={epsilon}"] if epsilon else ["privacy={mode: none}"]
        )
        backbone = plan_backbone(plan, path.parent)
        with nodes_on_disk(plan, path) as nodes:
            split = node_data(plan, nodes[:1], backbone.preprocess)[0][0].train
            mechanism = mechanism_for(plan, 100) if epsilon else None
            if mechanism and broken:
                mechanism = BROKEN[broken](mechanism)
            coins = np.random.default_rng([seed, 99]).random(CANARIES) < 0.5
            scores = canary_scores(
                plan, plan_model(backbone, plan), split, coins, mechanism=mechanism, seed=seed
            )
    return audit(scores, coins, delta=plan.privacy.delta or 0.0)


# ── attacks ───────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Finished:
    """A finished run, as an attack takes it."""

    plan: Plan
    run: Path
    nodes: list[Path]

    def attacked(self, name: str) -> dict[str, Any]:
        """What an attack finds."""
        return ATTACKS[name](self.plan, self.run, self.nodes, 0)


def few_xrays(path: Path, members: int, others: int, wrong: float) -> None:
    """A cut of the real training split in which a share of the labels is wrong, as in records coded
    in a hurry.

    Wrong labels cannot be learnt but by heart. Raises `UserError` where the X-rays are not there.
    """
    rng, real = np.random.default_rng(0), np.load(resolve(XRAYS, None))
    order = rng.permutation(len(real["train_labels"]))
    labels = real["train_labels"].ravel() ^ (rng.random(len(order)) < wrong)
    mine, rest, test = (
        order[:members],
        order[members : members + others],
        np.arange(members + others, len(order))[:20],
    )
    arrays = {}
    for name, rows in (("train", mine), ("val", rest), ("test", order[test])):
        arrays |= {f"{name}_images": real["train_images"][rows], f"{name}_labels": labels[rows]}
    np.savez(path, **arrays)


@contextmanager
def finished(folder: Path, overrides: Sequence[str] = (), members: int = 48) -> Iterator[Finished]:
    """A run of the leaking plan, or of what the overrides make of it, and its nodes."""
    few_xrays(folder / "xrays.npz", members=members, others=400, wrong=0.3)
    path = folder / "plan.yaml"
    path.write_text(LEAKING)
    plan = load_plan(path, overrides)
    with nodes_on_disk(plan, path) as nodes:
        simulate(plan, path, folder / "run", nodes=nodes)
        yield Finished(plan, folder / "run", nodes)


def attacked(name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """One attack on one run of its own."""
    with tempfile.TemporaryDirectory() as folder, finished(Path(folder), overrides) as cell:
        return cell.attacked(name)


def of_size(size: int, private: bool) -> tuple[str, ...]:
    """What makes a run whose gradients are inverted: at the model that every node starts from, so
    training is short.
    """
    short = ("train.rounds=1", "train.local_epochs=1")
    return (f"backbone.image_size={size}", *(PRIVATE if private else short))


# ── both, within a time ───────────────────────────────────────────────────────────────────────────
Task = tuple[Callable[..., Any], tuple[Any, ...]]


def tasks() -> list[Task]:
    """All that is run, what takes longest first."""
    found: list[Task] = [(attacked, ("lira", plan)) for plan in ((), PRIVATE)]
    found += [
        (attacked, ("inversion", of_size(size, private)))
        for size in reversed(SIZES)
        for private in (False, True)
    ]
    found += [
        (audited, (epsilon, "", seed)) for epsilon in (None, *EPSILONS) for seed in range(AUDITS)
    ]
    found += [(audited, (epsilon, broken, 0)) for epsilon in EPSILONS for broken in BROKEN]
    return found + [
        (attacked, (name, plan)) for name in ("loss-threshold", "labels") for plan in ((), PRIVATE)
    ]


def run(wanted: Sequence[Task], seconds: float, workers: int) -> dict[Task, Any]:
    """What each task returned; those that are not finished in time are not in it."""
    until = time.monotonic() + seconds
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread
    )
    futures: dict[Future[Any], Task] = {
        pool.submit(make, *given): (make, given) for make, given in wanted
    }
    done, late = wait(futures, timeout=max(0.0, until - time.monotonic()))
    pool.shutdown(wait=False, cancel_futures=True)
    if late:
        for process in multiprocessing.active_children():
            process.terminate()
    return {futures[each]: each.result() for each in done}


def _one_thread() -> None:
    import logging

    import torch

    torch.set_num_threads(1)
    logging.getLogger("fedgraft").setLevel(logging.ERROR)


# ── tables ────────────────────────────────────────────────────────────────────────────────────────
def audits_table(found: Mapping[Task, Any]) -> str:
    """Lower bounds on ε: of the mechanism as it is, and broken; in bold what refutes the stated
    ε.
    """
    lines = [
        f"| stated ε | as it is: median of {AUDITS} audits (least–most) | {' | '.join(BROKEN)} |",
        "|---|---:" + "|---:" * len(BROKEN) + "|",
    ]
    for epsilon in (None, *EPSILONS):
        right = [found.get((audited, (epsilon, "", seed))) for seed in range(AUDITS)]
        cells = [_middle([each.epsilon for each in right if each], epsilon)]
        for broken in BROKEN:
            cells.append(
                _bound(found.get((audited, (epsilon, broken, 0))), epsilon) if epsilon else "–"
            )
        lines.append(f"| {f'{epsilon:g}' if epsilon else 'none'} | {' | '.join(cells)} |")
    most = max((each.ceiling for (make, _), each in found.items() if make is audited), default=0.0)
    return (
        "\n".join(lines)
        + f"\n\nAt most {most:.2f} can be proved with {CANARIES} canaries, at 95 % confidence."
    )


def _middle(proved: Sequence[float], stated: float | None) -> str:
    if len(proved) < AUDITS:
        return "not finished"
    above = sum(each > stated for each in proved) if stated else 0
    said = f"{np.median(proved):.2f} ({min(proved):.2f}–{max(proved):.2f})"
    return f"{said}, **{above} above**" if above else said


def _bound(found: Audit | None, stated: float | None) -> str:
    if found is None:
        return "not finished"
    return (
        f"**{found.epsilon:.2f}**" if stated and found.epsilon > stated else f"{found.epsilon:.2f}"
    )


def attacks_table(found: Mapping[Task, Any]) -> str:
    """What each attack finds on both plans, and what guessing finds."""
    lines = ["| attack | measure | made to leak | ε = 1 | guessing |", "|---|---|---:|---:|---:|"]
    for attack in ("loss-threshold", "lira"):
        both = [found.get((attacked, (attack, plan))) for plan in ((), PRIVATE)]
        for view in ("shared model", "node updates"):
            seen = [each and each["views"][view] for each in both]
            areas = [
                _with(each["auc"], each["auc_interval"]) if each else "not finished"
                for each in seen
            ]
            hits = [
                f"{100 * each['tpr']['0.01']:.0f} %" if each else "not finished" for each in seen
            ]
            lines.append(f"| {attack}, {view} | AUC | {' | '.join(areas)} | 0.5 |")
            lines.append(f"| | hits at 1 % false alarms | {' | '.join(hits)} | 1 % |")
    both = [found.get((attacked, ("labels", plan))) for plan in ((), PRIVATE)]
    for key, what in (
        ("single", "label of one record named"),
        ("counts", "labels of eight records counted"),
    ):
        cells = [f"{each[key]:.2f}" if each else "not finished" for each in both]
        chance = next((f"{each[f'{key}_chance']:.2f}" for each in both if each), "–")
        lines.append(f"| labels | {what} | {' | '.join(cells)} | {chance} |")
    for size in SIZES:
        both = [
            found.get((attacked, ("inversion", of_size(size, private))))
            for private in (False, True)
        ]
        cells = [
            f"{each['ssim']:.2f} ({each['better']} of {each['images']})" if each else "not finished"
            for each in both
        ]
        mean = next((f"{each['ssim_mean']:.2f}" for each in both if each), "–")
        lines.append(
            f"| image rebuilt, {size} × {size} | SSIM (closer than the mean image) |"
            f" {' | '.join(cells)} | {mean} |"
        )
    return "\n".join(lines)


def _with(value: float, interval: Sequence[float]) -> str:
    return f"{value:.2f} ({interval[0]:.2f}–{interval[1]:.2f})"


def main() -> None:
    """Run everything that the time allows and print both tables in Markdown."""
    parser = ArgumentParser(
        prog="python -m fedgraft.simulations.benchmarks.leaks",
        description=(__doc__ or "").splitlines()[0],
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="after which nothing more is waited for"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="processes at once, of one thread each"
    )
    asked = parser.parse_args()
    found = run(tasks(), 60 * asked.minutes, asked.workers)
    print(audits_table(found), attacks_table(found), sep="\n\n", flush=True)


if __name__ == "__main__":
    main()
