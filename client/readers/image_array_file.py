"""One image as a NumPy array in a file of its own, `.npy`."""

from __future__ import annotations

import io
import math
import threading

import numpy as np
from numpy.lib import format as npy

from fedgraft.client.readers.pixel_form import NotPixels, PixelForm

SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
# NumPy reads a header with `ast.literal_eval`, which fails now and then in two threads at once
# under Python 3.11 ("AST constructor recursion depth mismatch")
ONE_HEADER = threading.RLock()
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
    file = io.BytesIO(content)
    read_header = npy.read_array_header_2_0
    if npy.read_magic(file) == (1, 0):
        read_header = npy.read_array_header_1_0
    with ONE_HEADER:
        shape, is_fortran, kind = read_header(file)
    if kind.hasobject or kind.kind not in "iuf":
        raise NotPixels("an array of something else than numbers")
    if np.prod(shape, dtype=np.float64) > MOST_VALUES:
        raise NotPixels(f"an image of more than {MOST_VALUES:,} values")
    # nothing is made that is larger than the file
    values = np.frombuffer(content, kind, math.prod(shape), file.tell())
    array = values.reshape(shape, order="F" if is_fortran else "C")
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
