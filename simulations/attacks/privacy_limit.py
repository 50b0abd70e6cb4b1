"""What differential privacy leaves to an attack on membership: no test does better, whatever it
knows.

A test of whether one unit was in has a true-positive rate of at most min(e^ε α + δ,
1 − e^−ε (1 − δ − α)) at a false-positive rate α (Kairouz, Oh and Viswanath 2015, theorem 2.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgraft.common.privacy.accounting import bound
from fedgraft.simulations.attacks.roc import FALSE_ALARMS
from fedgraft.simulations.attacks.target import Target
from fedgraft.simulations.attacks.unrecorded_budget import UnrecordedBudget


@dataclass(frozen=True)
class StatedPrivacy:
    """What a node states for all rounds of a run.

    Attributes:
        epsilon, delta: of all of them together.
    """

    epsilon: float
    delta: float


def state_privacy(target: Target, number: int) -> StatedPrivacy:
    """Return what node `number` states, had it been in every round. Only where it adds noise."""
    plan = target.plan
    data = target.nodes[number]
    mechanism = UnrecordedBudget.open(data.node, plan, data.train).mechanism(plan)
    noise_multiplier, rate, steps = mechanism.row
    history = [(noise_multiplier, rate, steps * plan.train.rounds)]
    delta = plan.privacy.delta or 0.0
    return StatedPrivacy(bound(history, delta, plan.privacy.accountant).epsilon, delta)


def limit_membership(target: Target) -> Mapping[str, Any] | None:
    """Return the most that any attack reaches on a run: area, and hits by false-positive rate; None
    where nodes add no noise.
    """
    if not target.plan.privacy.at_node:
        return None
    stated = [state_privacy(target, number) for number in range(len(target.nodes))]
    weakest = max(stated, key=lambda each: each.epsilon)
    hits = {f"{rate:g}": most_hits(rate, weakest) for rate in FALSE_ALARMS}
    return {"epsilon": weakest.epsilon, "auc": most_area(weakest), "tpr": hits}


def most_hits(false_alarms: float, stated: StatedPrivacy) -> float:
    """Return the largest true-positive rate at a false-positive rate."""
    likelier = math.exp(stated.epsilon)
    at_few = likelier * false_alarms + stated.delta
    at_many = 1 - (1 - stated.delta - false_alarms) / likelier
    return min(at_few, at_many, 1.0)


def most_area(stated: StatedPrivacy) -> float:
    """Return the largest area under an ROC curve."""
    # where the two pieces meet, and where nothing is left to hit
    meeting = (1 - stated.delta) / (1 + math.exp(stated.epsilon))
    rates = np.array([0.0, meeting, 1 - stated.delta, 1.0])
    hits = [most_hits(float(rate), stated) for rate in rates]
    return float(np.trapezoid(hits, rates))
