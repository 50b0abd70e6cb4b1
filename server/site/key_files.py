"""Keys and certificates as files: made in memory first, then all written, or none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedgraft.common.errors import UserError


@dataclass(frozen=True)
class NewFile:
    """What is to be written."""

    content: bytes
    mode: int


Files = dict[Path, NewFile]


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new private key on P-384."""
    return ec.generate_private_key(ec.SECP384R1())


def private_bytes(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    """Return a private key as a file holds it, without a password."""
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def write_new(files: Mapping[Path, NewFile]) -> None:
    """Write all files, or none. Raises `UserError` where one exists or cannot be written."""
    for path in files:
        if path.exists():
            what = "exists, and is not overwritten"
            remedy = (
                "move it away first if it is to be replaced: who holds the old one is shut out then"
            )
            raise UserError(what, where=str(path), remedy=remedy)
    written = []
    try:
        for path, new in files.items():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, new.mode)
            with os.fdopen(descriptor, "wb") as file:
                written.append(path)
                file.write(new.content)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        what = f"cannot be written: {error.strerror}"
        remedy = "name a folder you may write to"
        raise UserError(what, where=str(error.filename), remedy=remedy) from None
