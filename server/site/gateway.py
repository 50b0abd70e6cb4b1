"""The door that hospitals come through: TLS, `POST /v1/fleet/…`, and nothing else.

Flower's SuperLink serves its Fleet API (for nodes) and its Control API (register nodes, start runs;
no password) on one port. So the SuperLink stays on the coordinator's host and this small proxy is
what hospitals reach. The rule is the whole of it: one method, one prefix, one path segment, no
query; everything else is 403 and never reaches Flower. Bodies are streamed, never collected; the
size of requests and their rate are bounded. What may pass later is answered with 503: a node tries
again after that, and gives up after most other answers.

    python -m fedgraft.server.site.gateway server.yaml

`fedgraft server start` does this, and restarts it.
"""

from __future__ import annotations

import re
import ssl
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import httpx
import uvicorn

from fedgraft.server.site.server_file import Server, load_server, split_address

# every call of Flower 1.41 is a POST there
FLEET = re.compile(r"/v1/fleet/[a-z]+(-[a-z]+)*")
_HOP_BY_HOP = {
    b"connection",
    b"content-length",
    b"expect",
    b"host",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
# uvicorn writes a date of its own
_DROPPED = _HOP_BY_HOP | {b"date"}
# open at once; a node has two or three
MOST_CONNECTIONS = 512
# whose rate is remembered
MOST_ADDRESSES = 4096

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class TooLarge(Exception):
    """A body is larger than the gateway lets through."""


class Rate:
    """A token bucket for each address: `per_second` on average, twice that in a burst."""

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._clock = clock
        # address → (tokens, when)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, address: str) -> bool:
        """Return whether one more request of this address is within its rate."""
        now = self._clock()
        most = 2.0 * self._per_second
        tokens, when = self._buckets.pop(address, (most, now))
        tokens = min(most, tokens + (now - when) * self._per_second)
        admitted = tokens >= 1
        if admitted:
            tokens -= 1
        self._buckets[address] = (tokens, now)
        while len(self._buckets) > MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return admitted


class Gateway:
    """The proxy as an ASGI app.

        app = Gateway("https://127.0.0.1:9091", context, max_body=64_000_000, per_second=200)
        uvicorn.run(app, host="0.0.0.0", port=9092)

    Args:
        upstream: the SuperLink, `https://127.0.0.1:9091`.
        verify: how the SuperLink's certificate is checked.
        max_body: largest request in bytes.
        per_second: most requests of one address in a second.
    """

    def __init__(
        self, upstream: str, verify: ssl.SSLContext | bool, *, max_body: int, per_second: int
    ) -> None:
        self._max_body = max_body
        self._rate = Rate(per_second)
        self._upstream = upstream
        # kept for less than the 5 s after which the SuperLink closes an idle connection
        limits = httpx.Limits(
            max_connections=MOST_CONNECTIONS, max_keepalive_connections=64, keepalive_expiry=3.0
        )
        timeout = httpx.Timeout(60.0, connect=5.0)
        self._client = httpx.AsyncClient(verify=verify, limits=limits, timeout=timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or Starlette's start and stop."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            # a WebSocket is closed by the server that got no answer
            return
        address = scope["client"][0] if scope.get("client") else "unknown"
        if not self._rate.admit(address):
            await _answer(send, 503, "too many requests")
        elif not allowed(scope):
            print(f"refused {scope['method']} {scope['path'][:100]!r} from {address}", flush=True)
            await _answer(send, 403, "only the Fleet API is served here")
        elif (_length(scope) or 0) > self._max_body:
            await _answer(send, 413, "too large")
        else:
            await self._forward(scope, receive, send)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        url = f"{self._upstream}{scope['path']}"
        body = self._body(receive)
        request = self._client.build_request("POST", url, headers=_headers_in(scope), content=body)
        begun = False
        try:
            answer = await self._client.send(request, stream=True)
            try:
                start = {"status": answer.status_code, "headers": _headers_out(answer)}
                begun = True
                await send({"type": "http.response.start", **start})
                async for piece in answer.aiter_raw():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            finally:
                await answer.aclose()
        except TooLarge:
            await _answer(send, 413, "too large")
        except httpx.HTTPError as error:
            print(f"the SuperLink does not answer: {type(error).__name__}", flush=True)
            if begun:
                raise
            await _answer(send, 503, "the SuperLink does not answer")

    async def _body(self, receive: Receive) -> AsyncIterator[bytes]:
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise httpx.ReadError("the node went away")
            piece = message.get("body", b"")
            size += len(piece)
            if size > self._max_body:
                raise TooLarge
            yield piece
            if not message.get("more_body"):
                return

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._client.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return


def allowed(scope: Scope) -> bool:
    """Return whether a request may pass: `POST /v1/fleet/<name>`, written plainly, with no query.

    The path is compared as it was sent, so that no `%2e`, `//` or `..` is read by Flower in another
    way than here.
    """
    path = scope["path"]
    sent = scope.get("raw_path") or path.encode()
    plain = sent.split(b"?")[0] == path.encode()
    if scope["method"] != "POST" or scope["query_string"] or not plain:
        return False
    return FLEET.fullmatch(path) is not None


def _headers_in(scope: Scope) -> Headers:
    """Return the headers of a request that go on to the SuperLink, its length among them."""
    headers = []
    for name, value in scope["headers"]:
        if name.lower() not in _HOP_BY_HOP:
            headers.append((name, value))
    length = _length(scope)
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    return headers


def _headers_out(answer: httpx.Response) -> Headers:
    """Return the headers of an answer that go back to the node, its length among them."""
    headers = []
    for name, value in answer.headers.raw:
        lower = name.lower()
        if lower == b"content-length" or lower not in _DROPPED:
            headers.append((lower, value))
    return headers


def _length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return None


async def _answer(send: Send, status: int, words: str) -> None:
    length = str(len(words)).encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words.encode()})


def serve(server: Server) -> None:
    """Serve until SIGTERM; requests that are under way are finished first."""
    verify = ssl.create_default_context(cafile=str(server.ca))
    gateway = server.gateway
    app = Gateway(
        f"https://{split_address(server.superlink)}",
        verify,
        max_body=gateway.max_body_mb * 1_000_000,
        per_second=gateway.requests_per_second,
    )
    door = split_address(gateway.address)
    config = uvicorn.Config(
        app,
        host=door.host,
        port=door.port,
        ssl_certfile=str(server.certificate),
        ssl_keyfile=str(server.private_key),
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=2 * MOST_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    uvicorn.Server(config).run()


if __name__ == "__main__":
    serve(load_server(sys.argv[1]))
