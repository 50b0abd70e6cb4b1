"""Images as a hospital has them → images as a backbone was trained on them.

The same steps as torchvision's presets for classification (shorter side resized, centre cropped,
scaled to 0–1, normalised), for whole batches, and as plain numbers that travel with a backbone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.augment_boxes import augment_images_and_boxes
from fedgraft.common.inputs.augment_images import augment_images, augment_images_and_masks
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.material import Input, Preparation
from fedgraft.common.inputs.public_patches import cut_patches
from fedgraft.common.plan.backbone_section import MOST_CHANNELS, BackboneSection
from fedgraft.common.plan.task_section import TaskSection

# what integer pixels have at their brightest
WHITE = {torch.uint8: 255.0, torch.uint16: 65535.0}
# pixels
LARGEST_SIDE = 4096
DEFAULT_SIDE = 32
INTERPOLATIONS = ("bilinear", "bicubic")
GREY = 1
COLOURS = 3
# of red, green and blue (ITU-R BT.601), as Pillow makes grey images
LUMINANCE = (0.299, 0.587, 0.114)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """What is done to images before a backbone sees them.

        preprocess = Preprocess(size=256, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        preprocess(images)["image"].shape  # uint8 (n, 1 or 3, H, W) → (n, 3, 224, 224)
        preprocess.with_channels(4)(sequences)["image"].shape  # (n, 4, H, W) → (n, 4, 224, 224)

    Attributes:
        size: length of the shorter side after resizing, pixels; None leaves it.
        crop: side of the centre crop, pixels; None crops nothing.
        mean: subtracted from each channel, on the scale 0–1; as many as the network's channels.
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

    def __call__(self, raw: Tensor) -> Batch:
        """Images (n, channels, H, W), uint8, uint16 or float on 0–1 → float32 (n, channels of the
        network, crop, crop).

        A grey image becomes three equal channels where the network takes colour, and one in colour
        its luminance where it takes grey. Of other numbers an image has as many as the network.

        Raises:
            UserError: another shape.
        """
        self._check_channels(raw)
        white = WHITE.get(raw.dtype)
        pixels = raw.to(torch.float32)
        if self.size is not None:
            pixels = self._resize(pixels, self.size, white)
        if self.crop is not None:
            pixels = crop_centre(pixels, self.crop)
        if white is not None:
            pixels = pixels / white
        mean = torch.tensor(self.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        return Batch({"image": (self._bring_to_channels(pixels) - mean) / std})

    @property
    def channels(self) -> int | None:
        """Return how many channels the network takes; None: it is not known."""
        return len(self.mean) or None

    def with_channels(self, channels: int) -> Preprocess:
        """Return the same for a network of so many: mean and std are taken in turn, as the weights
        of its first convolution are; for one channel they are the means over all.
        """
        if channels == self.channels or not self.mean:
            return self
        if channels == 1:
            own = len(self.mean)
            return replace(self, mean=(sum(self.mean) / own,), std=(sum(self.std) / own,))
        turns = [channel % len(self.mean) for channel in range(channels)]
        mean = tuple(self.mean[turn] for turn in turns)
        std = tuple(self.std[turn] for turn in turns)
        return replace(self, mean=mean, std=std)

    def _check_channels(self, raw: Tensor) -> None:
        """Raise `UserError` for images that have no channels of this network."""
        wanted = (GREY, COLOURS)
        words = "1 (grey) or 3 (RGB) channels are needed"
        if self.channels not in (None, *wanted):
            wanted = (self.channels,)
            words = f"{self.channels} channels are needed, as backbone.channels says"
        if raw.ndim != 4 or raw.shape[1] not in wanted:
            raise UserError(
                f"images of shape {tuple(raw.shape)}; {words}",
                remedy="give images as (n, channels, height, width)",
            )

    def _bring_to_channels(self, pixels: Tensor) -> Tensor:
        """Return images with the network's channels: grey ones repeated, or luminance."""
        if len(self.mean) == GREY and pixels.shape[1] == COLOURS:
            return (pixels * torch.tensor(LUMINANCE).view(1, -1, 1, 1)).sum(1, keepdim=True)
        return pixels.expand(-1, len(self.mean), -1, -1)

    def _resize(self, pixels: Tensor, target: int, white: float | None) -> Tensor:
        height, width = pixels.shape[-2:]
        shape = shape_with_shorter_side(height, width, target)
        if shape == (height, width):
            return pixels
        options = {"mode": self.interpolation, "antialias": self.antialias}
        pixels = F.interpolate(pixels, shape, align_corners=False, **options)
        if white is None:
            return pixels
        # pixels that came as integers stay integers, as in torchvision
        return pixels.clamp(0.0, white).round()

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocess:
        """Return the opposite of `to_json`. Raise `UserError` for what it never writes."""
        remedy = "save the backbone again"
        try:
            values = dict(data)
            values["mean"] = tuple(map(float, data["mean"]))
            values["std"] = tuple(map(float, data["std"]))
            preprocess = cls(**values)
        except (TypeError, ValueError, KeyError) as error:
            what = f"a preprocessing that cannot be read ({error})"
            raise UserError(what, remedy=remedy) from error
        if not preprocess.is_possible():
            raise UserError(f"a preprocessing that cannot be: {preprocess}", remedy=remedy)
        return preprocess

    def is_possible(self) -> bool:
        """Whether every value is of its type and in its range."""
        has_sides = _is_side(self.size) and _is_side(self.crop)
        is_finite = all(map(math.isfinite, (*self.mean, *self.std)))
        is_positive = all(deviation > 0 for deviation in self.std)
        has_channels = len(self.mean) == len(self.std) and len(self.mean) <= MOST_CHANNELS
        is_known = self.interpolation in INTERPOLATIONS and isinstance(self.antialias, bool)
        return has_sides and is_finite and is_positive and has_channels and is_known


def for_images(size: int) -> Preprocess:
    """Return a preparation to square images of `size` pixels, normalised as for ImageNet: how the
    CIFAR ResNets were trained.
    """
    return Preprocess(size=size, crop=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _is_side(side: Any) -> bool:
    """Whether it is a number of pixels, or None."""
    return side is None or (isinstance(side, int) and 1 <= side <= LARGEST_SIDE)


def shape_with_shorter_side(height: int, width: int, target: int) -> tuple[int, int]:
    """Return height and width of an image whose shorter side was brought to `target`."""
    if height <= width:
        return target, int(target * width / height)
    return int(target * height / width), target


def crop_centre(pixels: Tensor, side: int) -> Tensor:
    """Return the middle of images, zeros around those that are smaller."""
    height, width = pixels.shape[-2:]
    # only where nothing was resized
    if min(height, width) < side:
        pixels = _pad_around(pixels, side)
        height, width = pixels.shape[-2:]
    top = round((height - side) / 2)
    left = round((width - side) / 2)
    return pixels[..., top : top + side, left : left + side]


def _pad_around(pixels: Tensor, side: int) -> Tensor:
    """Return images of at least `side` pixels each way, zeros around what there was."""
    height, width = pixels.shape[-2:]
    rows = max(side - height, 0)
    columns = max(side - width, 0)
    left = columns // 2
    top = rows // 2
    return F.pad(pixels, (left, columns - left, top, rows - top))


def example_image(preparation: Preparation, backbone: BackboneSection, task: TaskSection) -> Batch:
    """Return one black image of the size that a plan's backbone sees."""
    size = backbone.image_size or DEFAULT_SIDE
    channels = COLOURS
    if isinstance(preparation, Preprocess):
        size = preparation.crop or preparation.size or size
        channels = preparation.channels or channels
    return Batch({"image": torch.zeros(1, channels, size, size)})


def see_whole(preparation: Preparation) -> Preparation:
    """Return a preparation that brings the shorter side to what a network sees: no margin is cut
    off.
    """
    if isinstance(preparation, Preprocess) and preparation.crop is not None:
        return replace(preparation, size=preparation.crop)
    return preparation


IMAGE = Input(
    name="image",
    plural="X-rays or other images",
    read_preparation=Preprocess.from_json,
    example=example_image,
    augment=augment_images,
    public=cut_patches,
    whole=see_whole,
    augment_pairs=augment_images_and_masks,
    augment_boxes=augment_images_and_boxes,
)
