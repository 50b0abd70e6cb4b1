"""Draws that privacy rests on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedgraft.common.privacy.randomness import Randomness


@pytest.mark.parametrize(
    "randomness", [Randomness(), Randomness(b"a seed")], ids=["system", "seeded"]
)
def test_they_have_their_distributions(randomness: Randomness) -> None:
    """Noise that is not Gaussian has no ε. Checked against SciPy's distributions; one run in a
    million fails.
    """
    uniform, normal = randomness.uniform(200_000), randomness.normal(200_001)
    assert normal.shape == (200_001,)
    assert normal.dtype == np.float64
    assert stats.kstest(uniform, "uniform").pvalue > 1e-6
    assert stats.kstest(normal, "norm").pvalue > 1e-6
    halves = normal[:100_000], normal[100_000:200_000]  # both come of the same uniform draws
    assert abs(np.corrcoef(*halves)[0, 1]) < 0.02
    assert abs(np.corrcoef(np.square(halves[0]), np.square(halves[1]))[0, 1]) < 0.02


def test_they_never_come_twice_unless_seeded() -> None:
    """A key that is used again is the same noise again, and two releases with it tell their
    difference exactly.
    """
    one = Randomness()
    assert len({float(one.uniform(4)[k]) for _ in range(50) for k in range(4)}) == 200
    assert float(Randomness().normal(1)[0]) != float(Randomness().normal(1)[0])
    assert np.array_equal(Randomness(b"s").normal(9), Randomness(b"s").normal(9))
    assert not np.array_equal(Randomness(b"s").normal(9), Randomness(b"t").normal(9))
    assert len(one.normal(0)) == len(one.uniform(0)) == 0
