"""Certificates and keys, checked by what will use them: Python's own TLS, OpenSSH's format, the
file system.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedgraft.common.errors import UserError
from fedgraft.server.site.certificates import make_certificates
from fedgraft.server.site.node_keys import key_fingerprint


def handshake(folder, name: str, trust) -> str:
    """Connect to a TLS server with the folder's certificate; the name of the peer, or the error
    raised.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    client = ssl.create_default_context(cafile=str(trust))
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 asks for by default
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            plain, _ = listener.accept()
            with plain:
                try:
                    context.wrap_socket(plain, server_side=True).close()
                except (ssl.SSLError, OSError):
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            with socket.create_connection(listener.getsockname()) as plain:
                client.wrap_socket(plain, server_hostname=name).close()
            return "ok"
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        finally:
            thread.join()


def test_tls_accepts_the_names_and_no_other(tmp_path):
    """A certificate that hospitals' TLS refuses, or that is good for names it was not made for."""
    make_certificates(tmp_path / "a", hosts=["fl.example.org", "192.0.2.10"], nodes=[])
    make_certificates(tmp_path / "b", hosts=["fl.example.org"], nodes=[])
    ca = tmp_path / "a" / "ca.crt"
    for name in ("fl.example.org", "192.0.2.10", "localhost", "127.0.0.1"):
        assert handshake(tmp_path / "a", name, ca) == "ok", name
    assert "Hostname mismatch" in handshake(tmp_path / "a", "evil.example.org", ca)
    assert handshake(tmp_path / "b", "fl.example.org", ca) != "ok"


def test_private_files_are_private_and_lifetimes_sane(tmp_path):
    """A key that others on the host can read; a certificate for ever, or one that a clock an hour
    late refuses.
    """
    for path in make_certificates(tmp_path / "c", hosts=["h"], nodes=["x"]):
        secret = path.suffix not in (".crt", ".pub")
        assert path.stat().st_mode & 0o777 == (0o600 if secret else 0o644), path
    server = x509.load_pem_x509_certificate((tmp_path / "c" / "server.crt").read_bytes())
    ca = x509.load_pem_x509_certificate((tmp_path / "c" / "ca.crt").read_bytes())
    life = [cert.not_valid_after_utc - cert.not_valid_before_utc for cert in (server, ca)]
    assert [span.days for span in life] == [365, 1825]
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).critical
    assert server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False


def test_node_keys_are_what_flower_reads(tmp_path):
    """Keys of another kind or format: `flower-supernode` ends, or the SuperLink refuses to register
    them.
    """
    make_certificates(tmp_path, hosts=[], nodes=["hospital-a"])
    private = serialization.load_ssh_private_key(
        (tmp_path / "nodes" / "hospital-a").read_bytes(), None
    )
    public = serialization.load_ssh_public_key((tmp_path / "nodes" / "hospital-a.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public
    assert not (tmp_path / "ca.key").exists()  # a hospital that makes its own key needs no CA


def test_the_fingerprint_is_that_of_ssh_keygen(tmp_path):
    """Two people who compare fingerprints on the telephone see different ones."""
    make_certificates(tmp_path, hosts=[], nodes=["a"])
    public = tmp_path / "nodes" / "a.pub"
    try:
        said = subprocess.run(
            ["ssh-keygen", "-l", "-f", str(public)], capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        pytest.skip("ssh-keygen is not installed")
    assert key_fingerprint(public) in said.stdout


def test_nothing_is_overwritten(tmp_path):
    """A second run makes a new CA over the old one, and every hospital is shut out."""
    make_certificates(tmp_path, hosts=["h"], nodes=["a"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for hosts, nodes, told in ((["h"], [], "server.crt"), ([], ["b", "a"], "nodes/a")):
        with pytest.raises(UserError, match=told):
            make_certificates(tmp_path, hosts=hosts, nodes=nodes)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_same_ca_signs_again(tmp_path):
    """Renewing the server's certificate needs a new CA, and a visit to every hospital."""
    make_certificates(tmp_path, hosts=["h"], nodes=[])
    ca = (tmp_path / "ca.crt").read_bytes()
    (tmp_path / "server.crt").unlink()
    (tmp_path / "server.key").unlink()
    make_certificates(tmp_path, hosts=["new.example.org"], nodes=[])
    assert (tmp_path / "ca.crt").read_bytes() == ca
    assert handshake(tmp_path, "new.example.org", tmp_path / "ca.crt") == "ok"
    (tmp_path / "ca.key").unlink()
    with pytest.raises(UserError, match="without its ca"):
        make_certificates(tmp_path, hosts=["h"], nodes=[])


@pytest.mark.parametrize(
    ("hosts", "nodes", "told"),
    [
        ([], [], "nothing to make"),
        (["https://h"], [], "is no host"),
        (["h:9092"], [], "is no host"),
        ([], ["../../etc/x"], "no name for a node"),
        ([], ["a", "a"], "twice"),
    ],
)
def test_what_is_no_name(tmp_path, hosts, nodes, told):
    """A certificate for a name that no TLS client asks for; a key written outside the folder."""
    with pytest.raises(UserError, match=told):
        make_certificates(tmp_path, hosts=hosts, nodes=nodes)
    assert not list(tmp_path.iterdir())
