"""Signals as a network sees them: channels, rate, length, and what a stranger may ask for."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs import INPUTS
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.inputs.series import Signal, SignalPreparation, read_preparation
from fedgraft.common.plan.signal_section import SignalSection


def wave(seconds: float, rate: float, frequency: float = 3.0) -> Tensor:
    """A sine, one channel."""
    times = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return (2 * math.pi * frequency * times).sin().float()[None]


@pytest.mark.parametrize("rate", [50.0, 128.0, 250.0, 360.0, 257.31])
def test_one_wave_at_every_rate_becomes_the_same_samples(rate: float) -> None:
    """A hospital with a faster recorder would be another disease."""
    section = SignalSection(rate=100.0, samples=300, standardise=False)
    seen = SignalPreparation(section)([Signal(wave(5, rate), rate)]).only[0]
    assert seen.shape == (1, 300)
    # nobody knows what was before the first sample
    torch.testing.assert_close(seen[:, 5:], wave(3, 100.0)[:, 5:], atol=0.01, rtol=0)


def test_what_a_lower_rate_cannot_hold_is_filtered_out() -> None:
    """A tone of 90 Hz that becomes one of 10 Hz: every 4th sample alone would say so."""
    section = SignalSection(rate=100.0, samples=200, standardise=False)
    seen = SignalPreparation(section)([Signal(wave(4, 400.0, frequency=90.0), 400.0)]).only
    assert float(seen[..., 20:].abs().max()) < 0.02


def test_what_is_cut_off_does_not_change_what_is_seen() -> None:
    """An hour of signal in the memory for a second of it, or another second."""
    prepare = SignalPreparation(SignalSection(rate=100.0, samples=100))
    generator = torch.Generator().manual_seed(0)
    long = torch.randn(1, 20_000, generator=generator)
    for rate in (37.0, 250.0, 999.0):
        whole = prepare([Signal(long, rate)]).only
        part = prepare([Signal(long[:, : round(2.5 * rate)], rate)]).only
        torch.testing.assert_close(whole, part, atol=1e-6, rtol=0)


def test_a_short_record_is_filled_with_zeros_behind_its_own_mean() -> None:
    """The length of a record in its scale: padding that counts in mean and deviation."""
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [50.0, 50.0, 50.0, 50.0]])
    section = SignalSection(channels=("a", "b"), samples=16)
    seen = SignalPreparation(section)([Signal(values)]).only[0]
    torch.testing.assert_close(seen[0, :4].square().mean(), torch.tensor(1.0))
    assert float(seen[0, :4].sum()) == pytest.approx(0, abs=1e-6)
    assert not seen[:, 4:].any()
    # a lead that has come off
    assert not seen[1].any()


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 300),
    rate=st.one_of(st.none(), st.floats(100.0, 9000.0)),
    wanted=st.one_of(st.none(), st.floats(100.0, 9000.0)),
    scale=st.floats(1e-6, 1e30),
)
def test_any_signal_is_finite_of_one_length_and_alone(length, rate, wanted, scale) -> None:
    """A record that changes another's batch row: privacy by example would be lost."""
    section = SignalSection(channels=("a", "b"), rate=wanted, samples=64)
    prepare = SignalPreparation(section)
    generator = torch.Generator().manual_seed(0)
    one = Signal(torch.randn(2, length, generator=generator) * scale, rate)
    other = Signal(torch.randn(2, 40, generator=generator), wanted)
    together = prepare([one, other]).only
    assert together.shape == (2, 2, 64)
    assert bool(torch.isfinite(together).all())
    assert torch.equal(together[:1], prepare([one]).only)
    assert torch.equal(together[1:], prepare([other]).only)


@pytest.mark.parametrize("raw", [torch.zeros(2, 3, 40), ["text"], torch.zeros(2, 40)])
def test_what_is_no_signal_of_these_channels_is_refused(raw: Any) -> None:
    """A traceback from within torch."""
    with pytest.raises(UserError, match="record of shape"):
        SignalPreparation(SignalSection())(raw)


def test_a_rate_that_cannot_be_is_refused_in_a_sentence() -> None:
    """A header that claims a sample an hour: gigabytes of filter for one record."""
    prepare = SignalPreparation(SignalSection(rate=1000.0))
    with pytest.raises(UserError, match="at most a factor of 100"):
        prepare([Signal(torch.zeros(1, 10), 0.0003)])


def test_what_travels_gives_the_same_signals() -> None:
    """A node that prepared in another way would train another model."""
    section = SignalSection(channels=("II", "V1"), rate=125.5, samples=77, standardise=False)
    made = SignalPreparation(section)
    arrived = INPUTS["series"].read_preparation(json.loads(json.dumps(made.to_json())))
    assert arrived == made
    assert draw_probes("series", made, made(torch.zeros(1, 2, 4)), 3).only.shape == (3, 2, 77)
    assert made([]).only.shape == (0, 2, 77)


def test_jitter_is_each_signals_own() -> None:
    """A draw that all share, or noise scaled by the next signal, would make one record's gradient
    depend on another's; noise behind a signal's end would give it a length that it has not.
    """
    augment = INPUTS["series"].augment
    signals = torch.randn(3, 2, 60, generator=torch.Generator().manual_seed(0))
    signals[1, :, 40:] = 0.0
    batch = Batch({"series": signals})
    changed = augment(batch, "jitter", torch.Generator().manual_seed(1)).only
    again = augment(batch, "jitter", torch.Generator().manual_seed(1)).only
    assert torch.equal(changed, again)
    assert torch.equal(augment(batch, "none", torch.Generator()).only, signals)
    assert not changed[1, :, 40:].any()
    moved = (changed - signals).abs().mean(2)
    assert bool((moved > 0.005).all())
    assert bool((moved < 0.5).all())

    louder = Batch({"series": torch.cat([signals[:1], 1000 * signals[1:]])})
    beside = augment(louder, "jitter", torch.Generator().manual_seed(1)).only
    assert torch.equal(beside[0], changed[0])


WRONG: list[dict[str, Any]] = [
    {"samples": 10**9},
    {"samples": 2**22, "channels": list("abcdefgh")},
    {"samples": 2.5},
    {"samples": True},
    {"rate": 0},
    {"rate": float("nan")},
    {"rate": 1e12},
    {"channels": []},
    {"channels": ["a", "a"]},
    {"channels": [1]},
    {"channels": [f"c{number}" for number in range(1000)]},
    {"standardise": "yes"},
    {"run": "code"},
]


@pytest.mark.parametrize("change", WRONG)
def test_a_preparation_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    """A server that asks for terabytes, or for something that nobody wrote."""
    data = SignalPreparation(SignalSection()).to_json() | change
    with pytest.raises(UserError, match="a preparation of series that cannot be"):
        read_preparation(data)
    with pytest.raises((ValidationError, UserError)):
        read_preparation({})


@pytest.mark.parametrize("missing", ["channels", "rate", "samples", "standardise"])
def test_a_preparation_that_lacks_a_key_is_refused(missing: str) -> None:
    """A default of this release in the place of a value of another."""
    data = SignalPreparation(SignalSection()).to_json()
    data.pop(missing)
    with pytest.raises(UserError, match="cannot be"):
        read_preparation(data)
