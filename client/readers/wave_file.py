"""One audio file (`.wav`): PCM of 8 to 32 bits or floating point → samples of −1 to 1."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np

from fedgraft.client.readers.recording import CUT_OFF, MOST_VALUES, BrokenSignal, Recording

# bytes; a sample has eight at most
_LARGEST = 8 * MOST_VALUES
_BROKEN = (
    ValueError,
    struct.error,
    EOFError,
    KeyError,
    IndexError,
    ArithmeticError,
    MemoryError,
    # scipy's, where a chunk is not there
    UnboundLocalError,
)
# what scipy gives for whole numbers: the value of −1, and where 0 lies
_SCALES = {
    np.dtype(np.uint8): (128.0, 128.0),
    np.dtype(np.int16): (2.0**15, 0.0),
    # 24 bits stand in the upper ones of 32
    np.dtype(np.int32): (2.0**31, 0.0),
    np.dtype(np.int64): (2.0**63, 0.0),
}


def read_wave(path: Path) -> Recording:
    """Return the samples `(channels of the file, T)` and the rate.

    What a header claims is never made room for: no more is read than the file holds.

    Raises:
        BrokenSignal: it is no such file, cut off, or compressed.
        OSError: it is missing or forbidden.
    """
    # a fifth of a second
    from scipy.io import wavfile

    if path.stat().st_size > _LARGEST:
        raise BrokenSignal(f"more than {MOST_VALUES:,} samples")
    content = path.read_bytes()
    try:
        _check_whole(content)
        with warnings.catch_warnings():
            # of a chunk that is not sound there is a warning
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            rate, samples = wavfile.read(io.BytesIO(content))
    except _BROKEN as error:
        told = str(error)
        if told.startswith("Unknown wave file format"):
            raise BrokenSignal("audio that is compressed; PCM and floats are read") from error
        raise BrokenSignal(CUT_OFF) from error
    if samples.ndim == 1:
        samples = samples[:, None]
    values = samples.T.astype(np.float64)
    if samples.dtype in _SCALES:
        scale, middle = _SCALES[samples.dtype]
        values = (values - middle) / scale
    return Recording(values.astype(np.float32), float(rate))


def _check_whole(content: bytes) -> None:
    """Raise ValueError where samples are fewer than the header says: scipy takes what is there.

    A RIFF file is a list of chunks: a name, a size of 32 bits, and as many bytes, to an even place.
    """
    order = ">" if content[:4] == b"RIFX" else "<"
    at = 12
    long = 0
    while at + 8 <= len(content):
        name = content[at : at + 4]
        (size,) = struct.unpack_from(f"{order}I", content, at + 4)
        if name == b"ds64":
            # where 32 bits are too few: sizes of the file and of its samples
            (long,) = struct.unpack_from("<Q", content, at + 16)
        if name == b"data":
            if content[:4] == b"RF64":
                size = long
            if at + 8 + size > len(content):
                raise ValueError("fewer samples than the header says")
            return
        at += 8 + size + size % 2
    raise ValueError("no samples")
