"""One image file → pixels: what Pillow opens here, DICOM in `client/readers/dicom.py`."""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.readers import dicom
from fedgraft.client.readers.bit_depth import FULL, spread
from fedgraft.client.readers.dicom import BLANK, Examined, is_blank
from fedgraft.client.readers.image_array_file import is_array, read_planes
from fedgraft.client.readers.pixel_form import AS_USUAL, NotPixels, PixelForm
from fedgraft.client.readers.source import Prepare, unreadable
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch, concatenate
from fedgraft.common.plan.backbone_section import MOST_CHANNELS

if TYPE_CHECKING:
    from PIL import Image

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


def read_images(
    files: Sequence[str | Path],
    prepare: Prepare | None = None,
    bits: int | None = None,
    form: PixelForm = AS_USUAL,
) -> Tensor | Batch:
    """Return images as `(n, C, H, W)`, uint8, uint16 or float32 on 0–1, or what `prepare` makes of
    them.

    Args:
        prepare: applied to each `(1, C, H, W)` before they are put together.
        bits: how many of 16 bits images use whose files do not say it.
        form: what the plan says of channels and windows.

    Raises:
        UserError: a file cannot be decoded, or sizes differ and there is no `prepare` to make them
            equal.
    """
    if prepare is None:
        return torch.cat(_alike([_decode(Path(file), bits, form) for file in files]))
    # one after the other: a hundred photographs in full size take a gigabyte
    return concatenate([prepare(_decode(Path(file), bits, form)) for file in files])


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


def examine(content: bytes, form: PixelForm = AS_USUAL) -> Examined:
    """Return what a file of these bytes tells before it is used, in the form that a plan wants."""
    if is_array(content) or not form.is_usual:
        return _examine_in_form(content, form)
    if dicom.is_dicom(content):
        return dicom.examine(content)
    try:
        return _examine_picture(content)
    except _broken():
        return Examined(CORRUPT)


def _decode(file: Path, bits: int | None, form: PixelForm) -> Tensor:
    """Return one image `(1, C, H, W)`, turned upright.

    Grey stays grey (16 bits stay 16), anything else becomes RGB; where the plan has other channels
    or windows, what it wants.
    """
    try:
        planes = form.through_windows(_read_planes(file.read_bytes(), bits, form))
    except _broken() as error:
        raise unreadable(file, error) from None
    return torch.from_numpy(planes[None].copy())


def _read_planes(content: bytes, bits: int | None, form: PixelForm) -> np.ndarray:
    """Return an image `(C, H, W)` before any window. Raise ValueError, and what Pillow raises."""
    if is_array(content):
        return read_planes(content, form)
    if form.windows:
        is_dicom = dicom.is_dicom(content)
        return form.planes(dicom.decode_values(content) if is_dicom else _pixels(content))
    if dicom.is_dicom(content):
        return form.planes(dicom.decode(content, bits))
    if form.is_usual:
        return form.planes(_on_all_bits(content, _pixels(content), bits))
    pages = [_on_all_bits(content, page, bits) for page in _pages(content)]
    return form.planes(np.stack(pages) if len(pages) > 1 else pages[0])


def _pages(content: bytes) -> list[np.ndarray]:
    """Return the pages of a file, such as a TIFF with a channel a page: grey `(H, W)`, or colour.

    Raises:
        NotPixels: several pages that are not grey and of one size.
    """
    from PIL import Image

    pages: list[np.ndarray] = []
    with Image.open(io.BytesIO(content)) as opened:
        count = getattr(opened, "n_frames", 1)
        if count > MOST_CHANNELS:
            raise NotPixels(f"more than {MOST_CHANNELS} pages")
        for number in range(count):
            opened.seek(number)
            pages.append(_pixels_of(opened))
    if count > 1 and ({page.ndim for page in pages} != {2} or len({p.shape for p in pages}) > 1):
        raise NotPixels("several pages that are not grey, or of several sizes")
    return pages


def _examine_in_form(content: bytes, form: PixelForm) -> Examined:
    """Return what an array tells, or an image whose channels or windows the plan says: it is
    decoded.
    """
    patient = ""
    if dicom.is_dicom(content):
        seen = dicom.examine(content)
        if seen.problem:
            return seen
        patient = seen.patient
    try:
        planes = _read_planes(content, None, form)
    except NotPixels as error:
        return Examined(str(error), patient)
    except _broken():
        return Examined(CORRUPT, patient)
    if (planes == planes[:, :1, :1]).all():
        return Examined(BLANK, patient)
    if form.windows or planes.dtype != np.uint16:
        return Examined("", patient)
    return Examined("", patient, int(planes.max()))


def _pixels(content: bytes) -> np.ndarray:
    """Return grey `(H, W)` uint8 or uint16, or colour `(H, W, 3)` uint8.

    Raises ValueError, and what Pillow raises.
    """
    from PIL import Image

    with Image.open(io.BytesIO(content)) as opened:
        return _pixels_of(opened)


def _pixels_of(opened: Image.Image) -> np.ndarray:
    """Return the pixels of the page that is open, turned upright. Raise as `_pixels`."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(opened)
    if image.mode not in _WIDE:
        mode = "L" if image.mode in _GREY else "RGB"
        return np.asarray(image.convert(mode))
    wide = np.asarray(image)
    # a cast would wrap around in silence
    if image.mode == "F" or wide.min() < 0 or wide.max() > 65535:
        raise NotPixels("values that are not those of an 8- or 16-bit image")
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
    except NotPixels as error:
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
