"""How a run is, as the SuperLink says it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse
from flwr.proto.run_pb2 import Run, RunStatus

from fedgraft.common.errors import RunFailed
from fedgraft.server.site.flower_processes import COMPLETED, Flower

RUN = 7


class SuperLink(BaseHTTPRequestHandler):
    """Knows one run, which is completed."""

    def do_POST(self) -> None:
        request = ListRunsRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        known = request.run_id == RUN
        run = Run(run_id=RUN, status=RunStatus(status="finished", sub_status="completed"))
        content = ListRunsResponse(run_dict={RUN: run}).SerializeToString() if known else b"none"
        self.send_response(200 if known else 404)
        self.send_header("content-type", self.headers["content-type"])
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    answers = ThreadingHTTPServer(("127.0.0.1", 0), SuperLink)
    threading.Thread(target=answers.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{answers.server_port}"
    answers.shutdown()
    answers.server_close()


@pytest.fixture(autouse=True)
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that reaches nobody."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")


def test_it_is_in_the_words_of_flowers_own_list(address: str, tmp_path: Path) -> None:
    """A run that is followed for ever; a proxy that is asked for this machine itself."""
    flower = Flower.connect(tmp_path, address, None)
    assert flower.status(str(RUN)) == COMPLETED


def test_what_is_not_known_is_said(address: str, tmp_path: Path) -> None:
    """A traceback of whoever asks for a run that is gone, or where nobody answers."""
    with pytest.raises(RunFailed, match="says nothing of run 8: none"):
        Flower.connect(tmp_path, address, None).status("8")
    with pytest.raises(RunFailed, match="does not answer"):
        Flower.connect(tmp_path, "127.0.0.1:1", None).status(str(RUN))
