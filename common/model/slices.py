"""A volume as its slices: a network over images sees each, and what it gives is averaged.

Slices of one record stay together, so that one record stays one row: what is clipped, counted or
released by example is a volume's.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


def fold_slices(x: Tensor) -> Tensor:
    """Volumes (n, channels, slices, H, W) → images (n · slices, channels, H, W), those of one
    volume after one another.
    """
    return x.transpose(1, 2).flatten(0, 1)


def mean_over_slices(y: Tensor, slices: int | None) -> Tensor:
    """(n · slices, d) → (n, d); as it is where there are no slices."""
    if slices is None:
        return y
    return y.unflatten(0, (-1, slices)).mean(1)


@dataclass(frozen=True, eq=False)
class AcrossSlices:
    """A network over images with its head, as one over volumes: as its head is linear, the mean of
    its outputs is the output of the mean of its features.

        across = AcrossSlices(net, slices=3)
        across(volumes).shape  # (n, outputs)

    Attributes:
        net: takes images (n, channels, H, W).
        slices: of each volume.
    """

    net: nn.Module
    slices: int

    def __call__(self, x: Tensor) -> Tensor:
        """Volumes (n, channels, slices, H, W) → outputs (n, …)."""
        return mean_over_slices(self.net(fold_slices(x)), self.slices)
