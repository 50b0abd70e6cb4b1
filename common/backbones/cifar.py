"""The family of ResNets for small images: `cifar-resnet8` to `cifar-resnet110`."""

from __future__ import annotations

from torch import nn

from fedgraft.common.backbones.cifar_resnet import DEPTHS, CifarResNet
from fedgraft.common.backbones.family import (
    Family,
    NetworkShape,
    Step,
    keep_shape,
    keep_state,
    refuse_to_fetch,
)
from fedgraft.common.backbones.forward_steps import mean_of_pixels, relu
from fedgraft.common.inputs.image import Preprocess, for_images

NAMES = tuple(f"cifar-resnet{depth}" for depth in DEPTHS)
_HERE = "fedgraft.common.backbones.cifar_resnet"


def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network with torch's own initialisation."""
    return CifarResNet(int(name.removeprefix("cifar-resnet")))


def prepare_small_images(name: str, weights: str | None, image_size: int | None) -> Preprocess:
    """Return what images go through: 32 pixels, unless the plan has another size."""
    return for_images(image_size or 32)


ORDER: tuple[Step, ...] = (
    "conv1",
    "bn1",
    relu,
    "layer1",
    "layer2",
    "layer3",
    mean_of_pixels,
    "linear",
)
CIFAR = Family(
    names=lambda: NAMES,
    build=build,
    preparation=prepare_small_images,
    fetch=refuse_to_fetch,
    read_shape=keep_shape,
    fit=keep_state,
    block_types={f"{_HERE}.BasicBlock": False},
    order={f"{_HERE}.CifarResNet": ORDER},
)
