"""The family of torchvision's classifiers: every model whose last layer is a Linear."""

from __future__ import annotations

import re
import urllib.error
from collections import OrderedDict
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.backbones.cifar import keep_shape
from fedgraft.common.backbones.family import Family, NetworkShape, State
from fedgraft.common.backbones.forward_steps import flatten, mean_of_pixels, pool, relu
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import SUFFIXES
from fedgraft.common.inputs.image import Preprocess

# their classifier is a convolution
NO_LINEAR_END = ("squeezenet1_0", "squeezenet1_1")
# as torchvision sets them for its own weights; no auxiliary heads
LEGACY_INPUT: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": True},
}
# names in torchvision's older files → names in its networks
LEGACY_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
POSITIONS = "encoder.pos_embedding"


@cache
def names() -> tuple[str, ...]:
    """Return all names. Imports torchvision."""
    from torchvision import models

    return tuple(name for name in models.list_models(module=models) if name not in NO_LINEAR_END)


def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network with torchvision's own initialisation.

    Raises:
        UserError: a vision transformer whose patches do not fill the image.
    """
    from torchvision import models

    options = dict(LEGACY_INPUT.get(name, {}))
    # only a vision transformer's table of positions has the size of its images
    if name.startswith("vit_") and shape.image_size is not None:
        patch = int(name.rsplit("_", 1)[1])
        if shape.image_size % patch:
            multiple = max(patch, shape.image_size // patch * patch)
            raise UserError(
                f"{shape.image_size} pixels; {name} cuts images into patches of {patch}",
                where="backbone.image_size",
                remedy=f"give a multiple of {patch}, such as {multiple}",
            )
        options["image_size"] = shape.image_size
    return models.get_model(name, weights=None, **options)


def prepare_images(name: str, weights: str | None, image_size: int | None) -> Preprocess:
    """Return torchvision's preset for the weights (the default ones for a file).

    Another `image_size` keeps the preset's proportion between resizing and cropping.
    """
    from torchvision import models

    known = models.get_model_weights(name)
    entry = known["DEFAULT"]
    if weights is not None and weights in known.__members__:
        entry = known[weights]
    preset = entry.transforms()
    size = int(preset.resize_size[0])
    crop = int(preset.crop_size[0])
    if image_size is not None:
        size = round(size * image_size / crop)
        crop = image_size
    return Preprocess(
        size=size,
        crop=crop,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        antialias=bool(preset.antialias),
    )


def fetch(name: str, weights: str) -> dict[str, Tensor]:
    """Return torchvision's weights of a name, fetched once and then kept by torch.

    Raises:
        UserError: there are none of this name, or no network to fetch them.
    """
    from torchvision import models

    known = models.get_model_weights(name)
    if weights not in known.__members__:
        near = get_close_matches(weights.upper(), known.__members__, n=1, cutoff=0.0)
        suggestion = near[0] if near else "DEFAULT"
        raise UserError(
            f"torchvision has no weights {weights!r} for {name}",
            where="backbone.weights",
            remedy=f"write {suggestion}, or the path of a file in {', '.join(SUFFIXES)}",
        )
    entry = known[weights]
    try:
        return dict(entry.get_state_dict(progress=False, check_hash=True))
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        reason = type(error).__name__
        raise UserError(
            f"{entry.url} could not be fetched ({reason}); is this machine offline?",
            where="backbone.weights",
            remedy="fetch that file elsewhere, copy it here, and write its path as backbone.weights",
        ) from error


def fit(net: nn.Module, state: State) -> State:
    """Return tensors under the names of today's networks, positions in the network's own number."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith(AUXILIARY):
            renamed[current_name(name)] = tensor
    return fit_positions(net, renamed)


def current_name(tensor_name: str) -> str:
    """Return a tensor's name in torchvision's networks of today, from its name in a file."""
    for old, new in LEGACY_NAMES:
        tensor_name = old.sub(new, tensor_name)
    return tensor_name


