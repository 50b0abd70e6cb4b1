"""Networks of MONAI for volumes, `monai/NAME-3d`, and for images, `monai/NAME-2d`.

An extra: `pip install 'fedgraft[monai]'`, wherever such a network is built. `import monai` takes
twelve seconds whatever of it is asked for (it imports all of itself), so it is imported when a
network is built, and at no other time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from fedgraft.common.backbones.family import Family, NetworkShape, State, refuse_to_fetch
from fedgraft.common.backbones.image_channels import COLOURS, KNOWN
from fedgraft.common.backbones.monai_order import BLOCK_TYPES, ORDER
from fedgraft.common.backbones.unet_encoder import (
    UNetEncoder,
    basic_unet_parts,
    keep_encoder,
    unet_parts,
)
from fedgraft.common.backbones.zero_shortcut import ZeroShortcut
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.inputs.volume import VolumePreparation
from fedgraft.common.plan.volume_section import VolumeSection

PREFIX = "monai/"
# of the class module's two outputs nothing is left: the head takes their place
OUTPUTS = 2
# axes of the weights of a convolution over images
_OF_IMAGES = 4
# layers by depth, in each of the four groups
RESNETS = {
    10: ("basic", (1, 1, 1, 1)),
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
}
# those that MedicalNet trained with shortcuts of zeros rather than of weights
ZERO_SHORTCUTS = (18, 34)
PLANES = (64, 128, 256, 512)
DENSENETS = {
    121: (6, 12, 24, 16),
    169: (6, 12, 32, 32),
    201: (6, 12, 48, 32),
}
# MONAI's own example of a U-Net
UNET_CHANNELS = (16, 32, 64, 128, 256)
UNET_STRIDES = (2, 2, 2, 2)
# MedicalNet's decoder
DECODERS = ("conv_seg.",)
FIRST_WEIGHTS = (
    "conv1.weight",
    "features.conv0.weight",
    "conv_0.conv_0.conv.weight",
    "model.0.conv.unit0.conv.weight",
    "down.conv_0.conv_0.conv.weight",
    "down.stage_0.conv.unit0.conv.weight",
)

Builder = Callable[[int, int], nn.Module]


def import_monai(module: str) -> Any:
    """Return a module of MONAI. Raise `UserError` where it is not installed."""
    try:
        return importlib.import_module(f"monai.networks.nets.{module}")
    except ImportError as error:
        raise UserError(
            "MONAI is not installed",
            where="backbone.name",
            remedy="pip install 'fedgraft[monai]'",
        ) from error


# ── networks ──────────────────────────────────────────────────────────────────────────────────────
def build_resnet(depth: int, axes: int, channels: int) -> nn.Module:
    """Return a ResNet as MedicalNet has it: its first convolution halves the volume."""
    block, layers = RESNETS[depth]
    net = import_monai("resnet").ResNet(
        block,
        list(layers),
        list(PLANES),
        spatial_dims=axes,
        n_input_channels=channels,
        conv1_t_stride=2,
        shortcut_type="A" if depth in ZERO_SHORTCUTS else "B",
        bias_downsample=False,
        num_classes=OUTPUTS,
    )
    for module in net.modules():
        shortcut = getattr(module, "downsample", None)
        if isinstance(shortcut, partial):
            # MONAI's own stops the gradient
            module.downsample = ZeroShortcut(
                shortcut.keywords["planes"], shortcut.keywords["stride"]
            )
    return net


def build_densenet(depth: int, axes: int, channels: int) -> nn.Module:
    """Return a DenseNet."""
    return import_monai("densenet").DenseNet(axes, channels, OUTPUTS, block_config=DENSENETS[depth])


def build_basic_unet(axes: int, channels: int) -> nn.Module:
    """Return the encoder of MONAI's BasicUNet, and a classifier on its pooled bottom."""
    whole = import_monai("basic_unet").BasicUNet(axes, channels, OUTPUTS)
    return UNetEncoder(basic_unet_parts(whole), OUTPUTS)


def build_unet(axes: int, channels: int) -> nn.Module:
    """Return the encoder of MONAI's UNet, and a classifier on its pooled bottom."""
    whole = import_monai("unet").UNet(
        axes, channels, OUTPUTS, UNET_CHANNELS, UNET_STRIDES, num_res_units=2
    )
    return UNetEncoder(unet_parts(whole), OUTPUTS)


BUILDERS: dict[str, Builder] = {
    **{f"resnet{depth}": partial(build_resnet, depth) for depth in RESNETS},
    **{f"densenet{depth}": partial(build_densenet, depth) for depth in DENSENETS},
    "basic-unet": build_basic_unet,
    "unet": build_unet,
}


def list_names(axes: int) -> tuple[str, ...]:
    """Return the names of the networks over so many axes."""
    return tuple(f"{PREFIX}{name}-{axes}d" for name in BUILDERS)


def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network with MONAI's own initialisation."""
    short, _, dimensions = name.removeprefix(PREFIX).rpartition("-")
    axes = int(dimensions.removesuffix("d"))
    channels = shape.channels or (1 if axes == 3 else COLOURS)
    return BUILDERS[short](axes, channels)


# ── weights ───────────────────────────────────────────────────────────────────────────────────────
def read_shape(state: State, shape: NetworkShape, where: str) -> NetworkShape:
    """Return the shape with the channels of the first convolution, where the plan says nothing.

    Raises:
        UserError: weights for several sequences, and the plan has others: for grey or colour ones
            there is a rule (`image_channels.py`).
    """
    for name in FIRST_WEIGHTS:
        weight = state.get(name)
        if weight is None or weight.ndim < 3:
            continue
        channels = weight.shape[1]
        if shape.channels is None:
            return replace(shape, channels=channels)
        if channels not in (*KNOWN, shape.channels):
            key = "backbone" if weight.ndim == _OF_IMAGES else "backbone.volume"
            what = f"weights for {channels} channels, and the plan has {shape.channels}"
            raise UserError(what, where=where, remedy=f"write channels: {channels} under {key}")
    return shape


def fit(net: nn.Module, state: State) -> State:
    """Return the tensors of the encoder, without what is behind it in a file: a decoder."""
    if isinstance(net, UNetEncoder):
        return keep_encoder(net, state)
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith(DECODERS):
            kept[name] = tensor
    return kept


def prepare_volumes(name: str, weights: str | None, size: int | None) -> VolumePreparation:
    """Return what volumes go through where neither a plan nor the weights say it."""
    return VolumePreparation(VolumeSection())


def prepare_images(name: str, weights: str | None, image_size: int | None) -> Preprocess:
    """Return what images go through: 224 pixels unless the plan has another size, 0 to 1."""
    side = image_size or 224
    return Preprocess(size=side, crop=side, mean=(0.0,) * COLOURS, std=(1.0,) * COLOURS)


MONAI = Family(
    names=lambda: list_names(3),
    build=build,
    preparation=prepare_volumes,
    fetch=refuse_to_fetch,
    read_shape=read_shape,
    fit=fit,
    block_types=BLOCK_TYPES,
    order=ORDER,
)
# the classes are the same, and so are their blocks and order: `MONAI` says them once
MONAI_2D = replace(
    MONAI, names=lambda: list_names(2), preparation=prepare_images, order={}, block_types={}
)
