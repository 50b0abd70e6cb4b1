"""Backbones for the tests of `common`: built once, small inputs, features that carry something."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedgraft.common.backbones.backbone import Backbone, backbone_from_state
from fedgraft.common.backbones.backbone_files import load_backbone

PIXELS = {
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "convnext_tiny": 64,
    "vit_b_16": 32,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 224,
    "cifar-resnet20": 16,
}


@cache
def _lively(name: str) -> Backbone:
    """A backbone of random values whose features are of order 1.

    As they come, deep networks in eval mode give features near 0 (BatchNorm's statistics are those
    of no data) and layers scaled by 1e-6 (ConvNeXt), so that every comparison of outputs would hold
    whatever an adapter does.
    """
    raw = load_backbone(name, image_size=PIXELS.get(name), columns=5, hidden=(16, 8), seed=0)
    for module in raw.net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            module.train()
        if "layer_scale" in module._parameters:
            module._parameters["layer_scale"].data.fill_(0.3)  # type: ignore[union-attr]
    if "running_mean" in " ".join(raw.net.state_dict()):
        with torch.no_grad():
            raw.net(example_input(name, n=16))
    raw.net.eval()
    return backbone_from_state(name, raw.net.state_dict(), raw.preprocess)


def example_input(name: str, n: int = 2) -> Tensor:
    """Inputs of the size that `lively` was built for, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    shape = (n, 5) if name == "mlp" else (n, 3, PIXELS[name], PIXELS[name])
    return torch.randn(shape, generator=generator)


@pytest.fixture
def lively() -> Callable[[str], Backbone]:
    """name → backbone with features of order 1; shared by all tests, never written."""
    return _lively


@pytest.fixture
def inputs() -> Callable[..., Tensor]:
    """(name, n) → inputs for that backbone."""
    return example_input


@pytest.fixture
def cifar_weights() -> Path:
    """The published ResNet-20; the test is skipped where the file is missing."""
    folder = Path(os.environ.get("FEDGRAFT_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = folder / "weights" / "cifar10_resnet20.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return path
