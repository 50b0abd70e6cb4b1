"""A hospital's proxy: the way out through it, a sentence where it refuses, and loopback never."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.common.wire.proxies import LOOPBACK, proxy_for, spare_loopback
from tests.authority import Authority
from tests.client.site.test_network import failed, listening, look

NAMES = ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "NO_PROXY", "no_grpc_proxy")


@pytest.fixture(autouse=True)
def no_other_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def proxying(onto: int | None) -> Iterator[tuple[int, list[str]]]:
    """A proxy that knows one host and passes it on to a port here; None: it refuses. What it is
    asked is listed.
    """
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def pump(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while chunk := source.recv(65536):
                    target.sendall(chunk)
                target.shutdown(socket.SHUT_WR)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    came, _ = server.accept()
                    came.settimeout(5)
                    request = b""
                    while not request.endswith(b"\r\n\r\n"):
                        request += came.recv(1)
                    asked.append(request.split(b"\r\n")[0].decode())
                    if onto is None:
                        came.sendall(b"HTTP/1.1 403 Forbidden by policy\r\n\r\n")
                        came.close()
                        continue
                    came.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    there = socket.create_connection(("127.0.0.1", onto), timeout=5)
                    for pair in ((came, there), (there, came)):
                        threading.Thread(target=pump, args=pair, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], asked


def test_the_check_goes_out_as_the_node_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose name only the proxy can resolve: ✓ by another way says nothing of the node."""
    authority = Authority(tmp_path / "federation")
    with (
        listening(authority.server(name="coordinator.invalid")) as port,
        proxying(port) as (proxy, asked),
    ):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy}")
        found = look(port, authority.path, host="coordinator.invalid")
    assert [found[step].state for step in ("DNS", "TCP", "TLS")] == ["ok"] * 3
    assert "through the proxy" in found["TCP"].detail
    assert set(asked) == {f"CONNECT coordinator.invalid:{port} HTTP/1.1"}


def test_a_proxy_that_refuses_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that dies of it while the check says ✓."""
    authority = Authority(tmp_path / "federation")
    with proxying(None) as (proxy, _):
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss@127.0.0.1:{proxy}")
        found = failed(look(9092, authority.path, host="coordinator.invalid"))
    assert found.what == "TCP"
    assert "403 Forbidden by policy" in found.detail
    assert "CONNECT to coordinator.invalid:9092" in found.remedy
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    assert "gRPC takes no other" in look(1, authority.path, host="a.invalid")["proxy"].detail


def test_loopback_never_meets_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC between the processes of one node, with a proxy in the environment that refuses."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with proxying(None) as (proxy, asked):
        environment = {name: f"http://127.0.0.1:{proxy}" for name in ("http_proxy", "https_proxy")}
        spare_loopback(environment)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with contextlib.closing(grpc.insecure_channel(f"127.0.0.1:{port}")) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            stub.Check(health_pb2.HealthCheckRequest(), timeout=10)  # type: ignore[attr-defined]
    server.stop(None)
    assert asked == []


@given(
    st.lists(st.sampled_from(["a.example", "127.0.0.1", " localhost ", ""]), max_size=4),
    st.sampled_from(["no_proxy", "no_grpc_proxy"]),
)
def test_what_was_spared_before_still_is(words: list[str], name: str) -> None:
    """A hospital's own no_proxy that is lost."""
    environment = {name: ",".join(words), "http_proxy": "http://proxy.example:3128"}
    before = dict(environment)
    spare_loopback(environment)
    for host in LOOPBACK:
        assert proxy_for(host, environment) is None
    for host in ("a.example", "b.example"):
        assert proxy_for(host, environment) == proxy_for(host, before)
    again = dict(environment)
    spare_loopback(again)
    assert again == environment
