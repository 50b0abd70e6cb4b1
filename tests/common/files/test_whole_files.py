"""Files are whole or as they were: on a full disk, in a folder that cannot be written, when the
writer fails.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

import fedgraft.server.site.nodes
from fedgraft.client.node.approvals import Approvals
from fedgraft.client.store.backbone_store import BackboneStore
from fedgraft.common.errors import UserError
from fedgraft.common.files.bundle import build_bundle
from fedgraft.common.files.tensor_files import fingerprint_of, write_tensors
from fedgraft.common.files.whole_files import replacing, write_json, write_whole
from fedgraft.common.result import SeedResults
from fedgraft.server.papers.run_folder import RunFolder
from fedgraft.server.papers.run_manifest import write_manifest
from fedgraft.simulations.figures import draw_labels_by_node
from fedgraft.simulations.report.page import write_page
from fedgraft.simulations.study.study_table import write_table

LARGE = 50_000
STATE = {"w": torch.zeros(LARGE)}


@contextmanager
def full_disk(space: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: the first of them are written, the next write fails,
    as on a full disk.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (space, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@settings(max_examples=30, deadline=None)
@given(
    old=st.none() | st.binary(max_size=2000), size=st.integers(0, 5000), space=st.integers(0, 6000)
)
def test_a_file_is_the_old_one_or_the_new_one(tmp_path_factory, old, size, space) -> None:
    """Half a file, or a part that stays behind and takes the space that is missing."""
    folder = tmp_path_factory.mktemp("disk")
    path, new = folder / "result.json", os.urandom(size)
    if old is not None:
        path.write_bytes(old)
    before = everything(folder)
    with full_disk(space):
        try:
            write_whole(path, new)
            done = True
        except OSError:
            done = False
    assert done == (size <= space)
    assert everything(folder) == ({"result.json": new} if done else before)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "weights": lambda folder: write_tensors(STATE, folder / "file"),
    "result": lambda folder: RunFolder(folder).write_result(
        SeedResults.model_validate({"seeds": [], "a": "x" * LARGE})
    ),
    "results of a study": lambda folder: write_json(folder / "file", {"a": "x" * LARGE}),
    "page": lambda folder: write_page(folder / "file", "ε" * LARGE),
    "manifest": lambda folder: write_manifest(folder, {"a": "x" * LARGE}),
    "picture": lambda folder: draw_labels_by_node(
        np.ones((3, 2)), ["a", "b", "c"], ["x", "y"], folder / "file"
    ),
    "table": lambda folder: write_table([{"a": "x" * LARGE}], folder),
    "backbone": lambda folder: BackboneStore(folder).put(STATE, fingerprint_of(STATE)),
    "offer": lambda folder: BackboneStore(folder).put_plan(
        "sha256:" + "a" * 64, {"plan": "x" * LARGE}
    ),
    "nodes": lambda folder: fedgraft.server.site.nodes._write(
        SimpleNamespace(nodes=folder / "file"),  # type: ignore[arg-type]
        {"a": {"b": "x" * LARGE}},
    ),
    "approved code": lambda folder: Approvals(folder).install(build_bundle(), "tester"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_on_a_full_disk_nothing_is_half_written(tmp_path: Path, name: str) -> None:
    """A writer of its own that leaves half a file under the name that others read, or a part that
    fills the disk.
    """
    (tmp_path / "file").write_text("as it was")
    before = everything(tmp_path)
    with full_disk(1000), pytest.raises((OSError, UserError, SafetensorError)):
        WRITERS[name](tmp_path)
    left = everything(tmp_path)
    assert all(
        not content for path, content in left.items() if path not in before
    )  # such as a lock, which is empty
    assert {path: left[path] for path in before} == before


def test_permissions_are_those_asked_for(tmp_path: Path) -> None:
    """A node's backbone that others can read, or a page that nobody can."""
    for mode in (0o600, 0o644):
        write_whole(tmp_path / "file", "text", mode=mode)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """An exception halfway that publishes what was written so far."""

    def half(part: Path) -> None:
        part.write_text("half")
        raise ValueError

    with pytest.raises(ValueError), replacing(tmp_path / "table.csv") as part:  # noqa: PT011
        half(part)
    assert everything(tmp_path) == {}
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "gone" / "file", "text")
