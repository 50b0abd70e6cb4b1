"""docs/own-code.md word by word: a network in a notebook, and one that hospitals approve."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docs.blocks import read_blocks, read_page

ROOT = Path(__file__).parents[2]


def run(words: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_a_network_in_a_notebook(tmp_path: Path, programs: Path) -> None:
    """A researcher's first own network, as the page has it."""
    (script,) = [b.text for b in read_blocks(read_page("own-code.md")) if b.language == "python"]
    (tmp_path / "notebook.py").write_text(script)
    done = run([programs / "python", "notebook.py"], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_package_of_the_examples(tmp_path: Path, programs: Path) -> None:
    """The commands of the page; and that each of them says what is missing without `--with`."""
    for name in ("own_network", "own_network.yaml"):
        source = ROOT / "examples" / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    (commands,) = [b.text for b in read_blocks(read_page("own-code.md")) if b.language == "bash"]
    for line in commands.splitlines()[1:]:
        done = run([programs / "fedgraft", *line.split()[1:]], tmp_path)
        assert done.returncode == 0, done.stderr
    assert "extension own_network sha256:" in done.stdout
    (run_folder,) = (tmp_path / "runs").glob("own-network-*")

    predict = ["predict", run_folder, "digits.npz", "--out", "p.csv"]
    refused = run([programs / "fedgraft", *predict], tmp_path)
    assert refused.returncode == 2
    assert "no extension is called 'own_network' here" in refused.stderr
    assert "--with DIR" in refused.stderr
