"""Images as a hospital has them → images as a backbone was trained on them.

The same steps as torchvision's presets for classification (shorter side resized, centre cropped,
scaled to 0–1, normalised), for whole batches, and as plain numbers that travel with a backbone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """What is done to images before a backbone sees them; nothing but a cast to float32 for tables
    (`mean` empty).

    Attributes:
        size: length of the shorter side after resizing, pixels; None leaves it.
        crop: side of the centre crop, pixels; None crops nothing.
        mean: subtracted from each channel, on the scale 0–1.
        std: each channel is divided by it, on the scale 0–1.
        interpolation: bilinear or bicubic.
        antialias: smooth before shrinking.
    """

    size: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = "bilinear"
    antialias: bool = True

    def __call__(self, images: Tensor) -> Tensor:
        """Images (n, 1 or 3, H, W), uint8, uint16 or float on 0–1 → float32 (n, 3, crop, crop).

        A grey image becomes three equal channels. Tables (n, columns) only become float32.
        """
        if not self.mean:
            return images.to(torch.float32)
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise UserError(
                f"images of shape {tuple(images.shape)}; 1 (grey) or 3 (RGB) channels are needed",
                remedy="give images as (n, channels, height, width)",
            )
        whole = {torch.uint8: 255.0, torch.uint16: 65535.0}.get(images.dtype)
        pixels = images.to(torch.float32)
        if self.size is not None:
            pixels = self._resize(pixels, whole)
        if self.crop is not None:
            pixels = _centre_crop(pixels, self.crop)
        if whole is not None:
            pixels = pixels / whole
        mean = torch.tensor(self.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        return (pixels.expand(-1, len(self.mean), -1, -1) - mean) / std

    def _resize(self, pixels: Tensor, whole: float | None) -> Tensor:
        height, width = pixels.shape[-2:]
        short, long = min(height, width), max(height, width)
        target = int(self.size or short)
        other = int(target * long / short)
        shape = (target, other) if height <= width else (other, target)
        if shape == (height, width):
            return pixels
        pixels = F.interpolate(
            pixels, shape, mode=self.interpolation, align_corners=False, antialias=self.antialias
        )
        # pixels that came as integers stay integers, as in torchvision
        return pixels if whole is None else pixels.clamp(0.0, whole).round()

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocess:
        """The opposite of `to_json`. Raises `UserError` for anything that `to_json` would not have
        written.
        """
        try:
            made = cls(
                **{
                    **data,
                    "mean": tuple(map(float, data["mean"])),
                    "std": tuple(map(float, data["std"])),
                }
            )
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(
                f"a preprocessing that cannot be read ({error})", remedy="save the backbone again"
            ) from error
        sides_fit = all(
            v is None or (isinstance(v, int) and 1 <= v <= 4096) for v in (made.size, made.crop)
        )
        numbers_fit = all(map(math.isfinite, made.mean)) and all(
            math.isfinite(s) and s > 0 for s in made.std
        )
        if not (
            sides_fit
            and numbers_fit
            and len(made.mean) == len(made.std)
            and len(made.mean) in (0, 3)
            and made.interpolation in ("bilinear", "bicubic")
            and isinstance(made.antialias, bool)
        ):
            raise UserError(
                f"a preprocessing that cannot be: {made}", remedy="save the backbone again"
            )
        return made


def for_images(size: int) -> Preprocess:
    """Square images of `size` pixels, normalised as for ImageNet: how the CIFAR ResNets were
    trained.
    """
    return Preprocess(size=size, crop=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _centre_crop(pixels: Tensor, side: int) -> Tensor:
    height, width = pixels.shape[-2:]
    if min(height, width) < side:  # only where nothing was resized: pad with zeros all around
        down, right = max(side - height, 0), max(side - width, 0)
        pixels = F.pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))
        height, width = pixels.shape[-2:]
    top, left = round((height - side) / 2), round((width - side) / 2)
    return pixels[..., top : top + side, left : left + side]
