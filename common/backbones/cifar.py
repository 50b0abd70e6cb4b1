"""The family of ResNets for small images: `cifar-resnet8` to `cifar-resnet110`."""

from __future__ import annotations

from torch import Tensor, nn

from fedgraft.common.backbones.cifar_resnet import DEPTHS, CifarResNet
from fedgraft.common.backbones.family import Family, NetworkShape, State
from fedgraft.common.backbones.forward_steps import mean_of_pixels, relu
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import SUFFIXES
from fedgraft.common.inputs.image import Preprocess, for_images

NAMES = tuple(f"cifar-resnet{depth}" for depth in DEPTHS)
_HERE = "fedgraft.common.backbones.cifar_resnet"


def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network with torch's own initialisation."""
    return CifarResNet(int(name.removeprefix("cifar-resnet")))


def prepare_small_images(name: str, weights: str | None, image_size: int | None) -> Preprocess:
    """Return what images go through: 32 pixels, unless the plan has another size."""
    return for_images(image_size or 32)


def refuse_to_fetch(name: str, weights: str) -> dict[str, Tensor]:
    """Raise `UserError`: no weights of this network are known by a name."""
    raise UserError(
        f"{name} has no weights called {weights!r}",
        where="backbone.weights",
        remedy=f"give a file in {', '.join(SUFFIXES)}, or null for a random initialisation",
    )


def keep_shape(state: State, shape: NetworkShape, where: str) -> NetworkShape:
    """Return the shape: the name says it all."""
    return shape


def keep_state(net: nn.Module, state: State) -> State:
    """Return the tensors as they are."""
    return state


CIFAR = Family(
    names=lambda: NAMES,
    build=build,
    preparation=prepare_small_images,
    fetch=refuse_to_fetch,
    read_shape=keep_shape,
    fit=keep_state,
    block_types={f"{_HERE}.BasicBlock": False},
    order={
        f"{_HERE}.CifarResNet": (
            *("conv1", "bn1", relu, "layer1", "layer2", "layer3", mean_of_pixels, "linear"),
        )
    },
)
