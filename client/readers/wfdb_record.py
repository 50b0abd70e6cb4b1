"""One WFDB record (PhysioNet's format): a header `.hea`, and the `.dat` files that it names.

A header is looked at before any file that it names is opened: they lie beside it, under plain
names, and hold as many samples as it says. Nothing is fetched from anywhere.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.client.readers.recording import CUT_OFF, MOST_VALUES, BrokenSignal, Recording
from fedgraft.common.errors import UserError

# of a header, bytes
_LONGEST = 2**20
_MOST_CHANNELS = 256
# a plain name beside the header: no folder, no address
_PLAIN = re.compile(r"[\w\-][\w\-. ]*\.dat", re.IGNORECASE)
# bits of a sample by the format's number; compressed ones are not among them
_BITS = {"8": 8, "16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12}
_BROKEN = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    MemoryError,
    EOFError,
)
# channels in one message, and characters of each
_MOST_NAMED = 12
_LONGEST_NAME = 16


def import_wfdb() -> Any:
    """Return the package wfdb. Raise `UserError` where it is not installed."""
    try:
        return importlib.import_module("wfdb")
    except ImportError as error:
        raise UserError(
            "WFDB records, and wfdb is not installed",
            where="data.path",
            remedy="pip install 'fedgraft[signals]'",
        ) from error


def read_record(path: Path, channels: Sequence[str]) -> Recording:
    """Return the channels of a record by their names, in physical units, and its rate.

    Raises:
        BrokenSignal: a header that names other files than those beside it, claims more than they
            hold, or has no channel of such a name; several segments, or compressed samples.
        OSError: the header is missing or forbidden.
        UserError: wfdb is not installed.
    """
    wfdb = import_wfdb()
    if path.stat().st_size > _LONGEST:
        raise BrokenSignal(CUT_OFF)
    # or "s3:…" in the place of a folder would be an address
    base = str(path.absolute().with_suffix(""))
    try:
        header = wfdb.rdheader(base)
        if not isinstance(header, wfdb.Record):
            raise BrokenSignal("a record of several segments")
        _check_header(header)
        _check_files(header, path.parent)
        places = _find(header.sig_name, channels)
        record = wfdb.rdrecord(base, channels=places, return_res=32)
        # as the header has them, whatever order was asked for
        order = [record.sig_name.index(header.sig_name[place]) for place in places]
        values = np.asarray(record.p_signal, np.float32).T[order]
        return Recording(values, float(record.fs))
    except BrokenSignal:
        raise
    except _BROKEN as error:
        raise BrokenSignal(CUT_OFF) from error


def _check_header(header: Any) -> None:
    """Raise `BrokenSignal` for a header that names what is not its own, or what is not read."""
    names = header.file_name or []
    if not names or not header.sig_name or len(names) > _MOST_CHANNELS:
        raise BrokenSignal("a header without channels")
    for name in names:
        if not _PLAIN.fullmatch(name):
            raise BrokenSignal("a header that names a file elsewhere than beside it")
    if any(kind not in _BITS for kind in header.fmt):
        raise BrokenSignal("samples in a format that is not read, such as a compressed one")
    if any(count != 1 for count in header.samps_per_frame):
        raise BrokenSignal("channels of several rates")


def _check_files(header: Any, folder: Path) -> None:
    """Raise `BrokenSignal` for a header that claims more than its files hold."""
    names = header.file_name
    length = header.sig_len or 0
    if length < 1:
        raise BrokenSignal("a header that does not say how many samples there are")
    if length * len(names) > MOST_VALUES:
        raise BrokenSignal(f"more than {MOST_VALUES:,} samples")
    for name in set(names):
        bits = [_BITS[kind] for own, kind in zip(names, header.fmt, strict=True) if own == name]
        file = folder / name
        if not file.is_file():
            raise BrokenSignal("its .dat file is missing")
        if 8 * file.stat().st_size < length * sum(bits):
            raise BrokenSignal(CUT_OFF)


def _find(names: Sequence[str], channels: Sequence[str]) -> list[int]:
    """Return where each channel stands in a record. Raise `BrokenSignal` for one that is not."""
    there = [str(name).strip() for name in names]
    for channel in channels:
        if channel not in there:
            shown = ", ".join(name[:_LONGEST_NAME] for name in there[:_MOST_NAMED])
            raise BrokenSignal(f"no channel {channel!r}; there are {shown}")
    return [there.index(channel) for channel in channels]
