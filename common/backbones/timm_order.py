"""In which order timm's networks call their children, and which are residual blocks.

Written down from timm's sources; a test holds each of these classes against its own forward pass.
Networks of other classes work without kept activations and with the features of their last layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from fedgraft.common.backbones.family import Step


def embed_positions(net: Any, x: Tensor) -> Tensor:
    """Tokens of patches → tokens with class token and positions, (n, tokens, width)."""
    return net._pos_embed(x)


def pool_tokens(net: Any, x: Tensor) -> Tensor:
    """Tokens (n, tokens, width) → (n, width)."""
    return net.pool(x)


def mean_of_tokens(net: Any, x: Tensor) -> Tensor:
    """Tokens (n, tokens, width) → (n, width)."""
    return x.mean(dim=1)


_MODELS = "timm.models"
_FUNCTIONS = (embed_positions, pool_tokens, mean_of_tokens)
# by class: children by name, and functions with brackets
_ORDER = {
    "efficientnet.EfficientNet": "conv_stem bn1 blocks conv_head bn2 global_pool classifier",
    "mobilenetv3.MobileNetV3": (
        "conv_stem bn1 blocks global_pool conv_head norm_head act2 flatten classifier"
    ),
    "ghostnet.GhostNet": (
        "conv_stem bn1 act1 blocks global_pool conv_head act2 flatten classifier"
    ),
    "resnet.ResNet": "conv1 bn1 act1 maxpool layer1 layer2 layer3 layer4 global_pool fc",
    "regnet.RegNet": "stem s1 s2 s3 s4 final_conv head",
    "byobnet.ByobNet": "stem stages final_conv head",
    "densenet.DenseNet": "features global_pool head_drop classifier",
    "convnext.ConvNeXt": "stem stages norm_pre head",
    "swin_transformer.SwinTransformer": "patch_embed layers norm head",
    "mlp_mixer.MlpMixer": "stem blocks norm mean_of_tokens() head_drop head",
    "vision_transformer.VisionTransformer": (
        "patch_embed embed_positions() patch_drop norm_pre blocks norm pool_tokens() fc_norm"
        " head_drop head"
    ),
}
_BLOCKS_OF_IMAGES = (
    "_efficientnet_blocks.ConvBnAct",
    "_efficientnet_blocks.DepthwiseSeparableConv",
    "_efficientnet_blocks.InvertedResidual",
    "_efficientnet_blocks.UniversalInvertedResidual",
    "_efficientnet_blocks.EdgeResidual",
    "ghostnet.GhostBottleneck",
    "resnet.BasicBlock",
    "resnet.Bottleneck",
    "regnet.Bottleneck",
    "byobnet.RepVggBlock",
    "byobnet.BasicBlock",
    "byobnet.BottleneckBlock",
    "convnext.ConvNeXtBlock",
)
_BLOCKS_OF_TOKENS = (
    "vision_transformer.Block",
    "swin_transformer.SwinTransformerBlock",
    "mlp_mixer.MixerBlock",
)


def _read_steps(text: str) -> Iterator[Step]:
    """Yield the steps that a text of the table names."""
    functions = {f"{function.__name__}()": function for function in _FUNCTIONS}
    for word in text.split():
        yield functions.get(word, word)


ORDER: Mapping[str, tuple[Step, ...]] = {
    f"{_MODELS}.{name}": tuple(_read_steps(text)) for name, text in _ORDER.items()
}
USED_BY_STEPS: Mapping[Step, tuple[str, ...]] = {}
BLOCK_TYPES: Mapping[str, bool] = {
    **{f"{_MODELS}.{name}": False for name in _BLOCKS_OF_IMAGES},
    **{f"{_MODELS}.{name}": True for name in _BLOCKS_OF_TOKENS},
}
