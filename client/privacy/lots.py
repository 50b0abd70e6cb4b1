"""What chance gives the steps of private training: who enters each, and with what noise.

A step asks for its lot, the seed of its augmentation and its noise, in this order, whoever takes it
and however many are drawn ahead. None of it depends on a gradient, so it is drawn for several steps
at once, and the noise of all of them comes from one call of each function: for a small head the
calls cost more than the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.privacy.patients import draw_examples
from fedgraft.common.privacy.randomness import Randomness, poisson_sample, to_normal

# normal numbers that are drawn ahead, 1 MB of them; one step has its own however many they are
MOST_AHEAD = 2**17
MOST_STEPS = 256


@dataclass(frozen=True, eq=False)
class Lot:
    """What one step draws.

    Attributes:
        positions: of the examples that enter it, int64; there may be none.
        owners: which of the drawn patients each belongs to, where the unit is the patient.
        generator: of its augmentation; None where nobody entered.
        noise: standard normal numbers, one a parameter's value, float64.
    """

    positions: np.ndarray
    owners: Tensor | None
    generator: torch.Generator | None
    noise: np.ndarray


def draw_lots(
    mechanism: Mechanism,
    units: int,
    values: int,
    randomness: Randomness,
    patients: Sequence[np.ndarray] | None = None,
) -> Iterator[Lot]:
    """Yield the lot of each step of a mechanism.

    Args:
        units: examples, or patients.
        values: of all parameters together.
        patients: positions of each patient's examples, where the unit is the patient.
    """
    ahead = min(MOST_STEPS, max(1, MOST_AHEAD // values))
    for start in range(0, mechanism.steps, ahead):
        drawn: list[Lot] = []
        uniform: list[np.ndarray] = []
        for _ in range(min(ahead, mechanism.steps - start)):
            lot = _draw_entering(mechanism, units, randomness, patients)
            drawn.append(lot)
            # pairs: the last is left over where values are odd
            uniform.append(randomness.uniform(values + values % 2))
        noise = to_normal(np.stack(uniform))
        for lot, own in zip(drawn, noise, strict=True):
            yield Lot(lot.positions, lot.owners, lot.generator, own[:values])


def _draw_entering(
    mechanism: Mechanism,
    units: int,
    randomness: Randomness,
    patients: Sequence[np.ndarray] | None,
) -> Lot:
    """Return a lot without its noise."""
    positions = poisson_sample(units, mechanism.sample_rate, randomness)
    owners = None
    if patients is not None:
        positions, owners = draw_examples(patients, positions, randomness)
    generator = randomness.generator() if len(positions) else None
    return Lot(positions, owners, generator, np.empty(0))
