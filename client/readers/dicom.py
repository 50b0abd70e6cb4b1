"""One DICOM file → pixels, as a radiologist's screen would show them.

    stored values → modality LUT or rescale → VOI LUT or window → MONOCHROME1 inverted → 8 or 16
    bits

Section numbers are of DICOM PS3.3. The pixels of an 8- or 16-bit image that asks for none of these
steps are its stored values, bit for bit; everything else is on 16 bits, where full scale is white.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import math
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fedgraft.client.readers.bit_depth import FULL, NOT_ASKED, spread
from fedgraft.client.readers.placeholders import PSEUDONYM_OF_NOBODY, is_placeholder

if TYPE_CHECKING:
    from pydicom import Dataset

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
WHITE = 65535.0
BLANK = "blank: every pixel has one value"
# bytes of compressed pixels, and how many pixels of a blank image take more than a byte
_SMALL = 200
_LEAST_PACKED = 32
BROKEN = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    RuntimeError,
    NotImplementedError,
)


def is_dicom(content: bytes) -> bool:
    """Return whether a file of these bytes begins as DICOM files do (PS3.10, 7.1)."""
    return content[128:132] == b"DICM"


@dataclass(frozen=True)
class Examined:
    """What an image file tells before it is used, DICOM or not.

    Attributes:
        problem: why it cannot be used, in words that name a kind of problem and nothing of the
            file, so that they can be counted and told; "" if it can.
        patient: whose image it is, a pseudonym; "" where the file says nothing.
        brightest: the highest value, where the image has 16 bits and does not say how many it uses.
    """

    problem: str = ""
    patient: str = ""
    brightest: int = NOT_ASKED


def examine(content: bytes) -> Examined:
    """Return what a file tells before it is used.

    The header is read, and whether the pixels are all there. Decoded it is only where its values
    matter: it may be blank, or darker than it should be.
    """
    try:
        data = read_dataset(content)
        problem = problem_of(data)
        patient = pseudonym_of(data)
        if problem:
            return Examined(problem, patient)
        brightest = NOT_ASKED
        if _may_be_odd(data):
            stored = data.pixel_array
            if is_blank(stored):
                problem = BLANK
            elif stored.dtype == np.uint16 and _is_plain(data, stored):
                brightest = int(stored.max())
        return Examined(problem, patient, brightest)
    except BROKEN:
        return Examined("cut off or corrupt")


def is_blank(pixels: np.ndarray) -> bool:
    """Return whether every pixel of an image `(H, W)` or `(H, W, C)` is the same."""
    first = pixels[:1, :1]
    # most images differ in their first row already
    if (pixels[:1] != first).any():
        return False
    return bool((pixels == first).all())


def decode(content: bytes, bits: int | None = None) -> np.ndarray:
    """Return grey `(H, W)` uint8 or uint16, or colour `(H, W, 3)` uint8.

    Args:
        bits: how many bits stored values use that are said to have 16.

    Raises:
        ValueError: it cannot be decoded; says why.
    """
    try:
        data = read_dataset(content)
        problem = problem_of(data)
        if problem:
            raise ValueError(problem)
        if data.PhotometricInterpretation in COLOUR:
            return _colour(data)
        return _grey(data, bits)
    except BROKEN as error:
        raise ValueError(str(error)[:200]) from None


def decode_values(content: bytes) -> np.ndarray:
    """Return the values of a grey image in the modality's own units, float64 `(H, W)`: of a CT in
    Hounsfield units. What was added around the image is the lowest value that is left.

    Raises:
        ValueError: it cannot be decoded, is in colour, or inverted; says why.
    """
    try:
        data = read_dataset(content)
        problem = problem_of(data)
        if problem:
            raise ValueError(problem)
        if data.PhotometricInterpretation != "MONOCHROME2":
            raise ValueError("DICOM in colour or inverted, and backbone.windows are for plain grey")
        stored = data.pixel_array
        if stored.ndim != 2:
            raise ValueError(f"grey pixels of shape {stored.shape}")
        values, _, _ = _modality_values(data, stored)
        padding = _padding(data, stored)
        if padding.any() and not padding.all():
            values = np.where(padding, values[~padding].min(), values)
        return values
    except BROKEN as error:
        raise ValueError(str(error)[:200]) from None


# ── what is read ──────────────────────────────────────────────────────────────────────────────────
def read_dataset(content: bytes) -> Dataset:
    """Return the data set of a file of these bytes."""
    return import_pydicom().dcmread(io.BytesIO(content))


def problem_of(data: Dataset) -> str:
    """Return why a data set is no single image that can be decoded; "" if it is one."""
    from pydicom.pixels.decoders.base import get_decoder

    if "PixelData" not in data:
        return "DICOM without pixels: cut off, or a report and no image"
    if int(data.get("NumberOfFrames") or 1) > 1:
        return "multi-frame DICOM: a series or a film is not one image; export single frames"
    kind = str(data.PhotometricInterpretation)
    if kind not in GREY + COLOUR:
        shown = kind if kind.isprintable() else "?"
        return f"DICOM with colours as {shown}; export as MONOCHROME2 or RGB"
    if kind in COLOUR and int(data.BitsAllocated) != 8:
        return "colour DICOM with more than 8 bits a channel"
    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not get_decoder(syntax).is_available:
        missing = f"DICOM compressed as {syntax.name}, for which no decoder is installed"
        return f"{missing}; export uncompressed"
    if len(data.PixelData) < _least_bytes(data):
        return "cut off or corrupt"
    return ""


def _least_bytes(data: Dataset) -> int:
    """Return how many bytes the pixels have at least; of compressed ones, that they are there."""
    if data.file_meta.TransferSyntaxUID.is_compressed:
        return 1
    samples = int(data.SamplesPerPixel)
    if data.PhotometricInterpretation == "YBR_FULL_422":
        samples = 2
    pixels = int(data.Rows) * int(data.Columns)
    bits = pixels * samples * int(data.BitsAllocated)
    return math.ceil(bits / 8)


def pseudonym_of(data: Dataset) -> str:
    """Return whose image it is: the same text for the same PatientID and issuer.

    It is not the identifier itself. "" where there is none; one text for all that are nobody's.
    """
    identity = str(data.get("PatientID") or "").strip()
    if not identity:
        return ""
    if is_placeholder(identity):
        return PSEUDONYM_OF_NOBODY
    issuer = str(data.get("IssuerOfPatientID") or "").strip()
    return hashlib.sha256(f"{issuer}\0{identity}".encode()).hexdigest()[:32]


# ── what is shown ─────────────────────────────────────────────────────────────────────────────────
def _colour(data: Dataset) -> np.ndarray:
    # pydicom turns YBR into RGB
    pixels = data.pixel_array
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"colour pixels of shape {pixels.shape}, {pixels.dtype}")
    return pixels


def _may_be_odd(data: Dataset) -> bool:
    """Return whether an image may be blank, which compresses to almost nothing, or have 16 bits of
    which it uses fewer.
    """
    if not data.file_meta.TransferSyntaxUID.is_compressed:
        return True
    pixels = int(data.Rows) * int(data.Columns)
    return int(data.BitsStored) == FULL or len(data.PixelData) < _SMALL + pixels // _LEAST_PACKED


def _grey(data: Dataset, bits: int | None) -> np.ndarray:
    stored = data.pixel_array
    if stored.ndim != 2:
        raise ValueError(f"grey pixels of shape {stored.shape}")
    inverted = data.PhotometricInterpretation == "MONOCHROME1"
    padding = _padding(data, stored)
    if _is_plain(data, stored):
        shown = stored.copy()
        if bits is not None and stored.dtype == np.uint16:
            shown = spread(stored, bits)
        if inverted:
            shown = np.iinfo(stored.dtype).max - shown
    else:
        brightness = _windowed(data, stored)
        if inverted:
            brightness = 1 - brightness
        shown = np.rint(brightness * WHITE).astype(np.uint16)
    shown[padding] = 0
    return shown


def _is_plain(data: Dataset, stored: np.ndarray) -> bool:
    """Return whether the stored values are to be shown as they are, over the whole range of 8 or 16
    bits.
    """
    if stored.dtype not in (np.uint8, np.uint16):
        return False
    if int(data.BitsStored) != 8 * stored.dtype.itemsize:
        return False
    if "ModalityLUTSequence" in data or "VOILUTSequence" in data:
        return False
    return data.get("WindowWidth") is None and rescale_of(data) == (1.0, 0.0)


def _windowed(data: Dataset, stored: np.ndarray) -> np.ndarray:
    """Return brightness from 0 (black) to 1 (white) before inversion, float64.

    C.11.1 and then C.11.2.
    """
    from pydicom.pixels.processing import apply_voi_lut

    values, low, high = _modality_values(data, stored)
    if "VOILUTSequence" in data:
        white = 2 ** _lut_bits(data.VOILUTSequence) - 1
        whole = np.rint(values).astype(np.int64)
        return np.clip(apply_voi_lut(whole, data) / white, 0, 1)
    if data.get("WindowWidth") is not None and data.get("WindowCenter") is not None:
        function = str(data.get("VOILUTFunction") or "LINEAR")
        return window(values, _first(data.WindowCenter), _first(data.WindowWidth), function)
    return np.clip((values - low) / (high - low), 0, 1)


def _modality_values(data: Dataset, stored: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return the values behind the modality's LUT or rescale (C.11.1), and the ends of their
    range.
    """
    from pydicom.pixels.processing import apply_modality_lut

    if "ModalityLUTSequence" in data:
        values = apply_modality_lut(stored, data).astype(np.float64)
        return values, 0.0, float(2 ** _lut_bits(data.ModalityLUTSequence) - 1)
    slope, intercept = rescale_of(data)
    bits = int(data.BitsStored)
    ends = (0, 2**bits - 1)
    if int(data.PixelRepresentation) == 1:
        ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    low, high = sorted(end * slope + intercept for end in ends)
    return stored * slope + intercept, low, high


