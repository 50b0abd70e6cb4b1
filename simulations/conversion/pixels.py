"""How a model's pixels are scaled: steps at its beginning, under its fingerprint.

Images come to a network on 0–1, as (n, 3, H, W) in red, green, blue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image import IMAGENET_MEAN, IMAGENET_STD
from fedgraft.simulations.conversion.flat_network import FlatStep


@dataclass(frozen=True)
class Scale:
    """(pixel − mean) / std of each channel, on 0–1, and whether channels are turned round first.

    Attributes:
        mean, std: in the order that the model has its channels in.
        blue_first: whether that order is blue, green, red.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    blue_first: bool = False


# by the names of `--pixels`
SCALES: Mapping[str, Scale] = {
    # torchvision, timm; Keras calls it torch
    "imagenet": Scale(IMAGENET_MEAN, IMAGENET_STD),
    # Keras' MobileNet, Inception, Xception, ResNetV2
    "minus-one-to-one": Scale((0.5,) * 3, (0.5,) * 3),
    # Keras' EfficientNet, ConvNeXt, MobileNetV3, which scale pixels themselves
    "0-255": Scale((0.0,) * 3, (1 / 255,) * 3),
    "0-1": Scale((0.0,) * 3, (1.0,) * 3),
    # Keras' ResNet and VGG
    "caffe": Scale((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255,) * 3, blue_first=True),
}


def choose_scale(name: str | None, mean: Sequence[float], std: Sequence[float]) -> Scale:
    """Return a scale by its name, or by numbers. Raise `UserError` where neither or both are said,
    or they are none.
    """
    remedy = f"say how it was trained: --pixels {'|'.join(SCALES)}, or --mean R,G,B --std R,G,B"
    if name is not None and not mean and not std:
        if name not in SCALES:
            raise UserError(f"pixels {name!r} are not known", where="--pixels", remedy=remedy)
        return SCALES[name]
    if name is not None or not (mean and std):
        what = "how pixels are scaled is said twice"
        if name is None:
            what = "how the model's pixels are scaled is not said, and it is not in the file"
        raise UserError(what, where="--pixels", remedy=remedy)
    finite = np.isfinite([*mean, *std]).all()
    if len(mean) != 3 or len(std) != 3 or not finite or min(std) <= 0:
        what = f"mean {list(mean)}, std {list(std)}"
        raise UserError(what, where="--mean", remedy="give three numbers each, on 0–1, std above 0")
    return Scale(tuple(mean), tuple(std))


def read_numbers(text: str | None, option: str) -> tuple[float, ...]:
    """Return the numbers of `R,G,B`. Raise `UserError` where they are none."""
    if text is None:
        return ()
    try:
        return tuple(map(float, text.split(",")))
    except ValueError as error:
        remedy = "give three numbers, such as 0.5,0.5,0.5"
        raise UserError(f"{text!r}", where=option, remedy=remedy) from error


def scale_steps(scale: Scale, channels_last: bool) -> list[FlatStep]:
    """Return the steps from images (n, 3, H, W) on 0–1 to what a model takes."""
    steps: list[FlatStep] = []
    if scale.blue_first:
        steps.append(FlatStep({"op": "take", "axis": 1, "indices": (2, 1, 0)}, [0]))
    if any(scale.mean):
        steps.append(FlatStep({"op": "sub"}, [len(steps), _by_channel(scale.mean)]))
    if any(value != 1 for value in scale.std):
        steps.append(FlatStep({"op": "div"}, [len(steps), _by_channel(scale.std)]))
    if channels_last:
        steps.append(FlatStep({"op": "transpose", "axes": (0, 2, 3, 1)}, [len(steps)]))
    return steps


def _by_channel(values: Sequence[float]) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, 3, 1, 1)
