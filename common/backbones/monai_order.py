"""In which order MONAI's networks call their children, and which are their blocks.

Written down from MONAI's sources; a test holds each against its own forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedgraft.common.backbones.family import Step
from fedgraft.common.backbones.forward_steps import flatten
from fedgraft.common.backbones.unet_encoder import mean_of_positions

_NETS = "monai.networks.nets"
_ENCODER = "fedgraft.common.backbones.unet_encoder.UNetEncoder"
ORDER: Mapping[str, tuple[Step, ...]] = {
    f"{_NETS}.resnet.ResNet": (
        "conv1",
        "bn1",
        "act",
        "maxpool",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "avgpool",
        flatten,
        "fc",
    ),
    f"{_NETS}.densenet.DenseNet": ("features", "class_layers"),
    _ENCODER: ("down", mean_of_positions, "head"),
}
# of a dense block the transition behind it: its layers give what came before them, too
BLOCK_TYPES: Mapping[str, bool] = {
    f"{_NETS}.resnet.ResNetBlock": False,
    f"{_NETS}.resnet.ResNetBottleneck": False,
    f"{_NETS}.densenet._Transition": False,
    f"{_NETS}.basic_unet.TwoConv": False,
    "monai.networks.blocks.convolutions.ResidualUnit": False,
}
