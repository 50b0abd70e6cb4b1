"""What a plan says of its images' values: how many channels they have, and through which windows
they are seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedgraft.common.plan.backbone_section import BackboneSection

# channels of images for networks that take colour, or grey
USUAL = (1, 3)
WHITE = 65535


class NotPixels(ValueError):
    """The values of a file are not those of an image that is read here; says why, and no value."""


@dataclass(frozen=True)
class PixelForm:
    """How the plan's images are read.

        PixelForm(channels=4)
        PixelForm(windows=((0, 80), (-20, 180), (-800, 2000)))

    Attributes:
        channels: of the network; None: three.
        windows: lowest and highest value of each; none: images are what they show.
    """

    channels: int | None = None
    windows: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, backbone: BackboneSection) -> PixelForm:
        """Return what a plan's backbone says of its images."""
        return cls(backbone.channels, backbone.windows)

    @property
    def is_usual(self) -> bool:
        """Whether images are grey or in colour, and what they show."""
        return not self.windows and self.channels in (None, *USUAL)

    @property
    def counts(self) -> tuple[int, ...]:
        """Return how many channels an image may have in its file."""
        if self.windows:
            return (1,)
        if self.channels in (None, *USUAL):
            return USUAL
        return (self.channels,)

    def planes(self, pixels: np.ndarray) -> np.ndarray:
        """Return an image `(H, W)`, `(H, W, C)` or `(C, H, W)` as `(C, H, W)`: the channels are the
        last axis where that has as many values as an image may have channels, else the first.

        Raises:
            NotPixels: neither has.
        """
        if pixels.ndim == 2:
            pixels = pixels[None]
        elif pixels.ndim == 3 and pixels.shape[2] in self.counts:
            pixels = pixels.transpose(2, 0, 1)
        if pixels.ndim != 3 or 0 in pixels.shape:
            raise NotPixels("an array that is no image: neither (H, W), (H, W, C) nor (C, H, W)")
        if pixels.shape[0] not in self.counts:
            raise NotPixels(f"images of other than {self._words()}")
        return pixels

    def through_windows(self, planes: np.ndarray) -> np.ndarray:
        """Return a grey image `(1, H, W)` as each window shows it, uint16 `(windows, H, W)`: its
        lowest value black, its highest white. Without windows the image as it is.
        """
        if not self.windows:
            return planes
        shown: list[np.ndarray] = []
        for low, high in self.windows:
            brightness = (planes[0].astype(np.float64) - low) / (high - low)
            shown.append(np.rint(np.clip(brightness, 0, 1) * WHITE).astype(np.uint16))
        return np.stack(shown)

    def _words(self) -> str:
        if self.windows:
            return "one channel, and backbone.windows are for grey ones"
        if self.is_usual:
            return "1 or 3 channels"
        return f"{self.channels} channels, which backbone.channels wants"


AS_USUAL = PixelForm()
