"""`fedgraft server bundle`: the code that hospitals approve, as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedgraft.common.errors import UserError
from fedgraft.common.extensions import read_offered
from fedgraft.common.files.bundle import build_bundle, hash_extensions, unpacked
from fedgraft.common.files.whole_files import write_whole


def write_bundle(folder: Path) -> dict[str, Any]:
    """Write the bundle of this release and of the extensions that a person named.

    Returns:
        `file`, `hash`, `contents`, and `extensions`: the hash of each by name.

    Raises:
        UserError: the folder cannot be written, or Flower does not take the files.
    """
    bundle = build_bundle(extensions=read_offered())
    file = folder / bundle.filename
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, bundle.data)
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise UserError(what, where=str(file), remedy="name another folder: --out") from None
    return {
        "file": str(file),
        "hash": bundle.hash,
        "contents": bundle.contents,
        "extensions": hash_extensions(unpacked(bundle)),
    }
