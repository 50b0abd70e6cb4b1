"""A node's key pair: EC on P-384, in OpenSSH's format, as Flower reads it."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedgraft.common.errors import UserError
from fedgraft.server.site.key_files import Files, NewFile, new_key, private_bytes

NODES = "nodes"
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_names(nodes: Sequence[str]) -> None:
    """Raise `UserError` for a name that is none, or that is there twice."""
    for name in nodes:
        if not NODE_NAME.fullmatch(name):
            what = f"{name!r} is no name for a node"
            raise UserError(what, where="--node", remedy="letters, digits, dots, dashes")
    if len(set(nodes)) < len(nodes):
        remedy = "each node has a key of its own"
        raise UserError("the same name twice", where="--node", remedy=remedy)


def make_node_keys(path: Path) -> Files:
    """Return a new key pair: the private key at a path, the public one beside it."""
    key = new_key()
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    private = private_bytes(key, serialization.PrivateFormat.OpenSSH)
    comment = f" {path.name}\n".encode()
    return {
        path: NewFile(private, 0o600),
        path.with_name(f"{path.name}.pub"): NewFile(public + comment, 0o644),
    }


def key_fingerprint(public: Path) -> str:
    """Return a node's public key as `ssh-keygen -l` shows it, `SHA256:…`.

    Raises:
        UserError: it is none.
    """
    where = str(public)
    try:
        key = serialization.load_ssh_public_key(public.read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("not an elliptic-curve key")
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise UserError(what, where=where, remedy="give the node's .pub file") from None
    except ValueError as error:
        what = f"is no public key of a node: {error}"
        remedy = (
            "give the .pub beside the key: fedgraft server certificates --node NAME, or ssh-keygen"
            " -t ecdsa -b 384"
        )
        raise UserError(what, where=where, remedy=remedy) from None
    digest = serialization.ssh_key_fingerprint(key, hashes.SHA256())
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"
