"""Node-level differential privacy of one run, at a server that the nodes trust: cohort, noise,
clipping norm, ε.

    coins → cohort → clipped updates → their sum + noise, divided by the cohort expected → next
    clipping norm

Two runs are neighbours if they differ in what one node sends: its updates are left out of every
sum. That node is drawn by its own coin in each round; who takes part, and the denominator, are the
same in both. See docs/adr/0005-node-level-privacy.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.accounting import Row, Spent, bound, noise_for
from fedgraft.common.privacy.clipping import State, applied, norm_of, update_of
from fedgraft.common.privacy.randomness import Randomness, poisson_sample
from fedgraft.server.aggregation.averages import next_clip, noisy_mean, split_noise

NEIGHBOURS = "one node's updates left out"
_AT_THE_NORM = (
    1 - 1e-3
)  # adapters travel as float32: a clipped update's norm is the clipping norm but for rounding


@dataclass
class Central:
    """What the server draws, adds and counts.

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
    def begin(cls, plan: Plan, nodes: int, *, seeded: bool = False) -> Central:
        """Noise for all rounds of the plan. Raises `UserError` where none is enough for its
        target.
        """
        privacy, rate = plan.privacy, plan.aggregate.fraction
        noise = privacy.noise_multiplier
        if noise is None:
            assert privacy.target_epsilon is not None  # the plan's door sees to these
            assert privacy.delta is not None
            noise = noise_for(
                privacy.target_epsilon, privacy.delta, rate, plan.train.rounds, privacy.accountant
            )
        return cls(plan, rate * nodes, noise, privacy.max_update_norm, seeded)

    def cohort(self, names: Sequence[str], round_: int) -> list[str]:
        """The nodes of a round, each by its own coin; there may be none."""
        ordered = sorted(names)
        drawn = poisson_sample(
            len(ordered), self.plan.aggregate.fraction, self._randomness(round_, "cohort")
        )
        return [ordered[number] for number in drawn.tolist()]

    def aggregate(self, sent: State, states: Mapping[str, State], round_: int) -> dict[str, Tensor]:
        """The noisy average of what the nodes made of `sent`, as an adapter; moves the clipping
        norm if it adapts.
        """
        updates = [update_of(states[name], sent) for name in sorted(states)]
        noise, clip = self.noise_multiplier, self.clip
        randomness = self._randomness(round_, "noise")
        if self.plan.privacy.clipping == "adaptive":
            noise, on_bits = split_noise(noise, self.expected)
            self.clip = next_clip(
                clip,
                [norm_of(update) < clip * _AT_THE_NORM for update in updates],
                quantile=self.plan.privacy.quantile,
                deviation=on_bits,
                expected=self.expected,
                randomness=randomness,
            )
        mean = noisy_mean(
            updates,
            sent,
            clip=clip,
            deviation=noise * clip,
            expected=self.expected,
            randomness=randomness,
        )
        return applied(sent, mean)

    def spent(self, rounds: int) -> Spent:
        """ε of each node after so many rounds."""
        privacy = self.plan.privacy
        assert privacy.delta is not None
        history: tuple[Row, ...] = ((self.noise_multiplier, self.plan.aggregate.fraction, rounds),)
        found = bound(history, privacy.delta, privacy.accountant)
        return Spent(found.epsilon, privacy.delta, "node", found.accountant, history, NEIGHBOURS)

    def memory(self) -> dict[str, np.ndarray]:
        """What must survive a restart, for the checkpoint."""
        return {"central": np.array([self.expected, self.noise_multiplier, self.clip])}

    def restore(self, memory: Mapping[str, np.ndarray]) -> None:
        """Take over what `memory` said."""
        self.expected, self.noise_multiplier, self.clip = map(float, memory["central"])

    def _randomness(self, round_: int, purpose: str) -> Randomness:
        """The system's own, unless a simulation seeds it."""
        if not self.seeded:
            return Randomness()
        return Randomness(
            hashlib.sha256(f"{self.plan.seed}/{round_}/server/{purpose}".encode()).digest()
        )
