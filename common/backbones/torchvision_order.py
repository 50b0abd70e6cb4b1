"""In which order torchvision's networks call their children, and which are residual blocks.

Written down from torchvision's sources; a test holds every network against its own forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fedgraft.common.backbones.family import Step
from fedgraft.common.backbones.forward_steps import flatten, mean_of_pixels, pool, relu


def transform_pixels(net: Any, x: Tensor) -> Tensor:
    """Normalise images as GoogLeNet's and Inception's weights want them."""
    return net._transform_input(x)


def embed_patches(net: Any, x: Tensor) -> Tensor:
    """Images (n, 3, H, W) → tokens (n, 1 + patches, width), positions added."""
    x = net._process_input(x)
    class_token = net.class_token.expand(len(x), -1, -1)
    x = torch.cat([class_token, x], dim=1)
    return net.encoder.dropout(x + net.encoder.pos_embedding)


def take_class_token(net: Any, x: Tensor) -> Tensor:
    """Tokens (n, 1 + patches, width) → (n, width)."""
    return x[:, 0]


_VISION = "torchvision.models"
_FUNCTIONS = (
    relu,
    pool,
    flatten,
    mean_of_pixels,
    transform_pixels,
    embed_patches,
    take_class_token,
)
# by class: children by name, and functions with brackets
_ORDER = {
    "resnet.ResNet": ("conv1 bn1 relu maxpool layer1 layer2 layer3 layer4 avgpool flatten() fc"),
    "regnet.RegNet": "stem trunk_output avgpool flatten() fc",
    "mobilenetv2.MobileNetV2": "features pool() flatten() classifier",
    "mobilenetv3.MobileNetV3": "features avgpool flatten() classifier",
    "efficientnet.EfficientNet": "features avgpool flatten() classifier",
    "mnasnet.MNASNet": "layers mean_of_pixels() classifier",
    "convnext.ConvNeXt": "features avgpool classifier",
    "densenet.DenseNet": "features relu() pool() flatten() classifier",
    "vision_transformer.VisionTransformer": (
        "embed_patches() encoder.layers encoder.ln take_class_token() heads"
    ),
    "swin_transformer.SwinTransformer": "features norm permute avgpool flatten head",
    "maxvit.MaxVit": "stem blocks classifier",
    "vgg.VGG": "features avgpool flatten() classifier",
    "alexnet.AlexNet": "features avgpool flatten() classifier",
    "shufflenetv2.ShuffleNetV2": ("conv1 maxpool stage2 stage3 stage4 conv5 mean_of_pixels() fc"),
    "googlenet.GoogLeNet": (
        "transform_pixels() conv1 maxpool1 conv2 conv3 maxpool2 inception3a inception3b maxpool3"
        " inception4a inception4b inception4c inception4d inception4e maxpool4"
        " inception5a inception5b avgpool flatten() dropout fc"
    ),
    "inception.Inception3": (
        "transform_pixels() Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1 Conv2d_3b_1x1"
        " Conv2d_4a_3x3 maxpool2 Mixed_5b Mixed_5c Mixed_5d"
        " Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e"
        " Mixed_7a Mixed_7b Mixed_7c avgpool dropout flatten() fc"
    ),
}
# (n, channels, H, W)
_BLOCKS_OF_IMAGES = (
    "resnet.BasicBlock",
    "resnet.Bottleneck",
    "regnet.ResBottleneckBlock",
    "mobilenetv2.InvertedResidual",
    "mobilenetv3.InvertedResidual",
    "mnasnet._InvertedResidual",
    "efficientnet.MBConv",
    "efficientnet.FusedMBConv",
    "convnext.CNBlock",
    "densenet._DenseLayer",
)
# (n, …, channels)
_BLOCKS_OF_TOKENS = (
    "vision_transformer.EncoderBlock",
    "swin_transformer.SwinTransformerBlock",
    "swin_transformer.SwinTransformerBlockV2",
)


def _read_steps(text: str) -> Iterator[Step]:
    """Yield the steps that a text of the table names."""
    functions = {f"{function.__name__}()": function for function in _FUNCTIONS}
    for word in text.split():
        yield functions.get(word, word)


def _full_names(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{_VISION}.{name}" for name in names)


ORDER: Mapping[str, tuple[Step, ...]] = {
    f"{_VISION}.{name}": tuple(_read_steps(text)) for name, text in _ORDER.items()
}
USED_BY_STEPS: Mapping[Step, tuple[str, ...]] = {embed_patches: ("conv_proj",)}
BLOCK_TYPES: Mapping[str, bool] = {
    **dict.fromkeys(_full_names(_BLOCKS_OF_IMAGES), False),
    **dict.fromkeys(_full_names(_BLOCKS_OF_TOKENS), True),
}
