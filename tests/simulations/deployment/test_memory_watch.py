"""A process's memory, as Linux counts it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedgraft.simulations.deployment.memory_watch import Memory, read_memory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as Linux counts it")


def test_the_memory_of_a_process_is_read() -> None:
    """Kilobytes for bytes; an error for a process that has just ended."""
    code = "import sys; held = bytearray(b'1' * 50_000_000); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    memory = read_memory(process.pid)
    process.communicate()
    assert 50e6 < memory.anonymous < memory.resident < 200e6
    assert read_memory(process.pid) == Memory()


def test_the_larger_of_both_is_kept() -> None:
    """A peak that is that of the last look."""
    assert Memory(5, 1).or_more(Memory(3, 2)) == Memory(5, 2)
