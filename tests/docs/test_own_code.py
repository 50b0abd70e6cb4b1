"""docs/own-code.md word by word: a network in a notebook, and one that hospitals approve."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import read_blocks, read_page

ROOT = Path(__file__).parents[2]


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "0"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


def fedgraft(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "fedgraft", *line.split()], folder)


@pytest.mark.slow
def test_a_network_in_a_notebook(tmp_path: Path) -> None:
    """A researcher's first own network, as the page has it."""
    (script,) = [b.text for b in read_blocks(read_page("own-code.md")) if b.language == "python"]
    (tmp_path / "notebook.py").write_text(script)
    done = run([sys.executable, "notebook.py"], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_package_of_the_examples(tmp_path: Path) -> None:
    """The commands of the page; and that each of them says what is missing without `--with`."""
    for name in ("own_network", "own_network.yaml"):
        source = ROOT / "examples" / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    (commands,) = [b.text for b in read_blocks(read_page("own-code.md")) if b.language == "bash"]
    for line in commands.splitlines()[1:]:
        done = fedgraft(line.removeprefix("fedgraft "), tmp_path)
        assert done.returncode == 0, done.stderr
    assert "extension own_network sha256:" in done.stdout
    (run_folder,) = (tmp_path / "runs").glob("own-network-*")

    predict = f"predict {run_folder} digits.npz --out p.csv"
    refused = fedgraft(predict, tmp_path)
    assert refused.returncode == 2
    assert "no extension is called 'own_network' here" in refused.stderr
    assert "--with DIR" in refused.stderr
