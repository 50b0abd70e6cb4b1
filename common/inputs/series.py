"""Time series and audio as a hospital has them → signals as a backbone was trained on them.

What travels is the plan's own `backbone.signal`: names and numbers, each with a bound, so that
nobody can ask a hospital for more memory than one prepared record of 64 MiB. Each record is
prepared by itself: no record changes another's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.material import Input, Preparation
from fedgraft.common.plan.backbone_section import BackboneSection
from fedgraft.common.plan.signal_section import SignalSection
from fedgraft.common.plan.task_section import TaskSection

# between a record's rate and the plan's, either way
MOST_RATIO = 100
# of the fraction that stands for their quotient: a filter grows with it
MOST_STEPS = 1000
# samples at the lower of two rates that scipy's filter looks at to each side
FILTER_SIDE = 10
# deviations of noise, in those of a channel, and of what a channel is multiplied by
JITTER = 0.05
SCALING = 0.1


@dataclass(frozen=True, eq=False)
class Signal:
    """One raw record: the samples of its channels, and how many there are a second.

        Signal(torch.zeros(2, 3600), rate=360.0)

    Attributes:
        values: float32 `(channels, T)`, channels in the plan's order.
        rate: Hz; None: not known, the plan's own.
    """

    values: Tensor
    rate: float | None = None


@dataclass(frozen=True)
class SignalPreparation:
    """Signals → float32 `(n, channels, samples)` of one rate, length and scale.

        preparation = SignalPreparation(SignalSection(channels=("I", "II"), rate=100, samples=1000))
        preparation([ecg, another])["series"].shape  # (2, 2, 1000)

    Attributes:
        section: as the plan has it.
    """

    section: SignalSection

    @property
    def channels(self) -> int:
        """Return how many channels a record has."""
        return len(self.section.channels)

    def __call__(self, raw: Sequence[Signal] | Tensor) -> Batch:
        """Return a prepared batch. A tensor `(n, channels, T)` has the plan's own rate.

        Raises:
            UserError: another number of channels, no signals, or a rate too far from the plan's.
        """
        signals: Sequence[Any] = [Signal(v) for v in raw] if isinstance(raw, Tensor) else raw
        prepared = [self._prepare(signal) for signal in signals]
        if not prepared:
            return Batch({"series": torch.empty(0, self.channels, self.section.samples)})
        return Batch({"series": torch.stack(prepared)})

    def _prepare(self, signal: Any) -> Tensor:
        shape = tuple(signal.values.shape) if isinstance(signal, Signal) else None
        if shape is None or len(shape) != 2 or shape[0] != self.channels or 0 in shape:
            what = f"a record of shape {shape}"
            remedy = (
                f"give signals ({self.channels}, samples), a channel for each of"
                f" backbone.signal.channels: {', '.join(self.section.channels[:8])}"
            )
            raise UserError(what, remedy=remedy)
        values = self._resample(signal.values.to(torch.float64), signal.rate)
        values = values[:, : self.section.samples]
        if self.section.standardise:
            values = standardise(values)
        missing = self.section.samples - values.shape[1]
        return F.pad(values.to(torch.float32), (0, missing))

    def _resample(self, values: Tensor, rate: float | None) -> Tensor:
        """Return float64 `(channels, T)` at the plan's rate, at least as long as is seen."""
        wanted = self.section.rate
        if wanted is None or rate is None or rate == wanted:
            return values
        if not 1 / MOST_RATIO <= wanted / rate <= MOST_RATIO:
            what = f"a record of {rate:g} Hz, and the plan's rate is {wanted:g} Hz"
            remedy = f"at most a factor of {MOST_RATIO} is resampled; correct the one or the other"
            raise UserError(what, where="backbone.signal.rate", remedy=remedy)
        # what is cut off behind is not resampled first; what the filter looks at is
        lower = max(1.0, rate / wanted)
        needed = math.ceil(self.section.samples * rate / wanted + (FILTER_SIDE + 1) * lower) + 1
        return resample(values[:, :needed], rate, wanted)

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists: the plan's own keys."""
        return self.section.model_dump(mode="json")


def resample(values: Tensor, rate: float, wanted: float) -> Tensor:
    """Return a signal float64 `(channels, T)` at another rate, behind a filter that leaves nothing
    that the lower of the two cannot hold.
    """
    # half a second
    from scipy.signal import resample_poly

    larger = Fraction(max(rate, wanted) / min(rate, wanted)).limit_denominator(MOST_STEPS)
    up, down = larger.numerator, larger.denominator
    if wanted < rate:
        up, down = down, up
    # beyond both ends the signal goes on as it is there: zeros would be a step
    resampled = resample_poly(values.numpy(), up, down, axis=1, padtype="edge")
    return torch.from_numpy(resampled)


def standardise(values: Tensor) -> Tensor:
    """Return each channel of `(channels, T)` with mean 0 and deviation 1; one that is flat is 0."""
    centred = values - values.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    # of a flat channel nothing but rounding is left
    least = 1e-12 * values.abs().amax(1, keepdim=True)
    return torch.where(deviation > least, centred / deviation, 0.0)


def read_preparation(data: Mapping[str, Any]) -> SignalPreparation:
    """Return the opposite of `SignalPreparation.to_json`. Raise `UserError` for anything else."""
    try:
        section = SignalSection.model_validate_json(json.dumps(dict(data)), strict=True)
        preparation = SignalPreparation(section)
        if preparation.to_json() == dict(data):
            return preparation
    except (ValidationError, TypeError, ValueError):
        pass
    what = f"a preparation of series that cannot be: {str(dict(data))[:200]}"
    raise UserError(what, remedy="save the backbone again")


def example_signal(preparation: Preparation, backbone: BackboneSection, task: TaskSection) -> Batch:
    """Return one signal of zeros, of the shape that a plan's backbone sees."""
    assert isinstance(preparation, SignalPreparation)
    return Batch({"series": torch.zeros(1, preparation.channels, preparation.section.samples)})


def jitter_signals(batch: Batch, augment: str, generator: torch.Generator) -> Batch:
    """Scale each channel of signals `(n, channels, T)` at random and add noise, each signal by its
    own draws from `generator` (jittering and scaling: Um et al. 2017, section 3).

    Noise is measured in the channel's own deviation. Behind a signal's end it stays 0.
    """
    if augment == "none":
        return batch
    signals = batch.only
    shape = (*signals.shape[:2], 1)
    scales = 1 + SCALING * torch.randn(shape, generator=generator)
    noise = JITTER * torch.randn(signals.shape, generator=generator)
    deviations = signals.std(dim=2, keepdim=True, unbiased=False)
    is_there = (signals != 0).any(dim=1, keepdim=True)
    return batch.map(lambda tensor: (tensor * scales + noise * deviations) * is_there)


SERIES = Input(
    name="series",
    plural="signals",
    read_preparation=read_preparation,
    example=example_signal,
    augment=jitter_signals,
)
