"""A proxy that the environment names: who is reached through it, as gRPC decides, and who never is.

gRPC takes the first of `grpc_proxy`, `https_proxy` and `http_proxy`, and none for hosts that end in
a word of `no_grpc_proxy`, or else of `no_proxy`. It asks the proxy to CONNECT, and TLS goes through
that to the other end.
"""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

NAMES = ("grpc_proxy", "https_proxy", "http_proxy")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
DEFAULT_PORT = 80
LONGEST_ANSWER = 65_536


class Proxy(NamedTuple):
    """Where a proxy listens, and what it is told of who asks.

    proxy = proxy_for("fl.example.org")
    """

    host: str
    port: int
    authorization: str = ""


class ProxyRefused(OSError):
    """The proxy answered, and does not let this through."""


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Let no proxy be asked for this machine itself: processes of one node or one simulation talk
    to one another, and a proxy elsewhere cannot reach them.
    """
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        given = environment.get(name, "")
        if name == "no_grpc_proxy" and not given:
            # were it there, gRPC would not look at no_proxy any more
            continue
        words = [word.strip() for word in given.split(",") if word.strip()]
        missing = [host for host in LOOPBACK if host not in words]
        environment[name] = ",".join([*words, *missing])


def proxy_for(host: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy through which gRPC reaches a host; None: it goes there by itself.

    Raises:
        ValueError: the environment names one that is no http://HOST:PORT.
    """
    spared = environment.get("no_grpc_proxy") or environment.get("no_proxy", "")
    for word in spared.split(","):
        if word.strip() and host.endswith(word.strip()):
            return None
    for name in NAMES:
        address = environment.get(name, "")
        if address:
            return _read(name, address)
    return None


def _read(name: str, address: str) -> Proxy:
    parts = urlsplit(address)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{name} is no http://HOST:PORT, and gRPC takes no other")
    authorization = ""
    if parts.username:
        told = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = base64.b64encode(told.encode()).decode()
    return Proxy(parts.hostname, parts.port or DEFAULT_PORT, authorization)


def connect(host: str, port: int, timeout: float) -> socket.socket:
    """Return a connection to a host, by the way that gRPC takes.

    Raises:
        ProxyRefused: the proxy does not let it through.
        OSError: nobody answers.
    """
    proxy = proxy_for(host)
    if proxy is None:
        return socket.create_connection((host, port), timeout=timeout)
    opened = socket.create_connection((proxy.host, proxy.port), timeout=timeout)
    try:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if proxy.authorization:
            lines.append(f"Proxy-Authorization: Basic {proxy.authorization}")
        opened.sendall("\r\n".join([*lines, "", ""]).encode())
        status = _read_status(opened)
    except OSError:
        opened.close()
        raise
    words = status.split(" ", 2)
    if len(words) < 2 or words[1] != "200":
        opened.close()
        raise ProxyRefused(f"the proxy {proxy.host}:{proxy.port} answers {status[:100]!r}")
    return opened


def _read_status(opened: socket.socket) -> str:
    """Return the first line of a proxy's answer; its headers are read, and nothing behind them."""
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        read = opened.recv(1)
        if not read or len(answer) > LONGEST_ANSWER:
            raise ProxyRefused("the proxy ended the connection")
        answer += read
    return answer.split(b"\r\n", 1)[0].decode("latin-1")
