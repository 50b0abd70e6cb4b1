"""Node-level differential privacy of one run, at a server that the nodes trust.

    coins → cohort → clipped updates → their sum + noise, divided by the cohort expected → next
    clipping norm

Two runs are neighbours if they differ in what one node sends: its updates are any others, within
the clipping norm, in every sum. That node is drawn by its own coin in each round; who takes part,
and the denominator, are the same in both. See docs/adr/0005-node-level-privacy.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.privacy.clipping import State, apply_update, norm_of, update_of
from fedgraft.common.privacy.randomness import Randomness, poisson_sample
from fedgraft.common.privacy.replacement import (
    noise_for_replacement,
    replacement_bound,
    replacement_history,
)
from fedgraft.server.aggregation.averages import Quantile, noisy_mean, split_noise
from fedgraft.server.aggregation.rule import Memory

# adapters travel as float32: a clipped update's norm is the clipping norm but for rounding
_AT_THE_NORM = 1 - 1e-3


@dataclass
class CentralPrivacy:
    """What the server draws, adds and counts.

        privacy = CentralPrivacy.begin(plan, nodes=8)
        cohort = privacy.choose_cohort(names, 1)
        state = privacy.average(sent, states, 1)
        privacy.spent(1).epsilon

    Attributes:
        expected: fraction · nodes at the first round: the denominator, for the whole run.
        noise_multiplier: z, of a whole round.
        clip: L2 norm that updates are clipped to in the next round.
        seeded: noise that can be repeated: for simulations only, it protects nobody.
    """

    plan: Plan
    expected: float
    noise_multiplier: float
    clip: float
    seeded: bool = field(default=False, repr=False)

    @classmethod
    def begin(cls, plan: Plan, nodes: int, *, seeded: bool = False) -> CentralPrivacy:
        """Find the noise for all rounds of the plan.

        Raises:
            UserError: no noise is enough for the plan's ε.
        """
        privacy = plan.privacy
        rate = plan.aggregate.fraction
        noise = privacy.noise_multiplier
        if noise is None:
            epsilon = _given(privacy.target_epsilon, "target_epsilon")
            delta = _given(privacy.delta, "delta")
            rounds = plan.train.rounds
            noise = noise_for_replacement(epsilon, delta, rate, rounds, privacy.accountant)
        return cls(plan, rate * nodes, noise, privacy.max_update_norm, seeded)

    def choose_cohort(self, names: Sequence[str], number: int) -> list[str]:
        """Return the nodes of a round, each drawn by its own coin; there may be none."""
        ordered = sorted(names)
        coins = self._randomness(number, "cohort")
        drawn = poisson_sample(len(ordered), self.plan.aggregate.fraction, coins)
        return [ordered[position] for position in drawn.tolist()]

    def average(self, sent: State, states: Mapping[str, State], number: int) -> dict[str, Tensor]:
        """Return the noisy average of what nodes made of `sent`, as an adapter.

        Moves the clipping norm if it adapts.
        """
        updates = [update_of(states[name], sent) for name in sorted(states)]
        noise = self.noise_multiplier
        clip = self.clip
        randomness = self._randomness(number, "noise")
        if self.plan.privacy.clipping == "adaptive":
            noise, on_bits = split_noise(noise, self.expected)
            quantile = Quantile(self.plan.privacy.quantile, on_bits, self.expected)
            within = [norm_of(update) < clip * _AT_THE_NORM for update in updates]
            self.clip = quantile.next_clip(clip, within, randomness)
        mean = noisy_mean(
            updates,
            sent,
            clip=clip,
            deviation=noise * clip,
            expected=self.expected,
            randomness=randomness,
        )
        return apply_update(sent, mean)

    def spent(self, rounds: int) -> Spent:
        """Return ε of each node after so many rounds, its data replaced by any other."""
        delta = _given(self.plan.privacy.delta, "delta")
        noise = self.noise_multiplier
        rate = self.plan.aggregate.fraction
        counted = replacement_bound(noise, rate, rounds, delta, self.plan.privacy.accountant)
        history = replacement_history(noise, rate, rounds)
        return Spent(counted.epsilon, delta, "node", counted.accountant, history)

    def memory(self) -> Memory:
        """Return what must survive a restart, for the checkpoint."""
        return {"central": np.array([self.expected, self.noise_multiplier, self.clip])}

    def restore(self, memory: Memory) -> None:
        """Take over what `memory` gave."""
        self.expected, self.noise_multiplier, self.clip = map(float, memory["central"])

    def _randomness(self, number: int, purpose: str) -> Randomness:
        """Return the system's own randomness, unless a simulation seeds it."""
        if not self.seeded:
            return Randomness()
        key = f"{self.plan.seed}/{number}/server/{purpose}"
        return Randomness(hashlib.sha256(key.encode()).digest())


def _given(value: float | None, key: str) -> float:
    """Return a number of the plan's `privacy` section. Raises `UserError` where it has none."""
    if value is None:
        raise UserError("missing", where=f"privacy.{key}", remedy="mode central needs it")
    return value
