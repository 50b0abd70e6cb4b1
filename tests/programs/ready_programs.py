"""`fedgraft` and `python` for tests that type commands: as processes of their own, without the
three seconds in which each imports torch, Opacus and fedgraft.

What differs from the installed command is how a process begins (`ready_interpreter.py`). A few
tests begin it as people do: `test_the_installed_command`, Ctrl-C, and all federations.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from fedgraft.simulations.deployment.processes import wait_until

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAMES = ("fedgraft", "python")


@contextlib.contextmanager
def ready_programs(folder: Path) -> Iterator[Path]:
    """Start an interpreter that is ready. Return the folder of the programs that hand themselves
    over to it, and are of use in the block.

    Args:
        folder: a new one; a socket lies there, too, so its name should be short.
    """
    door = folder / "door"
    source = (HERE / "ordered_program.py").read_text().replace("SOCKET", str(door))
    programs = folder / "bin"
    programs.mkdir()
    for name in NAMES:
        # no site, no environment: a start of some milliseconds
        (programs / name).write_text(f"#!{Path(sys.executable).resolve()} -SE\n{source}")
        (programs / name).chmod(0o755)
    words = [sys.executable, "-P", HERE / "ready_interpreter.py", door]
    process = subprocess.Popen(words, cwd=folder, env=environment(), stdin=subprocess.DEVNULL)
    try:
        wait_until("commands can be typed", lambda: door.exists() or process.poll() is not None)
        yield programs
    finally:
        process.terminate()
        process.wait()


def environment() -> dict[str, str]:
    """Return the environment of an interpreter of this checkout: one thread, as at a node."""
    others = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    return os.environ | others
