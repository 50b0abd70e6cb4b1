"""Flower's SuperNode with shorter pauses, and nothing in it that ends unseen: it leans on names
inside Flower, which are read here.
"""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import flwr.supernode.fleet_http_connection as fleet
import flwr.supernode.nodestate.nodestate_factory as factory
import flwr.supernode.start_client_internal as loop
import httpx
import pytest

from fedgraft.client.site import supernode

cli = importlib.import_module("flwr.supernode.cli.flower_supernode")
CALM = SimpleNamespace(is_torn=False)


def answer_of(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://fl.example.org/v1/fleet/pull-messages")
    response = httpx.Response(status, request=request)
    return httpx.HTTPStatusError(f"status {status}", request=request, response=response)


def test_flower_still_has_what_is_replaced() -> None:
    """A release of Flower that starts its parts in another way, and a node that is a zombie again
    without a word.
    """
    source = inspect.getsource(loop)
    assert "time.sleep(3)" in source
    assert source.count("time.") == source.count("time.sleep(") + source.count(
        "limit to the total time."
    )
    assert source.count("subprocess.") == source.count("subprocess.Popen(command)")
    assert "state_factory.state()" in source
    assert "start_client_internal(" in inspect.getsource(cli.flower_supernode)
    assert "InMemoryNodeState(object_store)" in inspect.getsource(factory.NodeStateFactory)
    connection = inspect.getsource(fleet.http_request_response)
    assert "make_simple_http_retry_invoker()" in connection
    assert "HeartbeatSender(send_node_heartbeat)" in connection


def test_another_flower_is_told() -> None:
    """A name that Flower no longer has, replaced without effect."""
    with pytest.raises(SystemExit, match="this release of Flower has no"):
        supernode.replace(SimpleNamespace(__name__="flwr.x"), "time", None)  # type: ignore[arg-type]


def test_a_pause_is_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds that take two seconds longer; a loop that waits for ever for the rest of a reply."""
    slept: list[float] = []
    monkeypatch.setattr(supernode.time, "sleep", slept.append)
    for seconds in (3, 0.5):
        supernode.pause(seconds, CALM)
    assert slept == [supernode.PAUSE, 0.5]
    with pytest.raises(SystemExit, match="cut off"):
        supernode.pause(0.5, SimpleNamespace(is_torn=True))


def test_a_heartbeat_lives_through_a_500(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that dies of one answer of 500: a node that asks for messages and is offline."""
    killed: list[int] = []
    monkeypatch.setattr(supernode.os, "kill", lambda pid, number: killed.append(number))
    ended = threading.Event()
    answers: list[Exception | None] = [answer_of(500), answer_of(503), None]

    def beat() -> bool:
        error = answers.pop(0)
        if error is not None:
            raise error
        ended.set()
        return True

    sender = supernode.flower_heartbeat(beat)
    sender.start()
    assert ended.wait(30)
    assert sender.is_running
    sender.stop()
    assert killed == []


def test_a_node_that_the_superlink_does_not_know_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without a heartbeat that stays."""
    left = threading.Event()
    monkeypatch.setattr(supernode.os, "kill", lambda pid, number: left.set())

    def beat() -> bool:
        raise RuntimeError("The SuperLink does not recognize this SuperNode.")

    sender = supernode.flower_heartbeat(beat)
    sender.start()
    assert left.wait(30)
    sender.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("body", "status"), [("pass", 1), ("sys.exit(0)", 0), ("1 / 0", 1)])
def test_the_process_ends_with_the_loop(body: str, status: int) -> None:
    """A process that stays, because one of Flower's threads does, after its loop has ended."""
    script = f"""
import sys, threading
sys.path.insert(0, {str(Path(supernode.__file__).parent)!r})
import supernode
def run():
    threading.Thread(target=threading.Event().wait).start()
    {body}
supernode.leave_after(run)
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True)
    assert done.returncode == status, done


class State:
    """What an executor's keeper tells the state of messages."""

    def __init__(self) -> None:
        self.failed: list[tuple[str, bool]] = []
        self.told = threading.Event()

    def waits(self) -> bool:
        return False

    def fail(self, reason: str, *, waiting: bool) -> None:
        self.failed.append((reason, waiting))
        if len(self.failed) == supernode.FEW:
            self.told.set()
            # the keeper's thread is not needed any more
            threading.Event().wait()


def test_an_executor_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that stays dead; messages that wait for ever for one that cannot be started."""
    monkeypatch.setattr(supernode, "SHORTEST_PAUSE", 0.0)
    state = State()
    starts = tmp_path / "starts"
    kept = supernode.Executor(state)
    kept.begin(["sh", "-c", f"echo >> {starts}; kill -9 $$"])
    assert state.told.wait(30)
    reasons = [reason for reason, _ in state.failed]
    assert all("was killed (SIGKILL)" in reason for reason in reasons)
    assert [waiting for _, waiting in state.failed] == [False, False, True]
    assert len(starts.read_text()) >= supernode.FEW
    assert "Executor was killed (SIGKILL)" in capfd.readouterr().out


def test_an_executor_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that dies with a program that is missing, and a node that says nothing."""
    monkeypatch.setattr(supernode, "FEW", 1)
    state = State()
    supernode.Executor(state).begin(["/no/such/program"])
    assert state.told.wait(30)
    assert "cannot be started (No such file or directory)" in state.failed[0][0]
