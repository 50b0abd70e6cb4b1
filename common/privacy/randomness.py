"""Randomness that privacy rests on: from the operating system, in float64.

A torch generator keeps 32 bits of its seed, so that whoever tries them all could take the noise
away. A small draw is the operating system's own bytes; a large one the key stream of AES-256 in
counter mode (NIST SP 800-38A, section 6.5) under a key of 256 bits that the system gives for this
draw alone: to ask it for all bytes took 16 times as long.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

# bytes, which the operating system gives as fast as a cipher is set up
FEW = 8192
# of the fraction of a float64
BITS = 53


class Randomness:
    """Uniform and normal draws in float64, that nobody can foresee.

        randomness = Randomness()
        noise = deviation * randomness.normal(1000)

    Args:
        seed: makes every draw repeatable, so that a simulation can be repeated. Noise that can be
            repeated protects nobody.
    """

    def __init__(self, seed: bytes | None = None) -> None:
        self._seeded: np.random.Generator | None = None
        if seed is not None:
            self._seeded = np.random.default_rng(list(seed))

    def uniform(self, count: int) -> np.ndarray:
        """Return `(count,)` numbers in [0, 1), multiples of 2⁻⁵³."""
        if self._seeded is not None:
            return self._seeded.random(count)
        words = np.frombuffer(_draw_bytes(8 * count), np.uint64)
        return (words >> np.uint64(64 - BITS)) * 2.0**-BITS

    def normal(self, count: int) -> np.ndarray:
        """Return `(count,)` standard normal numbers."""
        return to_normal(self.uniform(count + count % 2))[:count]

    def integers(self, below: np.ndarray) -> np.ndarray:
        """Return whole numbers, each uniform from 0 to one less than its bound, int64.

        Args:
            below: bounds from 1 to 2⁶², int64 `(count,)`. By rejection: all are equally likely.
        """
        # bits of the largest number; of large ones a float may say one too many
        _, bits = np.frexp((below - 1).astype(np.float64))
        mask = (np.uint64(1) << bits.astype(np.uint64)) - np.uint64(1)
        drawn = np.zeros(len(below), np.int64)
        pending = np.arange(len(below))
        while len(pending):
            words = (self._words(len(pending)) & mask[pending]).astype(np.int64)
            fits = words < below[pending]
            drawn[pending[fits]] = words[fits]
            pending = pending[~fits]
        return drawn

    def _words(self, count: int) -> np.ndarray:
        """Return `(count,)` words of 64 random bits."""
        if self._seeded is not None:
            return self._seeded.integers(0, 2**64, count, np.uint64)
        return np.frombuffer(_draw_bytes(8 * count), np.uint64)

    def generator(self) -> torch.Generator:
        """Return a torch generator for what needs no secrecy: which way an image is flipped."""
        seed = int(self.uniform(1)[0] * 2**BITS)
        return torch.Generator().manual_seed(seed)


def to_normal(uniform: np.ndarray) -> np.ndarray:
    """Return as many standard normal numbers as uniform ones in [0, 1), by rows `(…, 2k)`, float64
    (Box and Muller 1958).
    """
    half = uniform.shape[-1] // 2
    # torch's logarithm and sine are the quicker ones
    draws = torch.from_numpy(uniform)
    radius = torch.log1p(-draws[..., :half]).mul_(-2).sqrt_()
    angle = draws[..., half:] * (2 * math.pi)
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], -1).numpy()


def _draw_bytes(count: int) -> bytes:
    if count <= FEW:
        return os.urandom(count)
    cipher = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16)))
    return cipher.encryptor().update(bytes(count))


def poisson_sample(units: int, rate: float, randomness: Randomness) -> np.ndarray:
    """Return numbers of the units that enter a step, each by its own coin; there may be none."""
    return np.flatnonzero(randomness.uniform(units) < rate)
