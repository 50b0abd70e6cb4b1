"""What a federation's trust rests on: a private CA, the server's certificate, and a key pair for
each node.

    ca.crt       goes to every hospital          ca.key      stays offline, once the certificates
    are made server.crt   with the names in it            server.key  0600, on the coordinator's
    host nodes/NAME   a node's private key, 0600      nodes/NAME.pub  what `fedgraft server nodes
    add` registers

A node authenticates by its key, not by a certificate (Flower signs a timestamp with it at each
request): EC on P-384, in OpenSSH's format. A hospital that makes its own key sends only the `.pub`.
Nothing is ever overwritten.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedgraft.common.errors import UserError

CA_DAYS = 5 * 365
SERVER_DAYS = 365
EARLIER = datetime.timedelta(hours=1)  # a hospital whose clock is behind accepts it, too
ALWAYS = ("localhost", "127.0.0.1")  # the gateway reaches the SuperLink there
_HOST = re.compile(
    r"(?=.{1,253}$)([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Files = dict[Path, tuple[bytes, int]]  # where → (content, mode)


def make(
    folder: Path, *, hosts: Sequence[str], nodes: Sequence[str], days: int = SERVER_DAYS
) -> list[Path]:
    """Make what was asked for, and the CA where there is none. All is made before anything is
    written.

    Args:
        folder: where the files go; a CA that lies there signs the server's certificate.
        hosts: DNS names and IP addresses under which hospitals reach the server; none: no server
            certificate.
        nodes: names of nodes to make key pairs for.
        days: how long the server's certificate is valid.

    Returns:
        The files that were written, in order.

    Raises:
        UserError: nothing asked for, a name that is none, or a file that exists.
    """
    if not hosts and not nodes:
        remedy = (
            "add --host fl.example.org for the server, or --node hospital-a for a node's key pair"
        )
        raise UserError("nothing to make", where="server certificates", remedy=remedy)
    for name in nodes:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{name!r} is no name for a node",
                where="--node",
                remedy="letters, digits, dots, dashes",
            )
    if len(set(nodes)) < len(nodes):
        raise UserError(
            "the same name twice", where="--node", remedy="each node has a key of its own"
        )
    names = [_general_name(host) for host in dict.fromkeys((*hosts, *ALWAYS))]

    files: Files = {}
    if hosts:
        key, certificate = _opened_ca(folder) or _new_ca(folder, files)
        _server(folder, files, names, hosts[0], key, certificate, days)
    for name in nodes:
        _node(folder / "nodes" / name, files)
    _write(files)
    return list(files)


def expires(path: Path) -> datetime.datetime:
    """When a certificate ends, in UTC. Raises `UserError` where it is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot be read as a certificate: {error}", where=str(path), remedy=MAKE_THEM
        ) from None


MAKE_THEM = "make it: fedgraft server certificates FOLDER --host fl.example.org"


def key_fingerprint(public: Path) -> str:
    """A node's public key as `ssh-keygen -l` shows it, `SHA256:…`. Raises `UserError` where it is
    none.
    """
    try:
        key = serialization.load_ssh_public_key(public.read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("not an elliptic-curve key")
        digest = serialization.ssh_key_fingerprint(key, hashes.SHA256())
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise UserError(what, where=str(public), remedy="give the node's .pub file") from None
    except ValueError as error:
        remedy = (
            "give the .pub beside the key: fedgraft server certificates --node NAME, or ssh-keygen"
            " -t ecdsa -b 384"
        )
        raise UserError(
            f"is no public key of a node: {error}", where=str(public), remedy=remedy
        ) from None


# ── one by one ────────────────────────────────────────────────────────────────────────────────────
def _opened_ca(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None:
    """The CA in the folder, or None where there is none at all."""
    paths = (folder / "ca.key", folder / "ca.crt")
    there = [path for path in paths if path.exists()]
    if not there:
        return None
    if len(there) == 1:
        what = f"is there without its {'ca.crt' if there[0].suffix == '.key' else 'ca.key'}"
        raise UserError(
            what,
            where=str(there[0]),
            remedy="bring both from where they are kept, or name a new folder",
        )
    try:
        key = serialization.load_pem_private_key(paths[0].read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate(paths[1].read_bytes())
        if (
            not isinstance(key, ec.EllipticCurvePrivateKey)
            or key.public_key() != certificate.public_key()
        ):
            raise ValueError("ca.key is not the key of ca.crt")
    except (OSError, ValueError) as error:
        remedy = "bring both from where they are kept, or name a new folder"
        raise UserError(
            f"holds no CA that can sign: {error}", where=str(folder), remedy=remedy
        ) from None
    return key, certificate


def _new_ca(folder: Path, files: Files) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedgraft private CA")])
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(own, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False
        )
        .sign(key, hashes.SHA384())
    )
    files[folder / "ca.crt"] = (certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    files[folder / "ca.key"] = (_private(key, serialization.PrivateFormat.PKCS8), 0o600)
    return key, certificate


def _server(
    folder: Path,
    files: Files,
    names: Sequence[x509.GeneralName],
    host: str,
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    days: int,
) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    authority = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(subject, ca.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority),
            critical=False,
        )
        .sign(ca_key, hashes.SHA384())
    )
    files[folder / "server.crt"] = (certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    files[folder / "server.key"] = (_private(key, serialization.PrivateFormat.PKCS8), 0o600)


def _node(path: Path, files: Files) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    files[path] = (_private(key, serialization.PrivateFormat.OpenSSH), 0o600)
    files[path.with_name(f"{path.name}.pub")] = (public + f" {path.name}\n".encode(), 0o644)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(**on: bool) -> x509.KeyUsage:
    off = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
    )
    off += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**dict.fromkeys(off, False) | on)


def _private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host):
            what, remedy = (
                f"{host!r} is no host",
                "write a DNS name or an IP address, without port and https://",
            )
            raise UserError(what, where="--host", remedy=remedy) from None
        return x509.DNSName(host)


def _write(files: Files) -> None:
    for path in files:
        if path.exists():
            remedy = (
                "move it away first if it is to be replaced: who holds the old one is shut out then"
            )
            raise UserError("exists, and is not overwritten", where=str(path), remedy=remedy)
    written = []
    try:
        for path, (content, mode) in files.items():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                written.append(path)
                file.write(content)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        what = f"cannot be written: {error.strerror}"
        raise UserError(
            what, where=str(error.filename), remedy="name a folder you may write to"
        ) from None
