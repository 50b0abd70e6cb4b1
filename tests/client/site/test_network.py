"""The preflight's way to the coordinator, against real sockets on loopback: each failure has its
own words.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedgraft.client.node.finding import Finding
from fedgraft.client.node.node_file import Connection
from fedgraft.client.site.network import check_connection
from tests.authority import NOW, Authority


@contextlib.contextmanager
def listening(context: ssl.SSLContext | None, *, answer: bytes = b"") -> Iterator[int]:
    """A server on a free port that shakes hands and, asked over HTTP, gives one answer; without a
    context, plain.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    plain, _ = server.accept()
                    with contextlib.suppress(OSError), plain:
                        plain.settimeout(5)
                        talk = context.wrap_socket(plain, server_side=True) if context else plain
                        if _request(talk) and (answer or context is None):
                            talk.sendall(answer or b"HTTP/1.1 400 no\r\n\r\n")
                        talk.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]


def _request(talk: socket.socket) -> bytes:
    """A whole request, header and body: to hang up before its end would be a reset."""
    came = talk.recv(65536)
    while came.startswith(b"POST") and len(came.partition(b"\r\n\r\n")[2]) < int(
        came.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0
    ):
        came += talk.recv(65536)
    return came


def node_key(folder: Path) -> Path:
    path = folder / "node.key"
    path.write_bytes(
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    return path


def look(
    port: int,
    root: Path,
    key: Path | str = "/nowhere",
    *,
    host: str = "localhost",
    health: str | None = None,
):
    connection = Connection(
        superlink=f"{host}:{port}", root_certificates=str(root), private_key=str(key), health=health
    )
    return {finding.what: finding for finding in check_connection(connection)}


def failed(found: dict[str, Finding]) -> Finding:
    """The one step that failed; all before are fine, all behind were not tried."""
    states = [str(finding.state) for finding in found.values()][:5]
    at = states.index("wrong")
    assert states[:at] == ["ok"] * at
    assert set(states[at + 1 :]) <= {"skipped", "ok"}
    return list(found.values())[at]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "federation")


def test_the_right_certificate(authority: Authority) -> None:
    with listening(authority.server()) as port:
        found = look(port, authority.path)
    assert [found[step].state for step in ("DNS", "TCP", "TLS")] == ["ok"] * 3
    assert "29 days" in found["TLS"].detail or "30 days" in found["TLS"].detail


def test_a_certificate_of_another_ca(authority: Authority, tmp_path: Path) -> None:
    """Someone in the middle shows a certificate of their own."""
    other = Authority(tmp_path / "stranger")
    with listening(other.server()) as port:
        found = failed(look(port, authority.path))
    assert found.what == "TLS"
    assert "ask the coordinator for the federation's ca.crt" in found.remedy


@pytest.mark.parametrize(
    ("made", "says", "remedy"),
    [
        ({"days": -1}, "expired", "renew"),
        ({"days": 3}, "expires in", "renew"),
        ({"name": "elsewhere.example"}, "localhost", "the certificate is not for localhost"),
    ],
)
def test_a_certificate_that_does_not_hold(
    authority: Authority, made, says: str, remedy: str
) -> None:
    with listening(authority.server(**made)) as port:
        found = failed(look(port, authority.path))
    assert found.what == "TLS"
    assert says in found.detail
    assert remedy in found.remedy


def test_a_server_without_tls(authority: Authority) -> None:
    with listening(None) as port:
        found = failed(look(port, authority.path))
    assert found.what == "TLS"
    assert "does not speak TLS" in found.remedy


def test_a_ca_file_that_is_missing_or_no_certificate(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not a certificate")
    with listening(authority.server()) as port:
        assert "no such file" in failed(look(port, tmp_path / "nowhere")).detail
        assert "no PEM certificate" in failed(look(port, tmp_path / "notes")).detail


def test_a_closed_port(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = failed(look(port, authority.path))
    assert (found.what, found.detail) == ("TCP", f"port {port} refused")


def test_a_name_that_nobody_knows(authority: Authority) -> None:
    """`.invalid` never resolves (RFC 6761, section 6.4)."""
    found = failed(look(443, authority.path, host="superlink.invalid"))
    assert found.what == "DNS"
    assert "name server" in found.remedy


def test_a_key_that_is_missing_foreign_or_open_to_others(
    authority: Authority, tmp_path: Path
) -> None:
    key = node_key(tmp_path)
    with listening(authority.server()) as port:
        assert "no such file" in look(port, authority.path)["node key"].detail
        assert "not readable" in look(port, authority.path, authority.path)["node key"].detail
        key.chmod(0o644)
        assert look(port, authority.path, key)["node key"].remedy == f"chmod 600 {key}"


@pytest.mark.parametrize(
    ("status", "code", "state", "says"),
    [
        (400, 2003, "ok", "knows it"),
        (412, 2004, "wrong", "does not know it"),
        (401, None, "wrong", "not accepted"),
        (404, None, "wrong", "404"),
    ],
)
def test_what_the_fleet_api_says_of_the_key(authority, tmp_path, status, code, state, says) -> None:
    """The numbers are Flower's (`flwr/supercore/error`); a real SuperLink is asked in tests/e2e."""
    from flwr.supercore.error import ApiErrorCode

    assert (
        int(ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL),
        int(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED),
    ) == (
        2003,
        2004,
    )
    date = (NOW - datetime.timedelta(seconds=90)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    body = f'{{"code": {code}, "detail": "words", "extra": null}}' if code else "{}"
    dates = f"Date: {date}\r\n" * 2  # the server's and a proxy's
    head = f"HTTP/1.1 {status} x\r\n{dates}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with listening(authority.server(), answer=(head + body).encode()) as port:
        found = look(port, authority.path, node_key(tmp_path))
    assert found["node key"].state == state
    assert says in found["node key"].detail
    assert found["clock"].state == "wrong", (
        "this clock is 90 s ahead of the server's, and Flower allows 5"
    )


@pytest.mark.parametrize(("status", "state"), [("SERVING", "ok"), ("NOT_SERVING", "wrong")])
def test_the_superlinks_health(authority: Authority, status: str, state: str) -> None:
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))
    server = grpc.server(futures.ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        found = look(9, authority.path, health=f"127.0.0.1:{port}")["SuperLink health"]
    finally:
        server.stop(None)
    assert found.state == state
    assert found.detail.endswith(status)


def test_no_health_server(authority: Authority) -> None:
    found = look(9, authority.path, health="127.0.0.1:9")["SuperLink health"]
    assert found.state == "wrong"
    assert "UNAVAILABLE" in found.detail
