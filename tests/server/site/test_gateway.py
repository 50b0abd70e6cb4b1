"""The gateway by itself: what it lets through, byte for byte, and what it holds back. TLS is in
tests/e2e.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from fedgraft.server.site.gateway import Gateway, Rate, allowed


class Upstream:
    """A SuperLink that answers with the hash of what it was sent, or with a long body, or not at
    all.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str]]] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = b"".join([piece async for piece in request.stream])  # type: ignore[union-attr]
        self.seen.append((request.method, request.url.path, dict(request.headers)))
        if request.url.path.endswith("get-fab"):
            raise httpx.ConnectError("refused")
        digest = hashlib.sha256(body).digest()

        async def answer() -> AsyncIterator[bytes]:
            yield digest[:10]
            yield digest[10:]

        return httpx.Response(
            200, content=answer(), headers={"content-type": "application/protobuf"}
        )


def ask(
    path: str,
    body: list[bytes],
    *,
    headers: list[tuple[bytes, bytes]] | None = None,
    **options: Any,
):
    """One request through a gateway with an upstream in this process: (status, body, what the
    upstream saw).
    """
    upstream = Upstream()
    gateway = Gateway(
        "http://superlink", True, max_body=10_000_000, per_second=options.get("per_second", 100)
    )
    gateway._client = httpx.AsyncClient(transport=httpx.MockTransport(upstream))
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers or [],
        "client": ("192.0.2.1", 1),
    }
    pieces, sent = list(body), []

    async def receive() -> dict[str, Any]:
        piece = pieces.pop(0) if pieces else b""
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def times() -> None:
        for _ in range(options.get("times", 1)):
            await gateway(scope, receive, send)

    asyncio.run(times())
    starts = [message["status"] for message in sent if message["type"] == "http.response.start"]
    answer = b"".join(
        message["body"] for message in sent if message["type"] == "http.response.body"
    )
    return starts, answer, upstream.seen


def test_bodies_pass_unchanged_in_pieces():
    """A body that is cut, doubled or held back; a header that Flower's signature needs and that is
    lost.
    """
    body = [bytes([k]) * 1_000_003 for k in range(7)]
    starts, answer, seen = ask(
        "/v1/fleet/push-object", body, headers=[(b"flwr-signature", b"abc"), (b"host", b"evil")]
    )
    assert starts == [200]
    assert answer == hashlib.sha256(b"".join(body)).digest()
    method, path, headers = seen[0]
    assert (method, path, headers["flwr-signature"]) == ("POST", "/v1/fleet/push-object", "abc")
    assert headers["host"] == "superlink"


def test_what_is_too_large_stops():
    """Somebody who fills the coordinator's memory or disk, told by its length or not."""
    assert ask("/v1/fleet/push-object", [b"x" * 1_000_000] * 11)[0] == [413]
    starts, _, seen = ask(
        "/v1/fleet/push-object", [b"x"], headers=[(b"content-length", b"99999999999")]
    )
    assert (starts, seen) == ([413], [])


def test_a_superlink_that_is_away_is_503():
    """Any other answer than 502, 503 and 504 ends a node for good (flwr 1.41, http_retry.py)."""
    assert ask("/v1/fleet/get-fab", [b""])[0] == [503]


def test_the_rate_is_bounded_by_address():
    """One hospital's broken node starves the others. 2 a second: a burst of 4, then one each half
    second.
    """
    clock = [0.0]
    rate = Rate(2, lambda: clock[0])
    assert [rate.admit("a") for _ in range(6)] == [True] * 4 + [False] * 2
    assert rate.admit("b")
    clock[0] = 0.5
    assert [rate.admit("a") for _ in range(2)] == [True, False]
    starts, _, seen = ask("/v1/fleet/get-run", [b""], per_second=1, times=4)
    assert starts == [200, 200, 503, 503]
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("method", "sent", "decoded", "query", "passes"),
    [
        ("POST", b"/v1/fleet/pull-messages", "/v1/fleet/pull-messages", b"", True),
        ("GET", b"/v1/fleet/pull-messages", "/v1/fleet/pull-messages", b"", False),
        ("POST", b"/v1/fleet/pull%2Dmessages", "/v1/fleet/pull-messages", b"", False),
        ("POST", b"/v1/fleet/pull-messages", "/v1/fleet/pull-messages", b"x", False),
        ("POST", b"/v1/fleet/", "/v1/fleet/", b"", False),
        ("POST", b"/v1/fleet/a\n", "/v1/fleet/a\n", b"", False),
        ("POST", b"/v1/control/start-run", "/v1/control/start-run", b"", False),
        ("POST", b"/v1/fleet/../control/start-run", "/v1/fleet/../control/start-run", b"", False),
    ],
)
def test_the_rule(method, sent, decoded, query, passes):
    """A spelling that this file reads in one way and Flower in another."""
    scope = {"method": method, "raw_path": sent, "path": decoded, "query_string": query}
    assert allowed(scope) is passes
