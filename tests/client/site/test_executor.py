"""The processes that a node's messages are worked on in: forked with their imports done, and
otherwise alone.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fedgraft.client.site import executor
from fedgraft.common.wire import lost_process

LAUNCHER = """
import json, os, sys
ours = [name for name in sys.modules if name.split(".")[0] == "fedgraft"]
told = {"argv": sys.argv, "pid": os.getpid(), "parent": os.getppid(), "ours": ours,
        "torch": "torch" in sys.modules, "name": open("/proc/self/comm").read()}
with open("told", "w") as file:
    file.write(json.dumps(told) + "\\n")
if "fail" in sys.argv:
    raise ValueError("of the app")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The executor beside another launcher, which writes what it sees into a named pipe."""
    site, wire = tmp_path / "client" / "site", tmp_path / "common" / "wire"
    site.mkdir(parents=True)
    wire.mkdir(parents=True)
    (site / "launcher.py").write_text(LAUNCHER)
    shutil.copy(executor.__file__, site / "executor.py")
    shutil.copy(lost_process.__file__, wire / "lost_process.py")
    os.mkfifo(site / "told")
    monkeypatch.chdir(site)
    spec = importlib.util.spec_from_file_location("copied", site / "executor.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ended() -> queue.Queue[tuple[list[str], int]]:
    """How processes ended."""
    return queue.Queue()


@pytest.fixture
def forker(module: ModuleType, ended: queue.Queue[tuple[list[str], int]]) -> Iterator[Any]:
    forker = module.Forker(lambda words, status: ended.put((words, status)))
    yield forker
    forker._process.stdin.close()
    assert forker._process.wait(30) == 0  # it ends with the pipe, as when the SuperExec is killed


def told() -> dict[str, Any]:
    return json.loads(Path("told").read_text())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_for_each_message_with_torch_imported_and_nothing_of_ours(forker: Any) -> None:
    """Approved code must be read by each process for itself; a process that fails takes nothing
    with it.
    """
    seen = []
    for words in (
        ["flwr-clientapp", "--token", "a"],
        ["flwr-clientapp", "fail"],
        ["flwr-clientapp", "c"],
    ):
        forker.start(words)
        seen.append(told())
        assert seen[-1]["argv"][1:] == words[1:]
    assert len({each["pid"] for each in seen}) == 3
    assert {each["parent"] for each in seen} == {forker._process.pid}
    assert all(
        each["torch"] and each["ours"] == [] and each["name"] == "flwr-clientapp\n" for each in seen
    )


def test_where_the_forker_is_killed_the_next_message_starts_another(forker: Any) -> None:
    first = forker._process
    os.kill(first.pid, signal.SIGKILL)
    first.wait(30)
    forker.start(["flwr-clientapp", "again"])
    assert told()["argv"][1:] == ["again"]
    assert forker._process.pid != first.pid


def test_it_is_waited_for_and_started_again_before_a_task_is_taken(
    forker: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """A task that is taken for a process that is not there in time; a node that says it can work
    while it cannot; a forker whose death nobody sees before the next message.
    """
    assert forker.wait()
    assert not forker.wait()
    first = forker._process
    os.kill(first.pid, signal.SIGKILL)
    first.wait(30)
    assert forker.wait()
    assert forker._process.pid != first.pid
    assert "Forker was killed (SIGKILL)" in capfd.readouterr().out


def test_a_forker_that_cannot_begin_ends_the_executor(module: ModuleType) -> None:
    """A SuperExec that starts forkers for ever, and tells nobody."""
    Path("executor.py").write_text("raise SystemExit(3)")
    forker = module.Forker(lambda words, status: None)
    with pytest.raises(SystemExit, match="ended with status 3"):
        forker.wait()


KILLED = """
import os, signal, sys
if "killed" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
if "fails" in sys.argv:
    raise ValueError("of the app")
"""


def test_it_says_how_each_process_ended(
    forker: Any, ended: queue.Queue[tuple[list[str], int]]
) -> None:
    """A process that was killed while it worked on a message, and a SuperNode that waits a minute
    for its heartbeat.
    """
    Path("launcher.py").write_text(KILLED)
    for words, status in ((["a", "killed"], -9), (["b", "fails"], 1), (["c"], 0)):
        forker.start(words)
        assert ended.get(timeout=60) == (words, status)


def test_words_are_those_that_flower_itself_would_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore.superexec.executor import (
        ExecutionSpec,
        SubprocessExecutor,
        subprocess_executor,
    )

    written: list[list[str]] = []
    fake = SimpleNamespace(
        Popen=lambda words, **_: written.append(words), DEVNULL=subprocess.DEVNULL
    )
    monkeypatch.setattr(subprocess_executor, "subprocess", fake)
    for trust in (
        {"insecure": True, "root_certificates_path": None},
        {"insecure": False, "root_certificates_path": "ca"},
    ):
        spec = ExecutionSpec(
            task_type="flwr-clientapp",  # type: ignore[arg-type]
            runtime_api_address="127.0.0.1:1",
            token="t",
            runtime_dependency_install=False,
            parent_pid=7,
            suppress_output=False,
            task_id=3,
            **trust,  # type: ignore[arg-type]
        )
        SubprocessExecutor().launch(spec)
        theirs, ours = written[-1], executor.arguments(spec)
        assert ours[:5] == theirs[:5]
        assert sorted(ours) == sorted(theirs)


def test_flower_still_has_what_the_executor_replaces() -> None:
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec import run_superexec

    assert "executor.reconcile()" in inspect.getsource(run_superexec.run_superexec)
    assert callable(run_superexec.get_executor)  # pyright: ignore[reportPrivateImportUsage]
    assert TaskType.CLIENT_APP == executor.NAME
    assert run_superexec._TASK_POLL_INTERVAL_ENV == "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
