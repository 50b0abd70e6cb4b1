"""A system that fedgraft does not run on is told in one sentence, whichever door is used."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

# what a Windows Python does not have, and a platform that says so once everything is imported
WINDOWS = """
import sys
sys.modules["fcntl"] = sys.modules["resource"] = None
import importlib, multiprocessing, platform, subprocess
{imported}
sys.platform = "win32"
{used}
"""


@pytest.mark.parametrize(
    ("imported", "used"),
    [
        (
            "import fedgraft.cli",
            "sys.argv = ['fedgraft', 'validate', 'digits']; fedgraft.cli.main()",
        ),
        ("import fedgraft, fedgraft.common.supported_systems", "fedgraft.simulate"),
    ],
    ids=["command", "api"],
)
def test_another_system_is_told_in_one_sentence(imported: str, used: str) -> None:
    """`No module named 'fcntl'` tells nobody that Windows is not supported."""
    script = textwrap.dedent(WINDOWS).format(imported=imported, used=used)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode != 0
    assert "fedgraft runs on Linux and macOS, and this is win32" in ended.stderr
    assert "fcntl" not in ended.stderr


def test_this_system_is_one() -> None:
    from fedgraft.common.supported_systems import check_system

    check_system()
