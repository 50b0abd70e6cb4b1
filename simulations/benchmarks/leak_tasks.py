"""Audits and attacks as tasks: each a record that runs by itself, in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedgraft.client.privacy.mechanism import Mechanism, calibrate
from fedgraft.common.model.assembly import plan_backbone, plan_model
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.simulations.attacks.canaries import CANARIES, score_canaries
from fedgraft.simulations.attacks.empirical_epsilon import Audit, audit_guesses
from fedgraft.simulations.attacks.target import open_nodes
from fedgraft.simulations.benchmarks.planted_runs import (
    PRIVATE,
    WEIGHTS,
    XRAYS,
    choose_settings,
    finish_run,
)
from fedgraft.simulations.engines.engine import nodes_on_disk

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
# of each mechanism as it is; one of each that is broken
AUDITS = 20
# side of the images that are rebuilt, pixels
SIZES = (8, 12, 28)
# the plan made to leak, and the head under ε = 1
PLANS: tuple[tuple[str, ...], ...] = ((), PRIVATE)


# ── mechanisms broken in one thing ────────────────────────────────────────────────────────────────
def remove_noise(right: Mechanism) -> Mechanism:
    """Return the mechanism without its noise."""
    return replace(right, noise_multiplier=0.0)


def weaken_noise(right: Mechanism) -> Mechanism:
    """Return the mechanism with a tenth of its noise."""
    return replace(right, noise_multiplier=right.noise_multiplier / 10)


def remove_clipping(right: Mechanism) -> Mechanism:
    """Return the mechanism with a norm that nothing reaches, and the noise that it had."""
    return replace(
        right,
        noise_multiplier=right.noise_multiplier / 1e6,
        max_grad_norm=right.max_grad_norm * 1e6,
    )


BROKEN: Mapping[str, Callable[[Mechanism], Mechanism]] = {
    "noise off": remove_noise,
    "a tenth of the noise": weaken_noise,
    "clipping off": remove_clipping,
}


# ── tasks ─────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class AuditTask:
    """One audit of the mechanism that states this ε (None: no privacy), perhaps broken."""

    epsilon: float | None
    broken: str = ""
    seed: int = 0

    def run(self) -> Audit:
        """Return what 500 canaries prove."""
        privacy = "privacy={mode: none}"
        if self.epsilon:
            privacy = f"privacy.target_epsilon={self.epsilon}"
        with tempfile.TemporaryDirectory() as folder:
            plan_file = Path(folder) / "plan.yaml"
            plan_file.write_text(AUDITED)
            plan = load_plan(plan_file, [privacy])
            backbone = plan_backbone(plan, plan_file.parent)
            with nodes_on_disk(plan, plan_file) as nodes:
                (hospital,), _ = open_nodes(plan, nodes[:1], backbone.preprocess)
                coins = np.random.default_rng([self.seed, 99]).random(CANARIES) < 0.5
                scores = score_canaries(
                    plan,
                    plan_model(backbone, plan),
                    hospital.train,
                    coins,
                    mechanism=self._mechanism(calibrate(plan, 100)) if self.epsilon else None,
                    seed=self.seed,
                )
        return audit_guesses(scores, coins, delta=plan.privacy.delta or 0.0)

    def _mechanism(self, right: Mechanism) -> Mechanism:
        if not self.broken:
            return right
        return BROKEN[self.broken](right)


@dataclass(frozen=True)
class AttackTask:
    """One attack on one run of its own."""

    attack: str
    overrides: tuple[str, ...] = ()

    def run(self) -> dict[str, Any]:
        """Return what the attack measures."""
        with (
            tempfile.TemporaryDirectory() as folder,
            finish_run(Path(folder), self.overrides) as finished,
        ):
            return finished.attack(self.attack)


Task = AuditTask | AttackTask
Measured = Mapping[Task, Any]


def list_tasks() -> list[Task]:
    """Return all that is run, what takes longest first."""
    tasks: list[Task] = [AttackTask("lira", plan) for plan in PLANS]
    for size in reversed(SIZES):
        tasks += list_inversions(size)
    for epsilon in (None, *EPSILONS):
        tasks += list_audits(epsilon)
    for epsilon in EPSILONS:
        tasks += [AuditTask(epsilon, broken) for broken in BROKEN]
    for attack in ("loss-threshold", "labels"):
        tasks += [AttackTask(attack, plan) for plan in PLANS]
    return tasks


def list_inversions(size: int) -> list[AttackTask]:
    """Return the inversions of images of one size, without privacy and with it."""
    plain = choose_settings(size, private=False)
    private = choose_settings(size, private=True)
    return [AttackTask("inversion", plain), AttackTask("inversion", private)]


def list_audits(epsilon: float | None) -> list[AuditTask]:
    """Return the audits of one mechanism as it is."""
    return [AuditTask(epsilon, seed=seed) for seed in range(AUDITS)]


# ── within a time ─────────────────────────────────────────────────────────────────────────────────
def run_tasks(tasks: Sequence[Task], seconds: float, workers: int) -> Measured:
    """Return what each task measured; those that are not finished in time are not in it."""
    deadline = time.monotonic() + seconds
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_use_one_thread
    )
    futures: dict[Future[Any], Task] = {pool.submit(task.run): task for task in tasks}
    done, late = wait(futures, timeout=max(0.0, deadline - time.monotonic()))
    pool.shutdown(wait=False, cancel_futures=True)
    if late:
        for process in multiprocessing.active_children():
            process.terminate()
    return {futures[future]: future.result() for future in done}


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    logging.getLogger("fedgraft").setLevel(logging.ERROR)
