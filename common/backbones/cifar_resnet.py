"""ResNets for 32×32 images: the CIFAR variant of He et al. 2016, section 4.2.

Three stages of n blocks with 16, 32 and 64 channels: 6n+2 layers that carry weights. Shortcuts hold
no parameters (option A: subsample, then pad the new channels with zeros). Key names are the usual
ones (`conv1`, `bn1`, `layer1.0.conv1`, …, `linear`), so that published weights load as they are.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = (8, 20, 32, 44, 56)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut without parameters."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        # channels that the shortcut lacks, half on each side
        self.extra = channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels_in, H, W) → (n, channels, H/stride, W/stride)."""
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        return F.relu(branch + self._take_shortcut(x))

    def _take_shortcut(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if not self.extra:
            return x
        before = self.extra // 2
        return F.pad(x, (0, 0, 0, 0, before, self.extra - before))


class CifarResNet(nn.Module):
    """ResNet of depth 8 (for demonstrations), 20, 32, 44 or 56 for small images.

        net = CifarResNet(depth=20, classes=10)
        net(torch.zeros(1, 3, 32, 32)).shape  # (1, 10)

    Args:
        depth: layers that carry weights, 6n+2.
        classes: outputs of the classifier `linear`.
    """

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (n, 3, H, W) → logits (n, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    stage = nn.Sequential(BasicBlock(channels_in, channels, stride))
    for _ in range(blocks - 1):
        stage.append(BasicBlock(channels, channels, stride=1))
    return stage
