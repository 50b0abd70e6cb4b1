"""What a federation's trust rests on: a private CA, the server's certificate, a key pair for each
node.

    ca.crt       goes to every hospital
    ca.key       stays offline, once the certificates are made
    server.crt   with the names in it
    server.key   0600, on the coordinator's host
    nodes/NAME   a node's private key, 0600
    nodes/NAME.pub  what `fedgraft server nodes add` registers

A node authenticates by its key, not by a certificate (Flower signs a timestamp with it at each
request): EC on P-384, in OpenSSH's format. A hospital that makes its own key sends only the `.pub`.
Nothing is ever overwritten.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedgraft.common.errors import UserError
from fedgraft.server.site.key_files import Files, NewFile, new_key, private_bytes, write_new
from fedgraft.server.site.node_keys import NODES, check_names, make_node_keys

CA_CERTIFICATE = "ca.crt"
CA_KEY = "ca.key"
SERVER_CERTIFICATE = "server.crt"
SERVER_KEY = "server.key"
CA_DAYS = 5 * 365
SERVER_DAYS = 365
# a hospital whose clock is behind accepts it, too
EARLIER = datetime.timedelta(hours=1)
# the gateway reaches the SuperLink there
ALWAYS = ("localhost", "127.0.0.1")
MAKE_THEM = "make it: fedgraft server certificates FOLDER --host fl.example.org"
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}$)({_LABEL}\.)*{_LABEL}")
_USES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True)
class Authority:
    """A CA that can sign."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def make_certificates(
    folder: Path, *, hosts: Sequence[str], nodes: Sequence[str], days: int = SERVER_DAYS
) -> list[Path]:
    """Make what was asked for, and the CA where there is none.

    All is made before anything is written.

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
    check_names(nodes)
    names = [_general_name(host) for host in dict.fromkeys((*hosts, *ALWAYS))]

    files: Files = {}
    if hosts:
        authority = _open_authority(folder)
        if authority is None:
            authority = _make_authority()
            files |= _authority_files(folder, authority)
        files |= _make_server(folder, authority, names, hosts[0], days)
    for name in nodes:
        files |= make_node_keys(folder / NODES / name)
    write_new(files)
    return list(files)


def expires(path: Path) -> datetime.datetime:
    """Return when a certificate ends, in UTC. Raises `UserError` where it is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        what = f"cannot be read as a certificate: {error}"
        raise UserError(what, where=str(path), remedy=MAKE_THEM) from None


# ── the CA ────────────────────────────────────────────────────────────────────────────────────────
def _open_authority(folder: Path) -> Authority | None:
    """Return the CA in the folder, or None where there is none at all."""
    key_file = folder / CA_KEY
    certificate_file = folder / CA_CERTIFICATE
    remedy = "bring both from where they are kept, or name a new folder"
    if not key_file.exists() and not certificate_file.exists():
        return None
    for file, other in ((key_file, certificate_file), (certificate_file, key_file)):
        if not other.exists():
            what = f"is there without its {other.name}"
            raise UserError(what, where=str(file), remedy=remedy)
    try:
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("ca.key is not the key of ca.crt")
        if key.public_key() != certificate.public_key():
            raise ValueError("ca.key is not the key of ca.crt")
    except (OSError, ValueError) as error:
        what = f"holds no CA that can sign: {error}"
        raise UserError(what, where=str(folder), remedy=remedy) from None
    return Authority(key, certificate)


def _make_authority() -> Authority:
    key = new_key()
    name = _name("fedgraft private CA")
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
    builder = _builder(name, name, key.public_key(), CA_DAYS)
    builder = _limit(builder, x509.BasicConstraints(ca=True, path_length=0))
    builder = _limit(builder, _usage("key_cert_sign", "crl_sign"))
    builder = _tell(builder, own)
    builder = _tell(builder, authority)
    return Authority(key, builder.sign(key, hashes.SHA384()))


def _authority_files(folder: Path, authority: Authority) -> Files:
    private = private_bytes(authority.key, serialization.PrivateFormat.PKCS8)
    return {
        folder / CA_CERTIFICATE: NewFile(_certificate_bytes(authority.certificate), 0o644),
        folder / CA_KEY: NewFile(private, 0o600),
    }


# ── the server's certificate ──────────────────────────────────────────────────────────────────────
def _make_server(
    folder: Path,
    authority: Authority,
    names: Sequence[x509.GeneralName],
    host: str,
    days: int,
) -> Files:
    key = new_key()
    ca = authority.certificate
    issuer = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = _builder(_name(host[:64]), ca.subject, key.public_key(), days)
    builder = _limit(builder, x509.BasicConstraints(ca=False, path_length=None))
    builder = _limit(builder, _usage("digital_signature"))
    builder = _tell(builder, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]))
    builder = _tell(builder, x509.SubjectAlternativeName(names))
    builder = _tell(builder, x509.SubjectKeyIdentifier.from_public_key(key.public_key()))
    builder = _tell(builder, x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer))
    certificate = builder.sign(authority.key, hashes.SHA384())
    private = private_bytes(key, serialization.PrivateFormat.PKCS8)
    return {
        folder / SERVER_CERTIFICATE: NewFile(_certificate_bytes(certificate), 0o644),
        folder / SERVER_KEY: NewFile(private, 0o600),
    }


# ── small ─────────────────────────────────────────────────────────────────────────────────────────
def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.public_key(key).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - EARLIER)
    return builder.not_valid_after(now + datetime.timedelta(days=days))


def _limit(
    builder: x509.CertificateBuilder, extension: x509.ExtensionType
) -> x509.CertificateBuilder:
    """Add what a reader must understand, or refuse the certificate."""
    return builder.add_extension(extension, critical=True)


def _tell(
    builder: x509.CertificateBuilder, extension: x509.ExtensionType
) -> x509.CertificateBuilder:
    """Add what a reader may pass over."""
    return builder.add_extension(extension, critical=False)


def _usage(*uses: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{use: use in uses for use in _USES})


def _certificate_bytes(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        remedy = "write a DNS name or an IP address, without port and https://"
        raise UserError(f"{host!r} is no host", where="--host", remedy=remedy)
    return x509.DNSName(host)
