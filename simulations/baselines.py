"""What the shared model is measured against.

alone             each node trains by itself, for as many epochs, and is tested on all nodes'
                  test data
pooled            all data in one place: what privacy costs
head              the same federation, only a new classifier on the frozen backbone: what
                  adapters bring
full              the same federation, everything trained and sent: what adapters save
random-backbone   the same adapters on a backbone that learnt nothing: what the transfer brings
one-round         a head over features of all depths, solved from one exchange of sums: what
                  training by steps has to beat
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.examples import Examples
from fedgraft.client.histogram_round import count_split
from fedgraft.client.node_task import NodeTask, open_splits, open_validation, working_model
from fedgraft.client.round import measure, run_round
from fedgraft.client.store.activation_cache import open_cache
from fedgraft.client.sum_round import sum_split
from fedgraft.common.backbones import family_line, family_of
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch, concatenate
from fedgraft.common.model.assembly import bring_to, keep_adapters
from fedgraft.common.model.devices import find_device
from fedgraft.common.model.solve_head import solve_head
from fedgraft.common.plan.phases import counts_constants, has_depth_head, purpose_of
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.privacy_section import PrivacySection
from fedgraft.common.tasks import TASKS
from fedgraft.common.tasks.measures import Measure, main_measures
from fedgraft.simulations.engines.simulated_node import load_simulated_node

Metrics = dict[str, Any]

BASELINES = ("one-round", "alone", "pooled", "head", "full", "random-backbone")
# what of the plan is changed, where a baseline is a federation of its own
VARIANTS: dict[str, tuple[str, ...]] = {
    "head": (
        "adapter.method=head",
        "adapter.targets=auto",
        "aggregate.lora_aggregation=average",
    ),
    # without privacy: Opacus does not take networks with BatchNorm, and it is the upper mark
    "full": (
        "adapter.method=full",
        "backbone.precision=float32",
        "backbone.quantization=null",
        "adapter.targets=auto",
        "aggregate.lora_aggregation=average",
        "privacy.mode=none",
        "privacy.target_epsilon=null",
        "privacy.noise_multiplier=null",
        "privacy.delta=null",
        "privacy.grad_sample_mode=hooks",
    ),
    "random-backbone": ("backbone.random=true",),
    "one-round": (
        "adapter.method=head",
        "adapter.targets=auto",
        "aggregate.strategy=fedavg",
        "aggregate.weighting=examples",
        "aggregate.lora_aggregation=average",
        "aggregate.encoding=none",
        "train.method=closed-form",
        "train.start=drawn",
        "train.finish=steps",
        "train.rounds=1",
        "train.local_steps=null",
        "train.keep=last",
        "train.patience=null",
        "train.choose_by=loss",
        "train.augment=none",
        "task.prompts=null",
    ),
}


# the one round of a network that has no scales of its own: the columns themselves
COLUMNS = ("backbone.name=columns", "train.rounds=2")


def list_changes(name: str, plan: Plan) -> tuple[str, ...]:
    """Return what of a plan is changed for a baseline that is a federation of its own."""
    if name != "one-round":
        return VARIANTS[name]
    learns = family_line(plan.backbone.name).learns
    if counts_constants(plan.train, plan.privacy, learns=learns):
        return (*VARIANTS[name], "train.rounds=2")
    if plan.train.start == "standardise":
        return VARIANTS[name] + COLUMNS
    return VARIANTS[name]


def choose_baselines(text: str) -> tuple[str, ...]:
    """Return the names in `alone,head`, in the order of `BASELINES`; of `all`, or of `none`.

    Raises:
        UserError: any other name.
    """
    words = [word.strip() for word in text.split(",")]
    names = [word for word in words if word]
    if names == ["none"]:
        return ()
    if names == ["all"]:
        return BASELINES
    for name in names:
        if name not in BASELINES:
            remedy = f"write some of {', '.join(BASELINES)}; or all, or none"
            raise UserError(f"{name!r} is no baseline", where="--baselines", remedy=remedy)
    return tuple(name for name in BASELINES if name in names)


def default_baselines(plan: Plan) -> tuple[str, ...]:
    """Return what a run is measured against where nobody chose: the one round, where it is no more
    than an exchange of sums under the same ε.
    """
    closed = TASKS[plan.task.question].closed_form
    if closed is None or plan.train.method == "closed-form":
        return ()
    privacy = plan.privacy
    if privacy.mode == "none":
        return ("one-round",)
    is_comparable = privacy.mode == "sample" and privacy.target_epsilon is not None
    if is_comparable and closed.noisy is not None:
        return ("one-round",)
    return ()


# ── alone ─────────────────────────────────────────────────────────────────────────────────────────
def measure_alone(
    plan: Plan,
    backbone: Backbone,
    nodes: Sequence[Path],
    *,
    on_node: Callable[[], None] = lambda: None,
) -> Metrics:
    """Train every node by itself. Return the mean of the metrics over nodes, the best node, and
    each one's.

    Each model is tested on the test data of all nodes together, as the shared model is. The best is
    the best on all nodes' validation data where there are any, else on the tests.
    """
    plan = _drop_privacy(plan)
    measure, _ = main_measures(plan.task.question)
    tasks = _open_tasks(plan, backbone, nodes)
    tests = [task.test for task in tasks]
    validations = [task.validation for task in tasks if task.validation]

    def train_one(task: NodeTask) -> tuple[Metrics, Metrics]:
        trained, state = _train_alone(task, backbone)
        tested = _measure_on(trained, state, tests)
        if not validations:
            return tested, tested
        return tested, _measure_on(trained, state, validations)

    by_node: dict[str, Metrics] = {}
    chosen_by: dict[str, float | None] = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for task, (tested, judged) in zip(tasks, pool.map(train_one, tasks), strict=True):
            by_node[task.node] = tested
            chosen_by[task.node] = judged[measure.key]
            on_node()
    best = _find_best(chosen_by, measure)
    chosen = {"node": best, **by_node[best]}
    if validations:
        chosen["chosen_on"] = "validation"
    return {**_average(list(by_node.values())), "best": chosen, "nodes": by_node}


def _find_best(values: Mapping[str, float | None], measure: Measure) -> str:
    """Return the node with the best value; the first of equals, and of nodes without any."""
    best = next(iter(values))
    for name, value in values.items():
        highest = values[best]
        if value is None:
            continue
        if highest is None or measure.is_better(value, highest):
            best = name
    return best


def _average(rows: Sequence[Mapping[str, Any]]) -> Metrics:
    """Return the mean of each metric over nodes, leaving out those for which it is undefined."""
    mean: Metrics = {}
    for key in rows[0]:
        values = [row[key] for row in rows if row[key] is not None]
        mean[key] = float(np.mean(values)) if values else None
    mean["examples"] = rows[0]["examples"]
    return mean


# ── pooled ────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, eq=False)
class Pool:
    """Several nodes' examples as one. Only a baseline may do this.

        pool = Pool([north, south])
        pool.inputs(torch.tensor([0, len(north)]))  # the first of each

    Attributes:
        parts: the nodes' examples.
        labels: the targets of all, int64 `(n,)`.
    """

    parts: Sequence[Examples]
    labels: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        labels = torch.cat([part.labels for part in self.parts])
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, positions: Tensor) -> Batch:
        """Return prepared inputs of positions `(m,)`, counted through all parts."""
        ends = np.cumsum([len(part) for part in self.parts])
        owners = np.searchsorted(ends, positions.numpy(), side="right")
        by_owner = torch.from_numpy(np.argsort(owners, kind="stable"))
        batches = []
        for owner in np.unique(owners):
            part = self.parts[owner]
            start = int(ends[owner]) - len(part)
            batches.append(part.inputs(positions[owners == owner] - start))
        return concatenate(batches)[torch.argsort(by_owner)]

    def through(self, change: Callable[[Examples], Examples]) -> Examples:
        """Return the pool with each part changed."""
        return Pool([part.through(change) for part in self.parts])


def measure_pooled(plan: Plan, backbone: Backbone, nodes: Sequence[Path]) -> Metrics:
    """Train one model on all nodes' training data in one place. Return its metrics on all test
    data, and on each node's.
    """
    plan = _drop_privacy(plan)
    tasks = _open_tasks(plan, backbone, nodes)
    pool = Pool([task.train for task in tasks])
    together, state = _train_alone(replace(tasks[0], node="pooled", train=pool), backbone)
    metrics = _measure_on(together, state, [task.test for task in tasks])
    by_node = {}
    for task in tasks:
        by_node[task.node] = _measure_on(together, state, [task.test])
    return {**metrics, "nodes": by_node}


# ── both ──────────────────────────────────────────────────────────────────────────────────────────
def _drop_privacy(plan: Plan) -> Plan:
    """Return the plan without privacy: what nobody sends needs no noise, and these baselines are as
    good as their data.
    """
    return plan.model_copy(update={"privacy": PrivacySection()})


def _open_tasks(plan: Plan, backbone: Backbone, nodes: Sequence[Path]) -> list[NodeTask]:
    """Return what each node works on; they share one model."""
    model = working_model(backbone, plan)
    fingerprint = model.frozen_fingerprint()
    opened = [load_simulated_node(path) for path in nodes]
    device = find_device(opened[0].device)
    bring_to(model, device, plan)
    tasks = []
    for node in opened:
        train, test = open_splits(node, plan, backbone.preprocess)
        cache = open_cache(node)
        task = NodeTask(node.name, plan, model, train, test, fingerprint, cache=cache)
        tasks.append(replace(task, validation=open_validation(train)))
    return tasks


def _train_alone(task: NodeTask, backbone: Backbone) -> tuple[NodeTask, dict[str, Tensor]]:
    """Train a model of this task's own for as many epochs as the federation has, without anybody
    else. Return the task with that model, and the adapter.
    """
    train = task.plan.train
    # threads must not share a model
    device = task.model.device
    task = replace(task, model=working_model(backbone, task.plan, 1).move_to(device))
    state = task.model.adapter_state()
    for round_ in range(1, train.rounds + 1):
        if has_depth_head(train, round_) != task.model.has_solved_head:
            another = working_model(backbone, task.plan, round_).move_to(device)
            task = replace(task, model=another)
            state = keep_adapters(state, task.model)
        state = _train_round(task, state, round_)
    return task, state


def _measure_on(task: NodeTask, state: Mapping[str, Tensor], tests: Sequence[Examples]) -> Metrics:
    """Return the metrics of a model on several nodes' test data together."""
    sums = TASKS[task.plan.task.question].zero(task.plan.task)
    for test in tests:
        sums = sums + measure(replace(task, test=test), state)
    return sums.summary()


def _train_round(task: NodeTask, state: dict[str, Tensor], round_: int) -> dict[str, Tensor]:
    """Return the adapter after one round of one node by itself."""
    purpose = purpose_of(task.plan.train, round_)
    if purpose == "nothing":
        return state
    if purpose == "steps":
        return run_round(task, state, round_, measure=False).state
    if purpose == "histograms":
        return state | learn_alone(task)
    task.model.load_adapter_state(state)
    sums = sum_split(task)
    return state | solve_head(sums, task.plan, task.model.solved_name).tensors


def learn_alone(task: NodeTask) -> dict[str, Tensor]:
    """Return the constants that a node's own histograms give, tensors by name."""
    plan = task.plan
    learnt = family_of(plan.backbone.name).learnt
    if learnt is None:
        raise ValueError(f"{plan.backbone.name} has no constants to learn")
    return learnt.learn(count_split(task.train, plan), plan.train.closed_form.hinges)
