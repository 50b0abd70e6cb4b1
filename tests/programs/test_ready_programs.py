"""What is typed to the ready interpreter begins and ends as a program of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
import beside
print(sys.argv[1:], os.getcwd(), os.environ["ONLY_HERE"], sys.stdin.read(), beside.NAME)
print("wrong", file=sys.stderr)
sys.exit(3)
"""


def test_streams_words_folder_environment_and_status(tmp_path: Path, programs: Path) -> None:
    """A test of a command that looks at another folder, or takes an error for success."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("NAME = 'beside'")
    shown = []
    for python in (programs / "python", Path(sys.executable)):
        done = subprocess.run(
            [python, "script.py", "a b", "é"],
            cwd=tmp_path,
            env=os.environ | {"ONLY_HERE": "yes"},
            input="asked",
            capture_output=True,
            text=True,
        )
        shown.append((done.returncode, done.stdout, done.stderr))
    assert shown[0] == shown[1]
    assert shown[0][0] == 3


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("raise ValueError('x')", 1),
        ("import sys; sys.exit('in words')", 1),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import atexit; atexit.register(print, 'at the end')", 0),
    ],
)
def test_it_ends_as_an_interpreter_does(
    tmp_path: Path, programs: Path, source: str, status: int
) -> None:
    """A crash that is none, or work at the end that is not done."""
    (tmp_path / "script.py").write_text(source)
    ready, new = (
        subprocess.run([python, "script.py"], cwd=tmp_path, capture_output=True, text=True)
        for python in (programs / "python", sys.executable)
    )
    assert ready.returncode == new.returncode == status
    assert ready.stdout == new.stdout
    assert ready.stderr.splitlines()[-1:] == new.stderr.splitlines()[-1:]


def test_ctrl_c_reaches_it(tmp_path: Path, programs: Path) -> None:
    """A command that goes on after whoever typed it has ended it."""
    source = "import time\nprint('here', flush=True)\ntime.sleep(600)"
    (tmp_path / "script.py").write_text(source)
    words = [programs / "python", "script.py"]
    with subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "here\n"
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=60)
    assert "KeyboardInterrupt" in told
    assert running.returncode == -signal.SIGINT
