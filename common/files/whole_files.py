"""Files are written whole or not at all: beside their place, flushed, and renamed into it.

Whoever reads sees the old file or the new one, also where the disk is full, the process is killed
or the power goes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# the end of the name of what is not finished
PART = ".part"


@contextmanager
def replacing(path: Path, *, mode: int = 0o644, durable: bool = True) -> Iterator[Path]:
    """Give a new, empty file beside `path` to write into; at the end it takes that place, or is
    gone if anything failed.

    Args:
        mode: permissions of the file.
        durable: whether it must be on the disk before it takes its place; it costs some
            milliseconds.

    Raises:
        OSError: the folder is not there or cannot be written, or the disk is full; `path` is as it
            was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    part = Path(name)
    try:
        os.close(handle)
        yield part
        part.chmod(mode)
        if durable:
            with part.open("rb") as written:
                os.fsync(written.fileno())
        part.replace(path)
        if durable:
            flush_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Bring the names of a folder's files to the disk: a new name is lost in a power cut without
    it. Raises OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(
    path: Path, content: bytes | str, *, mode: int = 0o644, durable: bool = True
) -> None:
    """Write a file in one step; text as UTF-8. Arguments and errors as in `replacing`."""
    if isinstance(content, str):
        content = content.encode()
    with replacing(path, mode=mode, durable=durable) as part:
        part.write_bytes(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON in one step. Raise `ValueError` for NaN or infinity: a number is a number."""
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
