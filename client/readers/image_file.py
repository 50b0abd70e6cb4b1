"""One image file → pixels: what Pillow opens here, DICOM in `client/readers/dicom.py`."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.readers import dicom
from fedgraft.client.readers.source import Prepare, unreadable
from fedgraft.common.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
CORRUPT = "cut off or corrupt"


def read_images(files: list[str] | list[Path], prepare: Prepare | None = None) -> Tensor:
    """Images as `(n, C, H, W)`, uint8 or uint16; `prepare` is applied to each `(1, C, H, W)` before
    stacking.

    Raises:
        UserError: a file cannot be decoded, or sizes differ and there is no `prepare` to make them
            equal.
    """
    if prepare is not None:
        return torch.cat([prepare(_decode(Path(file))) for file in files])
    images = [_decode(Path(file)) for file in files]
    if len({image.shape[1:] for image in images}) > 1 and any(
        image.shape[1] == 3 for image in images
    ):
        images = [image.expand(-1, 3, -1, -1) for image in images]  # grey among colour
    if len({(image.shape, image.dtype) for image in images}) > 1:
        sizes = ", ".join(sorted({f"{i.shape[3]}×{i.shape[2]}" for i in images})[:4])
        raise UserError(
            f"images of several sizes or types: {sizes}", remedy="resize them with `prepare`"
        )
    return torch.cat(images)


def examine(content: bytes) -> tuple[str, str]:
    """What is wrong with a file of these bytes ("" if nothing), and whose image it is ("" if it
    does not say).

    The words name a kind of problem and nothing of the file, so that they can be counted and told.
    """
    if dicom.is_dicom(content):
        return dicom.examine(content)
    return ("" if _sound(content) else CORRUPT), ""


def _decode(file: Path) -> Tensor:
    """One image `(1, C, H, W)`: grey stays grey (16 bits stay 16), anything else becomes RGB,
    turned upright.
    """
    from PIL import Image

    try:
        content = file.read_bytes()
        decode: Callable[[bytes], np.ndarray] = dicom.decode if dicom.is_dicom(content) else _pixels
        pixels = decode(content)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise unreadable(file, error) from None
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(planes[None].copy())


def _pixels(content: bytes) -> np.ndarray:
    """Grey `(H, W)` uint8 or uint16, or colour `(H, W, 3)` uint8. Raises ValueError and what Pillow
    raises.
    """
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode not in ("I;16", "I;16L", "I;16B", "I", "F"):
            return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
        wide = np.asarray(image)
    if (
        image.mode == "F" or wide.min() < 0 or wide.max() > 65535
    ):  # a cast would wrap around in silence
        raise ValueError("its values are not those of an 8- or 16-bit image")
    return wide.astype(np.uint16)


def _sound(content: bytes) -> bool:
    """Whether the bytes are an image that opens, with checksums (PNG) or the end marker (JPEG) in
    place.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format == "JPEG" and b"\xff\xd9" not in content[-64:]:
                return False
            image.verify()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return True
