"""Randomness that privacy rests on: from the operating system, in float64.

A torch generator keeps 32 bits of its seed, so that whoever tries them all could take the noise away.
"""

from __future__ import annotations

import os

import numpy as np
import torch


class Randomness:
    """Uniform and normal draws in float64, from the operating system.

    Args:
        seed: makes every draw repeatable, so that a simulation can be repeated. Noise that can be repeated
            protects nobody.
    """

    def __init__(self, seed: bytes | None = None) -> None:
        self._seeded = None if seed is None else np.random.default_rng(list(seed))

    def uniform(self, count: int) -> np.ndarray:
        """`(count,)` numbers in [0, 1), multiples of 2⁻⁵³."""
        if self._seeded is not None:
            return self._seeded.random(count)
        return (np.frombuffer(os.urandom(8 * count), np.uint64) >> np.uint64(11)) * 2.0**-53

    def normal(self, count: int) -> np.ndarray:
        """`(count,)` standard normal numbers (Box and Muller 1958)."""
        half = -(-count // 2)
        draws = self.uniform(2 * half)
        radius = np.sqrt(-2 * np.log1p(-draws[:half]))
        angle = 2 * np.pi * draws[half:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def generator(self) -> torch.Generator:
        """A torch generator for what needs no secrecy: which way an image is flipped."""
        return torch.Generator().manual_seed(int(self.uniform(1)[0] * 2**53))


def poisson_sample(units: int, rate: float, randomness: Randomness) -> np.ndarray:
    """Numbers of the units that enter a step, each by its own coin; there may be none."""
    return np.flatnonzero(randomness.uniform(units) < rate)
