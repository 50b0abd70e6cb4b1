"""Memory that is a file's content is given back, and nothing of it is lost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedgraft.common.files.mapped_pages import give_back
from fedgraft.common.files.tensor_files import fingerprint_of


def mapped_bytes() -> int:
    """Resident memory of this process that is a file's content."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile"):
            return int(line.split()[1]) * 1024
    return 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as Linux counts memory")
def test_what_is_mapped_goes_and_comes_again(tmp_path: Path) -> None:
    """A ServerApp that counts its backbone twice; or bytes that are zeros afterwards."""
    written = {f"{number}": torch.randn(1_000_000) for number in range(10)}
    save_file(written, tmp_path / "file.safetensors")
    state = load_file(tmp_path / "file.safetensors")
    fingerprint = fingerprint_of(state)
    read = mapped_bytes()
    give_back(state.values())
    assert read - mapped_bytes() > 30_000_000
    assert fingerprint_of(state) == fingerprint == fingerprint_of(written)


def test_what_is_of_no_file_or_was_changed_stays(tmp_path: Path) -> None:
    """Numbers that a process computed, and that are gone."""
    save_file({"mapped": torch.zeros(100_000)}, tmp_path / "file.safetensors")
    state = load_file(tmp_path / "file.safetensors")
    state["mapped"][50_000] = 7.0
    state |= {"own": torch.arange(100_000), "empty": torch.zeros(0), "one": torch.tensor(3)}
    before = {name: tensor.clone() for name, tensor in state.items()}
    give_back(state.values())
    for name, tensor in before.items():
        assert torch.equal(state[name], tensor)
