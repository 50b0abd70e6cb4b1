"""The noisy steps of one round at one node: how many, on how much, with how much noise."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from fedgraft.common.errors import UserError
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.plan.phases import Purpose, purpose_of, rounds_for
from fedgraft.common.privacy.history import Row
from fedgraft.common.privacy.noise_search import noise_for
from fedgraft.common.statistics.noisy_sums import NOISE_MULTIPLIERS


@dataclass(frozen=True)
class Mechanism:
    """The noisy steps of one round at one node: what is run, and what is counted.

    Attributes:
        noise_multiplier: σ; the noise on a sum has standard deviation σ · max_grad_norm.
        sample_rate: q, the probability of each unit to enter a step, by its own coin.
        steps: optimizer steps of a round.
        expected: units that a step is expected to have; noisy sums are divided by it.
        max_grad_norm: L2 norm that each unit's gradient is clipped to; in mode local, the whole
            update.
        unit: "example", "patient" or, in mode local, "node".
        grad_sample_mode: "hooks" or "ghost".
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    expected: float
    max_grad_norm: float
    unit: str = "example"
    grad_sample_mode: str = "hooks"

    @property
    def row(self) -> Row:
        """One round's row of a privacy history."""
        return (self.noise_multiplier, self.sample_rate, self.steps)


def calibrate(
    plan: Agreement,
    units: int,
    *,
    purpose: Purpose | None = None,
    least_noise: float = 0.0,
    beside: tuple[Row, ...] = (),
) -> Mechanism:
    """Return the noisy steps of one round, with the noise that all rounds together need.

    σ is the least with which *all* steps of *all* planned rounds stay within
    `privacy.target_epsilon`, or the plan's own noise_multiplier. In mode local a round is one step:
    the node's whole update. Where sums follow steps, they alone stay within the plan's share of
    ε, and the steps have what is left beside them.

    Args:
        purpose: of the round; default: the first one's.
        units: examples or patients that this node trains on; in mode local 1.
        least_noise: the node's own floor under σ.
        beside: what else this plan will release here, over all rounds.

    Raises:
        UserError: no noise is enough for the target, or sums cannot have that noise.
    """
    privacy = plan.privacy
    train = plan.train
    purpose = purpose or purpose_of(train, 1)
    share = 1.0
    if privacy.mode == "local":
        rate = 1.0
        steps = 1
        norm = privacy.max_update_norm
    elif purpose == "sums":
        # one release of sums over all records, whose features have norm 1
        rate = 1.0
        steps = 1
        norm = 1.0
        if train.method == "steps":
            share = train.closed_form.epsilon_share
            beside = ()
    else:
        rate = min(1.0, train.batch_size / units)
        steps = math.ceil(units / train.batch_size) * train.local_epochs
        norm = privacy.max_grad_norm
        if train.finish == "closed-form":
            sums = calibrate(plan, units, purpose="sums", least_noise=least_noise)
            beside = (*beside, sums.row)

    sigma = privacy.noise_multiplier
    if sigma is None:
        # the plan's own door lets no such plan in
        if privacy.target_epsilon is None or privacy.delta is None:
            what = "neither a noise multiplier nor a target ε with its δ"
            raise UserError(what, where="privacy", remedy="write target_epsilon and delta")
        total = steps * len(rounds_for(train, purpose))
        target = share * privacy.target_epsilon
        sigma = _noise_for(target, privacy.delta, rate, total, privacy.accountant, beside)
    sigma = max(sigma, least_noise)
    if purpose == "sums":
        check_sums_noise(sigma)
    return Mechanism(
        noise_multiplier=sigma,
        sample_rate=rate,
        steps=steps,
        expected=rate * units,
        max_grad_norm=norm,
        unit=privacy.unit,
        grad_sample_mode=privacy.grad_sample_mode,
    )


def check_sums_noise(noise_multiplier: float) -> None:
    """Raise `UserError` for noise that discrete noise on sums is not proved to be as good as."""
    least, most = NOISE_MULTIPLIERS
    if least <= noise_multiplier <= most:
        return
    side, change = ("less", "smaller") if noise_multiplier < least else ("more", "larger")
    limit = least if noise_multiplier < least else most
    what = f"noise multiplier {noise_multiplier:g}, {side} than sums can have ({limit:g})"
    remedy = f"write a {change} target_epsilon, or another noise_multiplier"
    raise UserError(what, where="privacy", remedy=remedy)


_noise_for = functools.lru_cache(maxsize=4096)(noise_for)