def window(values: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Return brightness 0–1 by a VOI window.

    C.11.2.1.2.1 LINEAR, C.11.2.1.3.1 SIGMOID, C.11.2.1.3.2 exact.

    Raises:
        ValueError: a width or a function that the standard does not have.
    """
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise ValueError(f"window width {width:g}")
    values = values.astype(np.float64)
    if function == "LINEAR":
        # a threshold
        if width == 1:
            return (values > centre - 0.5).astype(np.float64)
        return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values - centre) / width, -700, 700)
        return 1 / (1 + np.exp(exponent))
    raise ValueError("an unknown VOI LUT function")


def rescale_of(data: Dataset) -> tuple[float, float]:
    """Return slope and intercept."""
    slope = data.get("RescaleSlope")
    intercept = data.get("RescaleIntercept")
    if slope is None or intercept is None:
        return 1.0, 0.0
    if float(slope) == 0:
        raise ValueError("rescale slope 0")
    return float(slope), float(intercept)


def _lut_bits(sequence: Any) -> int:
    """Return the bits of each entry of a look-up table: the third value of its descriptor."""
    return int(sequence[0].LUTDescriptor[2])


def _padding(data: Dataset, stored: np.ndarray) -> np.ndarray:
    """Return which pixels were added around the image (C.7.5.1.1.2); they are shown black."""
    value = data.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = data.get("PixelPaddingRangeLimit")
    if limit is None:
        limit = value
    low, high = sorted((int(value), int(limit)))
    return (stored >= low) & (stored <= high)


def _first(value: Any) -> float:
    """Return the first of several windows: the standard's default view."""
    if isinstance(value, (int, float, str)):
        return float(value)
    return float(value[0])


@functools.cache
def import_pydicom() -> ModuleType:
    """Return pydicom without its warnings: they quote values of files, which belong in no log."""
    import pydicom
    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE
    logging.getLogger("pydicom").disabled = True
    warnings.filterwarnings("ignore", module="pydicom")
    return pydicom
