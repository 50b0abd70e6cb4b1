"""A disk that has no room for the files of so many nodes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedgraft.common.errors import UserError
from fedgraft.simulations.simulated_nodes import _check_room


@pytest.mark.parametrize(
    ("files", "free", "is_refused"), [(99, 5, True), (99, 60, False), (0, 0, False)]
)
def test_a_disk_without_inodes_is_told_before_anything_is_dealt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, free: int, is_refused: bool
) -> None:
    """Told "No space left on device" after minutes, on a disk that is nearly empty; a file system
    that counts no inodes and is refused.
    """
    room = SimpleNamespace(f_files=files, f_favail=free)
    monkeypatch.setattr(os, "statvfs", lambda folder: room)
    if not is_refused:
        _check_room(tmp_path, 10)
        return
    with pytest.raises(UserError, match="10 nodes need some 60 files"):
        _check_room(tmp_path, 10)
