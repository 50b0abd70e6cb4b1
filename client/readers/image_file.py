"""One image file → pixels: what Pillow opens here, DICOM in `client/readers/dicom.py`."""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.readers import dicom
from fedgraft.client.readers.bit_depth import FULL, spread
from fedgraft.client.readers.dicom import BLANK, Examined, is_blank
from fedgraft.client.readers.source import Prepare, unreadable
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch, concatenate

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
CORRUPT = "cut off or corrupt"
# Pillow's modes of more than 8 bits, and of 1 or 8 bits in grey
_WIDE = ("I;16", "I;16L", "I;16B", "I", "F")
_GREY = ("1", "L")
_END_OF_JPEG = b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n"
# TIFF 6.0, sections 4 and 16
_BITS_PER_SAMPLE = 258
_MAX_SAMPLE_VALUE = 281
# bits; fewer are no kind of 16-bit image
_FEWEST = 8
# Pillow's formats that are often not compressed
_UNPACKED = ("TIFF", "BMP")
# bytes of a file beside its pixels, and how many pixels of a blank image take more than a byte
_HEADER = 200
_HEADERS = {"JPEG": 1000}
_LEAST_PACKED = 32


class _NotPixels(ValueError):
    """The values of a file are not those of an image that is read here."""


def read_images(
    files: Sequence[str | Path], prepare: Prepare | None = None, bits: int | None = None
) -> Tensor | Batch:
    """Return images as `(n, C, H, W)`, uint8 or uint16, or what `prepare` makes of them.

    Args:
        prepare: applied to each `(1, C, H, W)` before they are put together.
        bits: how many of 16 bits images use whose files do not say it.

    Raises:
        UserError: a file cannot be decoded, or sizes differ and there is no `prepare` to make them
            equal.
    """
    if prepare is None:
        return torch.cat(_alike([_decode(Path(file), bits) for file in files]))
    # one after the other: a hundred photographs in full size take a gigabyte
    return concatenate([prepare(_decode(Path(file), bits)) for file in files])


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


def examine(content: bytes) -> Examined:
    """Return what a file of these bytes tells before it is used."""
    if dicom.is_dicom(content):
        return dicom.examine(content)
    try:
        return _examine_picture(content)
    except _broken():
        return Examined(CORRUPT)


def _decode(file: Path, bits: int | None) -> Tensor:
    """Return one image `(1, C, H, W)`, turned upright.

    Grey stays grey (16 bits stay 16), anything else becomes RGB.
    """
    try:
        content = file.read_bytes()
        if dicom.is_dicom(content):
            pixels = dicom.decode(content, bits)
        else:
            pixels = _on_all_bits(content, _pixels(content), bits)
    except _broken() as error:
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
        raise _NotPixels("values that are not those of an 8- or 16-bit image")
    return wide.astype(np.uint16)


def _on_all_bits(content: bytes, pixels: np.ndarray, bits: int | None) -> np.ndarray:
    """Return pixels of 16 bits spread over all of them. Raise ValueError where they have more."""
    if pixels.dtype != np.uint16:
        return pixels
    used = _stated_bits(content) or bits
    return pixels if used is None else spread(pixels, used)


def _stated_bits(content: bytes) -> int | None:
    """Return how many bits a grey image of 16 uses, where its file says it."""
    from PIL import Image

    if content.startswith(_PNG):
        return _significant_bits(content)
    with Image.open(io.BytesIO(content)) as image:
        tags = getattr(image, "tag_v2", {})
        stored = tags.get(_BITS_PER_SAMPLE, (FULL,))[0]
        highest = tags.get(_MAX_SAMPLE_VALUE)
    if stored < FULL:
        return stored
    if highest is None:
        return None
    highest = int(highest[0] if isinstance(highest, tuple) else highest)
    used = highest.bit_length()
    # another value is that of this image's brightest pixel
    is_white = highest == (1 << used) - 1
    return used if is_white and _FEWEST < used < FULL else None


def _significant_bits(content: bytes) -> int | None:
    """Return the bits of the first channel in PNG's sBIT chunk; None where there is none."""
    at = len(_PNG)
    # it stands in front of the pixels
    while at + 8 < len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        if kind == b"sBIT" and length:
            return content[at + 8] or None
        if kind in (b"IDAT", b"PLTE"):
            return None
        at += length + 12
    return None


def _examine_picture(content: bytes) -> Examined:
    """Return what an image that Pillow opens tells. Raise what Pillow raises where it is damaged.

    That it is whole is told by checksums (PNG) or the end marker (JPEG). Decoded it is only where
    its values matter: they have 16 bits, or it may be blank.
    """
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        if image.format == "JPEG" and _END_OF_JPEG not in content[-64:]:
            return Examined(CORRUPT)
        is_wide = image.mode in _WIDE
        # a blank image is compressed to almost nothing, if it is compressed
        header = _HEADERS.get(str(image.format), _HEADER)
        is_small = len(content) < header + image.width * image.height // _LEAST_PACKED
        is_packed = image.format not in _UNPACKED
        image.verify()
    if not is_wide and is_packed and not is_small:
        return Examined()

    try:
        pixels = _pixels(content)
    except _NotPixels as error:
        return Examined(str(error))
    if is_blank(pixels):
        return Examined(BLANK)
    if pixels.dtype != np.uint16:
        return Examined()
    brightest = int(pixels.max())
    stated = _stated_bits(content)
    if stated is None:
        return Examined(brightest=brightest)
    if brightest >= 1 << stated:
        return Examined(f"values of more than the {stated} bits that the file states")
    return Examined()


@functools.cache
def _broken() -> tuple[type[Exception], ...]:
    """Return what is raised for a file that is cut off, corrupt or no image."""
    from PIL import Image

    return (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
