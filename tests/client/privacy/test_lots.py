"""What is drawn ahead against one draw after the other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.client.privacy import lots
from fedgraft.client.privacy.lots import draw_lots
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.privacy.patients import draw_examples
from fedgraft.common.privacy.randomness import Randomness, poisson_sample


def normal_as_before(randomness: Randomness, count: int) -> np.ndarray:
    """Box and Muller's numbers as every release has drawn them, one draw at a time."""
    half = -(-count // 2)
    draws = torch.from_numpy(randomness.uniform(2 * half))
    radius = torch.log1p(-draws[:half]).mul_(-2).sqrt_()
    angle = draws[half:] * (2 * math.pi)
    pairs = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])
    return pairs[:count].numpy()


@settings(max_examples=40, deadline=None)
@given(
    values=st.integers(1, 200),
    steps=st.integers(1, 12),
    rate=st.sampled_from((0.0, 0.05, 0.6, 1.0)),
    ahead=st.sampled_from((1, 64, 2**17)),
    by_patient=st.booleans(),
)
def test_the_same_draws_as_one_by_one(values, steps, rate, ahead, by_patient) -> None:
    """A simulation whose seed gives another run, because noise was drawn before a coin; noise that
    two steps share; the odd number's half pair lost.
    """
    units = 9
    patients = [np.array([k, k + 9]) for k in range(units)] if by_patient else None
    mechanism = Mechanism(1.0, rate, steps, 1.0, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lots, "MOST_AHEAD", ahead)
        drawn = list(draw_lots(mechanism, units, values, Randomness(b"seed"), patients))

    assert len(drawn) == steps
    one_by_one = Randomness(b"seed")
    for own in drawn:
        positions = poisson_sample(units, rate, one_by_one)
        owners = None
        if patients is not None:
            positions, owners = draw_examples(patients, positions, one_by_one)
        assert np.array_equal(own.positions, positions)
        if owners is not None:
            assert own.owners is not None
            assert torch.equal(own.owners, owners)
        if len(positions):
            assert own.generator is not None
            assert own.generator.initial_seed() == one_by_one.generator().initial_seed()
        else:
            assert own.generator is None
        assert np.array_equal(own.noise, normal_as_before(one_by_one, values))


def test_noise_of_the_system_is_fresh_in_every_step() -> None:
    """Two steps with the same noise: their difference is the difference of two sums."""
    mechanism = Mechanism(1.0, 0.5, 300, 1.0, 1.0)
    noise = np.stack([own.noise for own in draw_lots(mechanism, 4, 50, Randomness())])
    assert noise.shape == (300, 50)
    assert len(np.unique(noise)) == noise.size
