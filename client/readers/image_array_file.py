"""One image as a NumPy array in a file of its own, `.npy`."""

from __future__ import annotations

import io

import numpy as np

from fedgraft.client.readers.pixel_form import NotPixels, PixelForm

SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
# values of one image: 4,096 pixels each way in 8 channels
MOST_VALUES = 2**27


def is_array(content: bytes) -> bool:
    """Return whether a file of these bytes begins as NumPy's do."""
    return content.startswith(_MAGIC)


def read_planes(content: bytes, form: PixelForm) -> np.ndarray:
    """Return an image `(C, H, W)`: uint8, uint16 or float32 on 0–1; behind windows any finite
    numbers.

    Raises:
        NotPixels: an array of another kind.
        ValueError: it cannot be read.
    """
    # its shape is read before anything as large as it claims is made
    header = np.lib.format
    file = io.BytesIO(content)
    version = header.read_magic(file)
    read_header = header.read_array_header_1_0
    if version != (1, 0):
        read_header = header.read_array_header_2_0
    shape, _, kind = read_header(file)
    if kind.hasobject or kind.kind not in "iuf":
        raise NotPixels("an array of something else than numbers")
    if np.prod(shape, dtype=np.float64) > MOST_VALUES:
        raise NotPixels(f"an image of more than {MOST_VALUES:,} values")
    array = np.load(io.BytesIO(content), allow_pickle=False)
    return _check_values(form.planes(array), form)


def _check_values(planes: np.ndarray, form: PixelForm) -> np.ndarray:
    if not np.isfinite(planes).all():
        raise NotPixels("values that are not finite (NaN or infinity)")
    if form.windows or planes.dtype in (np.uint8, np.uint16):
        return planes.astype(planes.dtype.newbyteorder("="))
    is_fraction = planes.dtype.kind == "f" and planes.min() >= 0 and planes.max() <= 1
    if not is_fraction:
        raise NotPixels(
            "arrays that are neither uint8, nor uint16, nor fractions 0–1; for other values write"
            " backbone.windows"
        )
    return planes.astype(np.float32)
