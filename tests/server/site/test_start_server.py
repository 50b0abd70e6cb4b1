"""The coordinator's processes, as they are started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import PushTaskOutputRequest, PushTaskOutputResponse
from flwr.supercore.superexec.executor import ExecutionSpec

from fedgraft.server.site import serverapp, start_server, superexec

ASK = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    pass
print([name for name in sys.modules if name.split(".")[0] == "fedgraft"])
"""


@pytest.mark.slow
def test_the_process_of_a_run_has_no_code_of_ours_before_the_bundles() -> None:
    """A run whose bundle's `fedgraft` is not what runs, because the installed one is imported."""
    path = str(Path(serverapp.__file__).resolve())
    done = subprocess.run(
        [sys.executable, "-P", "-c", ASK, path], capture_output=True, text=True, check=True
    )
    assert "--runtime-api-address" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_superexec_is_flowers_with_its_own_words() -> None:
    """A wrapper that takes other words than Flower's own, and a server that does not start."""
    words = [sys.executable, "-m", superexec.__name__, "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Flower version")


class SuperLink(BaseHTTPRequestHandler):
    """Is in trouble when it is told for the first time."""

    heard: list[PushTaskOutputRequest]
    called: threading.Event

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        self.heard.append(PushTaskOutputRequest.FromString(self.rfile.read(length)))
        status = 500 if len(self.heard) == 1 else 200
        content = PushTaskOutputResponse().SerializeToString()
        self.send_response(status)
        self.send_header("content-type", self.headers["content-type"])
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        if status == 200:
            self.called.set()

    def log_message(self, *args: object) -> None:
        pass


def test_a_killed_serverapp_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is listed as running for a minute after its process was killed; a SuperLink in
    trouble that is told once.
    """
    SuperLink.heard, SuperLink.called = [], threading.Event()
    answers = ThreadingHTTPServer(("127.0.0.1", 0), SuperLink)
    threading.Thread(target=answers.serve_forever, daemon=True).start()
    program = tmp_path / "flwr-serverapp"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(superexec.starter, "subprocess", subprocess)
    spec = ExecutionSpec(
        task_type="flwr-serverapp",  # type: ignore[arg-type]
        runtime_api_address=f"127.0.0.1:{answers.server_port}",
        token="t",
        insecure=True,
        root_certificates_path=None,
        runtime_dependency_install=False,
        parent_pid=os.getpid(),
        suppress_output=True,
        task_id=1,
    )
    superexec.Watching().launch(spec)
    assert SuperLink.called.wait(60)
    answers.shutdown()
    answers.server_close()
    assert len(SuperLink.heard) == 2
    assert SuperLink.heard[1].sub_status == SubStatus.FAILED
    assert signal.SIGKILL.name in SuperLink.heard[1].details


def test_what_a_person_set_for_glibc_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that keep what they freed, or a coordinator's own setting that is lost."""
    server: Any = SimpleNamespace(work=tmp_path, hub=None)
    for name in start_server.GIVES_BACK:
        monkeypatch.delenv(name, raising=False)
    assert start_server._environment(server).items() >= start_server.GIVES_BACK.items()
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")
    assert start_server._environment(server)["MALLOC_ARENA_MAX"] == "8"
