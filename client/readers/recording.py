"""One signal as it lies in a file: samples by channel, rate, and why it cannot be used."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedgraft.common.inputs.series import Signal

# of one record as it lies in a file, all channels together
MOST_VALUES = 2**27
# a larger value has no square in 32 bits
LARGEST = 1e18
CUT_OFF = "cut off or corrupt"


class BrokenSignal(ValueError):
    """Why a signal cannot be used, in words that name a kind of problem and no record."""


@dataclass(frozen=True, eq=False)
class Recording:
    """One signal.

    Attributes:
        values: float32 `(channels, T)`, channels in the plan's order.
        rate: Hz; None: the file does not say.
    """

    values: np.ndarray
    rate: float | None = None

    def content(self) -> bytes:
        """Return SHA-256 of what it says: the same samples are one record, however packed."""
        hashed = hashlib.sha256(repr((self.values.shape, self.rate)).encode())
        hashed.update(np.ascontiguousarray(self.values).data)
        return hashed.digest()

    def signal(self) -> Signal:
        """Return the raw record that a backbone's preparation takes."""
        return Signal(torch.from_numpy(np.array(self.values, np.float32)), self.rate)


def check_recording(recording: Recording) -> Recording:
    """Return a signal that can be used. Raise `BrokenSignal` for one that cannot."""
    values = recording.values
    if not values.size:
        raise BrokenSignal("no samples")
    if values.size > MOST_VALUES:
        raise BrokenSignal(f"more than {MOST_VALUES:,} samples")
    rate = recording.rate
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise BrokenSignal("a rate that is no number of samples a second")
    low, high = values.min(), values.max()
    # NaN is no number that another equals
    if np.isnan(low):
        raise BrokenSignal("missing samples (NaN) inside a record")
    if low < -LARGEST or high > LARGEST:
        raise BrokenSignal("samples that are infinite, or larger than anything measured")
    if (values == values[:, :1]).all():
        raise BrokenSignal("flat: every sample of a channel has one value")
    return recording


def choose_channels(values: np.ndarray, channels: Sequence[str]) -> np.ndarray:
    """Return channels that have no names, `(channels, T)`, as a plan names them: the same number,
    or for one the mean of all.

    Raises:
        BrokenSignal: another number.
    """
    if len(values) == len(channels):
        return values
    if len(channels) == 1 and len(values):
        return values.mean(0, keepdims=True)
    what = f"a signal of {len(values)} channels, where the plan names {len(channels)}"
    raise BrokenSignal(what)


def trim(values: np.ndarray) -> np.ndarray:
    """Return `(channels, T)` without what is missing in all channels behind its end: a record that
    is shorter than others of its table.
    """
    there = np.flatnonzero(~np.isnan(values).all(0))
    return values[:, : there[-1] + 1 if len(there) else 0]
