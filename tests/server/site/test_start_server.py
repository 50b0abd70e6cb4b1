"""The coordinator's processes, as they are started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedgraft.server.site import serverapp, superexec

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
