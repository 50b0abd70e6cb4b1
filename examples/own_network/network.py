"""The network itself: plain PyTorch, three blocks and a classifier."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Block(nn.Module):
    """A convolution that halves the image, its norm, and a ReLU."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels_in, H, W) → (n, channels, H/2, W/2)."""
        return self.relu(self.norm(self.conv(x)))


class SmallNet(nn.Module):
    """A small network for images; the last Linear is what hospitals replace."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = Block(3, 16)
        self.block2 = Block(16, 32)
        self.block3 = Block(32, 64)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 3, H, W) → logits (n, 10)."""
        x = self.block3(self.block2(self.block1(x)))
        return self.classifier(mean_of_pixels(self, x))


def mean_of_pixels(net: Any, x: Tensor) -> Tensor:
    """(n, channels, H, W) → (n, channels)."""
    return x.mean(dim=(2, 3))


# what `forward` does, step by step: the outputs of the steps are the features of all depths
STAGES = {
    f"{__name__}.SmallNet": ("block1", "block2", "block3", mean_of_pixels, "classifier"),
}
# modules with a bottleneck behind them, and whether channels come last
BLOCKS = {f"{__name__}.Block": False}