def fit_positions(net: Any, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors with a vision transformer's table of positions interpolated where the
    images have another size.
    """
    table = state.get(POSITIONS)
    if table is None or table.ndim != 3 or not hasattr(net, "patch_size"):
        return state
    _, tokens, width = net.encoder.pos_embedding.shape
    if table.shape[1] == tokens or table.shape[2] != width:
        return state
    from torchvision.models.vision_transformer import interpolate_embeddings

    try:
        fitted = interpolate_embeddings(
            net.image_size, net.patch_size, OrderedDict({POSITIONS: table})
        )
    except ValueError:
        # what does not fit is said where names and shapes are compared
        return state
    return {**state, POSITIONS: fitted[POSITIONS]}


# ── the order in which the networks call their children ───────────────────────────────────────────
def transform_pixels(net: Any, x: Tensor) -> Tensor:
    """Normalise images as GoogLeNet's and Inception's weights want them."""
    return net._transform_input(x)


def embed_patches(net: Any, x: Tensor) -> Tensor:
    """Images (n, 3, H, W) → tokens (n, 1 + patches, width), positions added."""
    x = net._process_input(x)
    x = torch.cat([net.class_token.expand(len(x), -1, -1), x], dim=1)
    return net.encoder.dropout(x + net.encoder.pos_embedding)


def take_class_token(net: Any, x: Tensor) -> Tensor:
    """Tokens (n, 1 + patches, width) → (n, width)."""
    return x[:, 0]


_VISION = "torchvision.models"
_BLOCKS = {
    "resnet.BasicBlock": False,
    "resnet.Bottleneck": False,
    "regnet.ResBottleneckBlock": False,
    "mobilenetv2.InvertedResidual": False,
    "mobilenetv3.InvertedResidual": False,
    "mnasnet._InvertedResidual": False,
    "efficientnet.MBConv": False,
    "efficientnet.FusedMBConv": False,
    "convnext.CNBlock": False,
    "densenet._DenseLayer": False,
    "vision_transformer.EncoderBlock": True,
    "swin_transformer.SwinTransformerBlock": True,
    "swin_transformer.SwinTransformerBlockV2": True,
}
_ORDER = {
    "resnet.ResNet": (
        *("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool"),
        *(flatten, "fc"),
    ),
    "regnet.RegNet": ("stem", "trunk_output", "avgpool", flatten, "fc"),
    "mobilenetv2.MobileNetV2": ("features", pool, flatten, "classifier"),
    "mobilenetv3.MobileNetV3": ("features", "avgpool", flatten, "classifier"),
    "efficientnet.EfficientNet": ("features", "avgpool", flatten, "classifier"),
    "mnasnet.MNASNet": ("layers", mean_of_pixels, "classifier"),
    "convnext.ConvNeXt": ("features", "avgpool", "classifier"),
    "densenet.DenseNet": ("features", relu, pool, flatten, "classifier"),
    "vision_transformer.VisionTransformer": (
        *(embed_patches, "encoder.layers", "encoder.ln", take_class_token, "heads"),
    ),
    "swin_transformer.SwinTransformer": (
        *("features", "norm", "permute", "avgpool", "flatten", "head"),
    ),
    "maxvit.MaxVit": ("stem", "blocks", "classifier"),
    "vgg.VGG": ("features", "avgpool", flatten, "classifier"),
    "alexnet.AlexNet": ("features", "avgpool", flatten, "classifier"),
    "shufflenetv2.ShuffleNetV2": (
        *("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5", mean_of_pixels, "fc"),
    ),
    "googlenet.GoogLeNet": (
        *(transform_pixels, "conv1", "maxpool1", "conv2", "conv3", "maxpool2"),
        *("inception3a", "inception3b", "maxpool3"),
        *("inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "maxpool4"),
        *("inception5a", "inception5b", "avgpool", flatten, "dropout", "fc"),
    ),
    "inception.Inception3": (
        *(transform_pixels, "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1"),
        *("Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2", "Mixed_5b", "Mixed_5c", "Mixed_5d"),
        *("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
        *("Mixed_7a", "Mixed_7b", "Mixed_7c", "avgpool", "dropout", flatten, "fc"),
    ),
}

TORCHVISION = Family(
    names=names,
    build=build,
    preparation=prepare_images,
    fetch=fetch,
    read_shape=keep_shape,
    fit=fit,
    block_types={f"{_VISION}.{name}": last for name, last in _BLOCKS.items()},
    order={f"{_VISION}.{name}": steps for name, steps in _ORDER.items()},
    used_by_steps={embed_patches: ("conv_proj",)},
)
