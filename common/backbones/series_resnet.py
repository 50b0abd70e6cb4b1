"""The ResNet for time series of Wang, Yan and Oates 2017 ("Time series classification from scratch
with deep neural networks: a strong baseline"), `series-resnet`.

Three residual blocks of 64, 128 and 128 channels, each of three convolutions over 7, 5 and 3
samples; the mean over time; a classifier. As its authors have it, but for their first kernel of 8:
an even one has no middle. No published weights are known: `fedgraft pretrain` makes them from
public signals.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.backbones.family import (
    Family,
    NetworkShape,
    State,
    keep_state,
    refuse_to_fetch,
)
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.series import SignalPreparation
from fedgraft.common.plan.signal_section import SignalSection

NAME = "series-resnet"
WIDTHS = (64, 128, 128)
# samples
KERNELS = (7, 5, 3)
FIRST_WEIGHT = "block1.conv1.weight"


class SeriesBlock(nn.Module):
    """Three convolutions beside a shortcut, which is a convolution where the channels change."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.shortcut = nn.Sequential()
        if channels_in != channels:
            self.shortcut.append(nn.Conv1d(channels_in, channels, 1, bias=False))
        self.shortcut.append(nn.BatchNorm1d(channels))
        self.conv1 = _conv(channels_in, channels, KERNELS[0])
        self.bn1 = nn.BatchNorm1d(channels)
        self.conv2 = _conv(channels, channels, KERNELS[1])
        self.bn2 = nn.BatchNorm1d(channels)
        self.conv3 = _conv(channels, channels, KERNELS[2])
        self.bn3 = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels_in, T) → (n, channels, T)."""
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = F.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        return F.relu(branch + self.shortcut(x))


class SeriesResNet(nn.Module):
    """A ResNet over time.

        net = SeriesResNet(channels=12)
        net(torch.zeros(1, 12, 1000)).shape  # (1, 2)

    Args:
        channels: of a signal.
        classes: outputs of the classifier `linear`.
    """

    def __init__(self, channels: int, classes: int = 2) -> None:
        super().__init__()
        self.block1 = SeriesBlock(channels, WIDTHS[0])
        self.block2 = SeriesBlock(WIDTHS[0], WIDTHS[1])
        self.block3 = SeriesBlock(WIDTHS[1], WIDTHS[2])
        self.linear = nn.Linear(WIDTHS[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Signals (n, channels, T) → logits (n, classes)."""
        x = self.block3(self.block2(self.block1(x)))
        return self.linear(mean_of_samples(self, x))


def mean_of_samples(net: Any, x: Tensor) -> Tensor:
    """(n, channels, T) → (n, channels)."""
    return x.mean(2)


def _conv(channels_in: int, channels: int, kernel: int) -> nn.Conv1d:
    # the batch norm behind it has the bias
    return nn.Conv1d(channels_in, channels, kernel, padding=kernel // 2, bias=False)


# ── the family ────────────────────────────────────────────────────────────────────────────────────
def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network with torch's own initialisation."""
    return SeriesResNet(shape.channels or 1)


def prepare_signals(name: str, weights: str | None, size: int | None) -> SignalPreparation:
    """Return what signals go through where neither a plan nor the weights say it."""
    return SignalPreparation(SignalSection())


def read_shape(state: State, shape: NetworkShape, where: str) -> NetworkShape:
    """Return the shape with the channels of the first convolution. Raise `UserError` where they are
    not the plan's, or there is none.
    """
    weight = state.get(FIRST_WEIGHT)
    if weight is None or weight.ndim != 3:
        what = f"these are not the weights of {NAME}"
        raise UserError(what, where=where, remedy="make them with fedgraft pretrain")
    channels = weight.shape[1]
    if shape.channels not in (None, channels):
        what = f"weights for {channels} channels, and the plan's signals have {shape.channels}"
        remedy = (
            f"name {channels} channels under backbone.signal, those that the weights were trained"
            " on, in their order"
        )
        raise UserError(what, where=where, remedy=remedy)
    return replace(shape, channels=channels)


SERIES_RESNET = Family(
    names=lambda: (NAME,),
    build=build,
    preparation=prepare_signals,
    fetch=refuse_to_fetch,
    read_shape=read_shape,
    fit=keep_state,
    block_types={f"{__name__}.SeriesBlock": False},
    order={f"{__name__}.SeriesResNet": ("block1", "block2", "block3", mean_of_samples, "linear")},
)
