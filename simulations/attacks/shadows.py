"""Shadow federations: the attacked plan with the same public start, on other rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedgraft.client.data.split import Split
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.wire.layout import Layout
from fedgraft.common.wire.update import AdapterUpdate
from fedgraft.server.aggregation.plain_aggregation import PlainAggregation
from fedgraft.server.rounds import Round
from fedgraft.simulations.attacks.candidates import Candidates
from fedgraft.simulations.attacks.target import State, Target
from fedgraft.simulations.engines.inprocess import take_server_identity

FEWEST = 4
MOST = 16
# records that all shadows together take through a network of which nothing is frozen in front
PASSES = 120_000


@dataclass(frozen=True)
class Released:
    """What a federation gives away at its end.

        released = train_federation(target, splits, seed=8)
        released.shared, released.updates[0]

    Attributes:
        shared: the shared adapter, after as many rounds as the attacked one.
        updates: what each node sends in the last round, in the order of the nodes.
    """

    shared: State
    updates: Sequence[State]


def draw_halves(
    candidates: Sequence[Candidates], shadows: int, rng: np.random.Generator
) -> np.ndarray:
    """Return which candidates each shadow trains on, bool `(shadows, n)`; each candidate is in
    exactly half of the shadows.

    Of a member and a non-member of one class at one node each shadow has one, by lot. So every
    shadow's node has as many records of each class as the attacked one.
    """
    is_first_half = np.arange(shadows) < shadows // 2
    columns = []
    for each in candidates:
        pairs = len(each.rows) // 2
        by_pair = np.tile(is_first_half[:, None], (1, pairs))
        members = rng.permuted(by_pair, axis=0)
        columns += [members, ~members]
    return np.concatenate(columns, axis=1)


def count_affordable(target: Target) -> int:
    """Return how many shadows to train, an even number: the most where activations are kept, else
    what `PASSES` allows.
    """
    if frozen_prefix(target.model) is not None:
        return MOST
    train = target.plan.train
    records = sum(len(data.train) for data in target.nodes)
    passes = records * target.last * train.local_epochs
    pairs = PASSES // passes // 2
    return min(max(2 * pairs, FEWEST), MOST)


def train_shadow(
    target: Target, candidates: Sequence[Candidates], inside: np.ndarray, seed: int
) -> Released:
    """Return what a shadow federation gives away.

    Args:
        inside: which candidates it trains on, bool `(n,)`, beside all of a node's rows that are no
            candidates.
    """
    counts = [len(each.rows) for each in candidates]
    by_node = np.split(inside, np.cumsum(counts)[:-1])
    splits = []
    for data, each, chosen in zip(target.nodes, candidates, by_node, strict=True):
        always = np.setdiff1d(data.train.rows, each.rows)
        rows = np.concatenate([always, each.rows[chosen]])
        splits.append(data.select(np.sort(rows)))
    return train_federation(target, splits, seed)


def train_federation(target: Target, splits: Sequence[Split], seed: int) -> Released:
    """Run the attacked plan on other rows.

    In mode central it is without the server's noise: shadows are then less like the run, and the
    attack is weaker.

    Args:
        splits: what each node trains on, in the order of the nodes.
    """
    # Flower's strategies take messages, also where an attack comes long after its run
    take_server_identity()
    plan = target.plan
    layout = Layout.of(target.first)
    aggregation = PlainAggregation(plan)
    numbers = {data.node.name: number for number, data in enumerate(target.nodes)}
    received = target.first
    shared = target.first
    sent: dict[str, State] = {}
    kept = shared
    for round_ in range(1, target.last + 1):
        received = shared
        cohort = aggregation.choose_cohort(list(numbers), round_)
        sent = {}
        updates = {}
        for name in cohort:
            number = numbers[name]
            train = splits[number]
            sent[name] = target.train(number, train, received, round_, seed)
            weight = 1
            if plan.privacy.mode == "none":
                weight = len(train)
            updates[name] = _as_update(sent[name], round_, weight)
        shared = aggregation.aggregate(Round(plan, round_, layout, received, cohort), updates)
        if round_ == target.kept:
            kept = shared

    last = []
    for name, number in numbers.items():
        if name not in sent:
            sent[name] = target.train(number, splits[number], received, target.last, seed)
        last.append(sent[name])
    return Released(kept, last)


def _as_update(state: Mapping, round_: int, weight: int) -> AdapterUpdate:
    """Return an adapter as the server takes it in."""
    return AdapterUpdate(
        round=round_,
        state=dict(state),
        examples=weight,
        steps=0,
        train_loss=None,
        seconds=0.0,
        received=None,
    )
