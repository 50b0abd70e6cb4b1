"""Who wrote a manifest: an Ed25519 signature (RFC 8032) over its bytes, in manifest.sig."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fedgraft.common.errors import UserError
from fedgraft.common.files.whole_files import write_whole
from fedgraft.common.run_files import MANIFEST, SIGNATURE
from fedgraft.server.papers.stable_json import stable_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

ALGORITHM = "Ed25519"
_KEYS = {"algorithm", "public_key", "signature"}
# so that the signature fits nothing else
_DOMAIN = b"fedgraft manifest 1\n"
_MAKE_KEY = "make one: openssl genpkey -algorithm ed25519 -out key.pem"
_TAKE_KEY = "take it from the private key: openssl pkey -in key.pem -pubout -out key.pub"


def write_signature(manifest: Path, private: Path) -> Path:
    """Sign a manifest's bytes and return where the signature lies.

    Raises:
        UserError: no Ed25519 private key.
    """
    key = _private_key(private)
    content = {
        "algorithm": ALGORITHM,
        "public_key": key.public_key().public_bytes_raw().hex(),
        "signature": key.sign(_DOMAIN + manifest.read_bytes()).hex(),
    }
    signature = manifest.with_name(SIGNATURE)
    write_whole(signature, stable_bytes(content))
    return signature


def signer_of(manifest: Path) -> str | None:
    """Return the public key (hexadecimal) in a manifest's signature; None where nobody signed."""
    try:
        return json.loads(manifest.with_name(SIGNATURE).read_bytes())["public_key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def signature_problems(manifest: Path, public: Path | None) -> list[str]:
    """Return what is wrong with a manifest's signature; empty: nothing.

    Args:
        public: the public key that must have signed it; None: a signature, where there is one, must
            be right.

    Raises:
        UserError: no such key.
    """
    from cryptography.exceptions import InvalidSignature

    file = manifest.with_name(SIGNATURE)
    expected = None
    if public is not None:
        expected = _public_key(public).public_bytes_raw().hex()
    if not file.is_file():
        return [] if expected is None else [f"{SIGNATURE}: missing: nobody signed"]
    try:
        key, signature = _read_signature(file)
    except (ValueError, KeyError, TypeError):
        return [f"{SIGNATURE}: changed: it is no signature any more"]
    name = key.public_bytes_raw().hex()
    if expected not in (None, name):
        return [f"{SIGNATURE}: made with another key, {name}"]
    try:
        key.verify(signature, _DOMAIN + manifest.read_bytes())
    except InvalidSignature:
        return [f"{SIGNATURE}: does not fit {MANIFEST}: one of the two was changed"]
    return []


def _read_signature(file: Path) -> tuple[Ed25519PublicKey, bytes]:
    """Return key and signature in a file. Raises ValueError and the like for any other bytes."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = file.read_bytes()
    content = json.loads(raw)
    if raw != stable_bytes(content) or set(content) != _KEYS:
        raise ValueError("another file")
    if content["algorithm"] != ALGORITHM:
        raise ValueError("another algorithm")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(content["public_key"]))
    signature = bytes.fromhex(content["signature"])
    if content["signature"] != signature.hex():
        raise ValueError("another spelling of the signature")
    if content["public_key"] != key.public_bytes_raw().hex():
        raise ValueError("another spelling of the key")
    return key, signature


# ── keys ──────────────────────────────────────────────────────────────────────────────────────────
def _private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    raw = _key_bytes(path)
    load = serialization.load_pem_private_key
    if b"OPENSSH PRIVATE" in raw:
        load = serialization.load_ssh_private_key
    try:
        key = load(raw, password=None)
    except (ValueError, TypeError) as error:
        # TypeError: it is encrypted
        what = "no private key without a password"
        raise UserError(what, where=str(path), remedy=_MAKE_KEY) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError("not an Ed25519 key", where=str(path), remedy=_MAKE_KEY)
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = _key_bytes(path)
    load = serialization.load_pem_public_key
    if raw.startswith(b"ssh-"):
        load = serialization.load_ssh_public_key
    try:
        key = load(raw)
    except ValueError as error:
        raise UserError("no public key", where=str(path), remedy=_TAKE_KEY) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UserError("not an Ed25519 key", where=str(path), remedy=_TAKE_KEY)
    return key


def _key_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise UserError(what, where=str(path), remedy=_MAKE_KEY) from error
