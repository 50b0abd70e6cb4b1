"""What the shared model is measured against.

alone             each node trains by itself, for as many epochs, and is tested on all nodes' test
data pooled            all data in one place: what privacy costs head              the same
federation, only a new classifier on the frozen backbone: what adapters bring full              the
same federation, everything trained and sent: what adapters save random-backbone   the same adapters
on a backbone that learnt nothing: what the transfer brings
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.split import Split
from fedgraft.client.node.node_file import load_node
from fedgraft.client.node_task import Workplace, open_splits, working_model
from fedgraft.client.round import measure, run_round
from fedgraft.client.store.activation_cache import open_cache
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.errors import UserError
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.privacy_section import PrivacySection
from fedgraft.common.tasks.classification_sums import zero
from fedgraft.common.tasks.task import Sums

BASELINES = ("alone", "pooled", "head", "full", "random-backbone")
VARIANTS: dict[str, tuple[str, ...]] = {
    "head": ("adapter.method=head", "adapter.targets=auto", "aggregate.lora_aggregation=average"),
    # without privacy: Opacus does not take networks with BatchNorm, and it is the upper mark
    "full": (
        "adapter.method=full",
        "adapter.targets=auto",
        "aggregate.lora_aggregation=average",
        "privacy.mode=none",
        "privacy.target_epsilon=null",
        "privacy.noise_multiplier=null",
        "privacy.delta=null",
        "privacy.grad_sample_mode=hooks",
    ),
    "random-backbone": ("backbone.random=true",),
}


def chosen_baselines(text: str) -> tuple[str, ...]:
    """`alone,head` → names in the order of `BASELINES`. Raises `UserError` for any other name."""
    asked = [name.strip() for name in text.split(",") if name.strip()]
    if asked == ["all"]:
        return BASELINES
    for name in asked:
        if name not in BASELINES:
            raise UserError(
                f"{name!r} is no baseline",
                where="--baselines",
                remedy=f"write some of {', '.join(BASELINES)}, or all",
            )
    return tuple(name for name in BASELINES if name in asked)


def alone(
    plan: Plan,
    backbone: Backbone,
    nodes: Sequence[Path],
    *,
    on_node: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Every node by itself: the mean of the metrics over nodes, the best node, and each one's.

    Each model is tested on the test data of all nodes together, as the shared model is.
    """
    plan = _without_privacy(plan)
    places = _places(plan, backbone, nodes)
    tests = [place.test for place in places]

    def one(place: Workplace) -> dict[str, Any]:
        place.model = working_model(backbone, plan)  # one for each node: threads must not share it
        return _train_alone(place, tests)

    summaries = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for place, summary in zip(places, pool.map(one, places), strict=True):
            summaries[place.node] = summary
            on_node()
    best = max(summaries, key=lambda name: summaries[name]["accuracy"])
    return _mean(summaries.values()) | {
        "best": {"node": best} | summaries[best],
        "nodes": summaries,
    }


def pooled(plan: Plan, backbone: Backbone, nodes: Sequence[Path]) -> dict[str, Any]:
    """One model trained on all nodes' training data in one place."""
    plan = _without_privacy(plan)
    places = _places(plan, backbone, nodes)
    together = Together(
        "pooled",
        plan,
        places[0].model,
        Pool([place.train for place in places]),
        places[0].test,
        places[0].fingerprint,
        cache=places[0].cache,
    )
    summary = _train_alone(together, [place.test for place in places])
    state = together.model.adapter_state()
    by_node = {}
    for place in places:
        place.model = together.model
        by_node[place.node] = measure(place, state).summary()
    return summary | {"nodes": by_node}


class Pool(Split):
    """Several nodes' splits as one. Only a baseline may do this."""

    def __init__(self, splits: Sequence[Split]) -> None:
        self.splits = list(splits)
        self.rows = np.arange(sum(len(split) for split in splits))
        self.labels = torch.cat([split.labels for split in splits])
        self._starts = np.cumsum([0] + [len(split) for split in splits])

    def inputs(self, positions: Tensor) -> Tensor:
        """Prepared inputs of positions counted through all splits."""
        owners = np.searchsorted(self._starts, positions.numpy(), side="right") - 1
        order = torch.from_numpy(np.argsort(owners, kind="stable"))
        parts = [
            self.splits[owner].inputs(positions[owners == owner] - int(self._starts[owner]))
            for owner in np.unique(owners)
        ]
        return torch.cat(parts)[torch.argsort(order)]


class Together(Workplace):
    """All nodes in one place: the training split is a pool."""

    def for_training(self) -> tuple[GraftedModel, Split]:
        """The pool of what each split is behind the frozen prefix."""
        if self.plan.train.augment != "none" or not isinstance(self.train, Pool):
            return super().for_training()
        behind = [self._behind_prefix(split) for split in self.train.splits]
        return behind[0][0], Pool([split for _, split in behind])


def _without_privacy(plan: Plan) -> Plan:
    """What nobody sends needs no noise: these baselines are as good as their data."""
    return plan.model_copy(update={"privacy": PrivacySection()})


def _places(plan: Plan, backbone: Backbone, nodes: Sequence[Path]) -> list[Workplace]:
    model = working_model(backbone, plan)
    fingerprint = model.frozen_fingerprint()
    places = []
    for path in nodes:
        node = load_node(path)
        train, test = open_splits(node, plan, backbone.preprocess)
        places.append(
            Workplace(node.name, plan, model, train, test, fingerprint, cache=open_cache(node))
        )
    return places


def _train_alone(place: Workplace, tests: Sequence[Split]) -> dict[str, Any]:
    """As many epochs as the federation has, without anybody else; tested on all `tests`."""
    quiet = place.plan.evaluate.model_copy(update={"every": place.plan.train.rounds + 1})
    place.plan = place.plan.model_copy(update={"evaluate": quiet})
    state = place.model.adapter_state()
    for round_ in range(1, place.plan.train.rounds + 1):
        state = run_round(place, state, round_).state
    sums: Sums = zero(len(place.plan.task.classes))
    for test in tests:
        sums = sums + measure(replace(place, test=test), state)
    return sums.summary()


def _mean(summaries: Any) -> dict[str, Any]:
    """Mean of each metric over nodes, leaving out those for which it is undefined."""
    rows = list(summaries)
    mean: dict[str, Any] = {}
    for key in rows[0]:
        values = [row[key] for row in rows if row[key] is not None]
        mean[key] = float(np.mean(values)) if values else None
    mean["examples"] = rows[0]["examples"]
    return mean
