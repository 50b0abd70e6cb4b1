"""One image file → pixels: what Pillow opens here, DICOM in `client/readers/dicom.py`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.readers import dicom
from fedgraft.client.readers.source import Prepare, unreadable
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch, concatenate

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
CORRUPT = "cut off or corrupt"
# Pillow's modes of more than 8 bits, and of 1 or 8 bits in grey
_WIDE = ("I;16", "I;16L", "I;16B", "I", "F")
_GREY = ("1", "L")
_END_OF_JPEG = b"\xff\xd9"


def read_images(files: Sequence[str | Path], prepare: Prepare | None = None) -> Tensor | Batch:
    """Return images as `(n, C, H, W)`, uint8 or uint16, or what `prepare` makes of them.

    Args:
        prepare: applied to each `(1, C, H, W)` before they are put together.

    Raises:
        UserError: a file cannot be decoded, or sizes differ and there is no `prepare` to make them
            equal.
    """
    if prepare is None:
        return torch.cat(_alike([_decode(Path(file)) for file in files]))
    # one after the other: a hundred photographs in full size take a gigabyte
    return concatenate([prepare(_decode(Path(file))) for file in files])


def _alike(images: list[Tensor]) -> list[Tensor]:
    """Return images of one shape: grey ones among colour get three channels. Raise `UserError`."""
    shapes = {image.shape[1:] for image in images}
    if len(shapes) > 1 and any(shape[0] == 3 for shape in shapes):
        images = [image.expand(-1, 3, -1, -1) for image in images]
    if len({(image.shape, image.dtype) for image in images}) > 1:
        sizes = sorted({f"{image.shape[3]}×{image.shape[2]}" for image in images})
        what = f"images of several sizes or types: {', '.join(sizes[:4])}"
        raise UserError(what, remedy="resize them with `prepare`")
    return images


def examine(content: bytes) -> tuple[str, str]:
    """Return what is wrong with a file of these bytes, and whose image it is; each may be "".

    The words name a kind of problem and nothing of the file, so that they can be counted and told.
    """
    if dicom.is_dicom(content):
        return dicom.examine(content)
    problem = "" if _is_sound(content) else CORRUPT
    return problem, ""


def _decode(file: Path) -> Tensor:
    """Return one image `(1, C, H, W)`, turned upright.

    Grey stays grey (16 bits stay 16), anything else becomes RGB.
    """
    from PIL import Image

    try:
        content = file.read_bytes()
        if dicom.is_dicom(content):
            pixels = dicom.decode(content)
        else:
            pixels = _pixels(content)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise unreadable(file, error) from None
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(planes[None].copy())


def _pixels(content: bytes) -> np.ndarray:
    """Return grey `(H, W)` uint8 or uint16, or colour `(H, W, 3)` uint8.

    Raises ValueError, and what Pillow raises.
    """
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode not in _WIDE:
            mode = "L" if image.mode in _GREY else "RGB"
            return np.asarray(image.convert(mode))
        wide = np.asarray(image)
    # a cast would wrap around in silence
    if image.mode == "F" or wide.min() < 0 or wide.max() > 65535:
        raise ValueError("its values are not those of an 8- or 16-bit image")
    return wide.astype(np.uint16)


def _is_sound(content: bytes) -> bool:
    """Return whether the bytes are an image that opens and is whole.

    That is told by checksums (PNG) or the end marker (JPEG).
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format == "JPEG" and _END_OF_JPEG not in content[-64:]:
                return False
            image.verify()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return True
