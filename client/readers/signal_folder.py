"""Signals as files in class folders, or in a list.

    folder/<class>/p001.wav                            path,label,patient
    folder/train/<class>/…, with its own splits        sounds/p001.wav,ill,p001

Below a class folder they may lie as deep as they like.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from fedgraft.client.readers.files import file_source
from fedgraft.client.readers.folder import class_folders, stamp_folders
from fedgraft.client.readers.folder_files import walk
from fedgraft.client.readers.looked_at import ImageEntry
from fedgraft.client.readers.reader import SIGNALS, Reader, ReadRequest
from fedgraft.client.readers.signal_file import BESIDE, KNOWN, is_signal, signal_files
from fedgraft.client.readers.source import Source
from fedgraft.common.errors import UserError
from fedgraft.common.tasks.labels import plain_label

_OTHERS = "files that are no signals"


def list_signals(folder: Path) -> tuple[list[Path], int]:
    """Return the signals below a folder, sorted, and how many other files there are."""
    signals: list[Path] = []
    others = 0
    for file in walk(str(folder)):
        if is_signal(file):
            signals.append(Path(file))
        elif not file.lower().endswith(BESIDE):
            others += 1
    return sorted(signals), others


def _read_folder(request: ReadRequest) -> Source:
    """Return every usable signal below class folders; the folder's name is the label."""
    path = Path(request.path)
    entries: list[ImageEntry] = []
    beside: Counter[str] = Counter()
    for folder, label, split in class_folders(path):
        signals, others = list_signals(folder)
        beside[_OTHERS] += others
        entries += [ImageEntry(str(file), plain_label(label), split) for file in signals]
    if not entries:
        remedy = (
            f"put files ({KNOWN}) into one folder a class: {path.name}/<class>/…, or list them in a"
            " table (.csv) with columns path and label"
        )
        raise UserError("no signals in class folders", where=str(path), remedy=remedy)
    kind = signal_files(request.channels)
    return file_source(str(path), entries, reading=request.reading, beside=+beside, kind=kind)


SIGNAL_FOLDER = Reader(
    "signal-folder",
    matches=os.path.isdir,
    read=_read_folder,
    gives=lambda _: SIGNALS,
    stamp=stamp_folders,
    options=lambda request: request.channels,
)
