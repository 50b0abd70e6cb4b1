"""What keeps a node running, with a program in the SuperNode's place; tests/e2e/test_node.py has
the real one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fedgraft.client.node.approvals import Approvals
from fedgraft.client.node.node_file import Node, load_node
from fedgraft.client.site import start_node as starting
from fedgraft.client.site.condition import Condition
from fedgraft.client.site.node_process import environment
from fedgraft.client.site.start_node import check_start
from fedgraft.client.site.watch import Watch
from fedgraft.common.errors import UserError
from fedgraft.common.files.bundle import build_bundle

FLOWER = """\
\x1b[92mINFO \x1b[0m:      Starting Flower SuperNode
INFO:     Uvicorn running on http://127.0.0.1:45123 (Press CTRL+C to quit)
\x1b[92mINFO \x1b[0m:      SuperNode ID: 123
\x1b[92mINFO \x1b[0m:
\x1b[92mINFO \x1b[0m:      [RUN 77, ROUND 3]
\x1b[92mINFO \x1b[0m:      Receiving: train message (ID: ab)
\x1b[92mINFO \x1b[0m:      Received successfully
\x1b[91mERROR \x1b[0m:     ClientApp raised an exception
__main__.BundleRefused: the code sha256:0 that the server sent is not approved at this node
\x1b[92mINFO \x1b[0m:      [RUN 77, ROUND 3]
\x1b[92mINFO \x1b[0m:      Sending: train message (ID: cd)
\x1b[92mINFO \x1b[0m:      Sent successfully
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for name in ("ca.crt", "node.key"):
        (tmp_path / name).write_text("x")
    (tmp_path / "node.yaml").write_text(
        "name: a\ndata: {path: 'sklearn:digits'}\nstore: store\n"
        "connection: {superlink: 'localhost:1', root_certificates: ca.crt, private_key: node.key}\n"
    )
    return tmp_path / "node.yaml"


@pytest.fixture
def node(file: Path) -> Node:
    return load_node(file)


def say_nothing(event: str, what: str) -> None:
    pass


def test_one_line_for_each_event() -> None:
    """The lines are Flower 1.41's, as it printed them."""
    said: list[tuple[str, str]] = []
    say = lambda event, what: said.append((event, what))  # noqa: E731
    watch = Watch(say, Condition(say))
    busy = []
    for line in FLOWER.splitlines():
        watch.take_line(line)
        busy.append(watch.busy)
    assert said == [
        ("connected", "as node 123"),
        ("message", "train, run 77, group 3"),
        ("refused", "the code sha256:0 that the server sent is not approved at this node"),
        ("answered", "run 77, group 3"),
    ]
    assert busy == [False] * 5 + [True] * 6 + [False]


TROUBLE = """\
Executor ready
INFO :      SuperNode ID: 123
Away: the coordinator answers 500
Away: the coordinator does not answer (ConnectError)
Back
INFO :      Connection successful after 1.82 seconds and 3 tries.
WARNING :   Connection attempt failed, retrying in 0.62 seconds
INFO :      [RUN 77, ROUND 3]
Executor was killed (SIGKILL), as happens where memory is short; again in 1 s
Lost: what starts processes for messages at this node was killed (SIGKILL)
ERROR :     [/v1/runtime/push-task-output][ApiError:1008] Runtime task-token authentication failed.
ERROR :     Failed to push task output: Client error '401 Unauthorized' for url 'http://127.0.0.1:1'
Forker was killed (SIGKILL), as happens where memory is short; another is started
Executor ready
"""


def test_a_node_says_when_it_cannot_work_and_when_it_can() -> None:
    """A node that says connected and cannot work; one that says it at every line."""
    said: list[tuple[str, str]] = []

    def say(event: str, what: str) -> None:
        said.append((event, what))

    condition = Condition(say)
    watch = Watch(say, condition)
    able = []
    for line in TROUBLE.splitlines():
        watch.take_line(line)
        able.append(condition.able)
    assert able == [False, True, False, False, True, True, True, True] + 5 * [False] + [True]
    events = [event for event, _ in said]
    assert events == [
        "connected",
        "unable",
        "able",
        "connected",
        "unable",
        "lost",
        "restarted",
        "able",
    ]
    assert said[1][1] == "the coordinator answers 500; it is asked again"
    assert "memory is short" in said[4][1]
    assert said[5][1].startswith("run 77, group 3: what starts processes")
    assert (condition.restarts["executor"], condition.restarts["forker"]) == (1, 1)
    assert condition.lost == 1


def test_a_key_that_is_still_held_is_told_from_other_trouble() -> None:
    watch = Watch(say_nothing, Condition(say_nothing))
    watch.take_line("Failed to initialize the connection to the SuperLink.")
    watch.take_line("[code: 2004] Failed to activate SuperNode.")
    assert watch.refused
    watch.take_line("INFO :      SuperNode ID: 5")
    assert not watch.refused
    other = Watch(say_nothing, Condition(say_nothing))
    other.take_line(
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer"
        " certificate"
    )
    assert "not one of this federation's CA" in other.trouble
    assert not other.refused


def test_it_does_not_start_without_approved_code_or_as_root(
    node: Node, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no code is approved"):
        check_start(node, allow_root=True)
    Approvals(node.approvals).install(build_bundle(), "me")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UserError, match="running as root"):
        check_start(node, allow_root=False)
    check_start(node, allow_root=True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda *_, **__: True)
    with pytest.raises(UserError, match="this user can change the approved code"):
        check_start(node, allow_root=False)
    monkeypatch.undo()
    (node.approvals / "apps" / build_bundle().folder / "client" / "round.py").write_text("")
    with pytest.raises(UserError, match="changed or removed"):
        check_start(node, allow_root=True)
    (file.parent / "node.key").unlink()
    with pytest.raises(UserError, match="no such file"):
        check_start(load_node(file), allow_root=True)


def test_its_processes_call_nobody_and_see_no_checkout(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    seen = environment(node)
    assert "PYTHONPATH" not in seen
    assert (seen["FLWR_DISABLE_UPDATE_CHECK"], seen["FLWR_TELEMETRY_ENABLED"]) == ("1", "0")
    assert seen["FLWR_HOME"] == str(node.approvals)
    program = Path(seen["PATH"].split(os.pathsep)[0]) / "flwr-clientapp"
    assert os.access(program, os.X_OK)
    done = subprocess.run([program, "--help"], env=seen, capture_output=True, text=True)
    assert "--runtime-api-address" in done.stdout, "Flower's own program, by way of ours"


STAND_IN = textwrap.dedent("""\
    #!{python}
    import pathlib, signal, sys, time
    count = pathlib.Path({count!r})
    number = int(count.read_text() or 0) + 1 if count.exists() else 1
    count.write_text(str(number))
    if number == 1:
        print("[code: 2004] Failed to activate SuperNode.", flush=True)
        sys.exit(1)
    if number == 2:
        print("Connection refused", flush=True)
        sys.exit(1)
    signal.signal(signal.SIGTERM, lambda *_: (print("INFO : signed off", flush=True), sys.exit(0)))
    print("INFO :      SuperNode ID: 5", flush=True)
    print("INFO :      [RUN 77, ROUND 1]", flush=True)
    print("INFO :      Receiving: train message (ID: ab)", flush=True)
    while not pathlib.Path({finish!r}).exists():
        time.sleep(0.05)
    print("INFO :      Sent successfully", flush=True)
    time.sleep(60)
""")


@pytest.fixture
def started(node: Node, file: Path, tmp_path: Path):
    """`node start` with the stand-in, in a process of its own; waits are a hundredth of the real
    ones.
    """
    Approvals(node.approvals).install(build_bundle(), "me")
    stand_in, finish = tmp_path / "flower-supernode", tmp_path / "finish"
    stand_in.write_text(
        STAND_IN.format(python=sys.executable, count=str(tmp_path / "count"), finish=str(finish))
    )
    stand_in.chmod(0o755)
    script = textwrap.dedent(f"""
        from pathlib import Path
        from fedgraft.client.site import node_process, start_node as starting
        from fedgraft.client.node.node_file import load_node
        starting.REFUSED_WAIT, starting.LONGEST_WAIT = 0.65, 0.1
        node_process.supernode.__file__ = {str(stand_in)!r}
        file = Path({str(file)!r})
        starting.start(load_node(file), starting.Running(file), allow_root=True)
    """)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", script], env=environment, stdout=out, stderr=out
        )
    try:
        yield process, log, finish
    finally:
        process.kill()
        process.wait()


def until(log: Path, words: str) -> str:
    deadline = time.monotonic() + 60
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return log.read_text()


@pytest.mark.slow
def test_it_waits_out_a_held_key_and_answers_before_it_leaves(started) -> None:
    process, log, finish = started
    said = until(log, "train, run 77")
    assert (
        "the SuperLink holds this key (up to a minute after a crash), or does not know it; again"
        " in 1 s" in said
    )
    assert said.count("ended") == 2, "refused, then not reached: it tried again both times"
    process.send_signal(signal.SIGTERM)
    until(log, "draining")
    assert process.poll() is None, "a message is in hand"
    finish.touch()
    assert process.wait(30) == 0
    said = log.read_text()
    assert said.index("answered") < said.index("stopped")


@pytest.mark.slow
def test_a_second_signal_does_not_wait(started) -> None:
    process, log, _ = started
    until(log, "train, run 77")
    process.send_signal(signal.SIGTERM)
    until(log, "draining")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert "answered" not in log.read_text()


def test_waits_are_longer_than_a_superlink_holds_a_key() -> None:
    """Flower: two heartbeats of 30 s may be missed before a node counts as gone."""
    from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL

    assert starting.REFUSED_WAIT > 2 * HEARTBEAT_DEFAULT_INTERVAL
