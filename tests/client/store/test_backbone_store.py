"""The node's store of backbones: bounded, whole, verified, and safe for two processes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fedgraft.client.store import backbone_store
from fedgraft.client.store.backbone_store import IN_USE, BackboneStore
from fedgraft.common.errors import Code, Refused
from fedgraft.common.files.tensor_files import fingerprint_of


def made(seed: int, values: int = 25_000) -> tuple[dict[str, torch.Tensor], str]:
    """A backbone of some 100 kB."""
    state = {
        "weight": torch.randn(values, generator=torch.Generator().manual_seed(seed)),
        "steps": torch.tensor(seed),
    }
    return state, fingerprint_of(state)


def unused_since(store: BackboneStore, fingerprint: str, seconds: float) -> None:
    note = store.backbones / f"{fingerprint.removeprefix('sha256:')}.verified"
    when = time.time() - seconds
    os.utime(note, (when, when))


def test_what_was_put_is_loaded(tmp_path: Path) -> None:
    store, (state, name) = BackboneStore(tmp_path), made(1)
    store.put(state, name)
    loaded = store.load(name)
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    with pytest.raises(Refused, match="as offered"):
        store.put(state | {"steps": torch.tensor(9)}, made(2)[1])


def parts(state: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    return [{name: tensor} for name, tensor in state.items()]


def test_parts_make_a_whole(tmp_path: Path) -> None:
    """A backbone that is there before its last part, or that differs from what was sent; parts that
    stay for ever.
    """
    store, (state, name), (other, another) = BackboneStore(tmp_path), made(1), made(2)
    store.put_part(parts(other)[0], another, 1, 2)  # never finished
    for number, part in enumerate(parts(state), start=1):
        assert not store.has(name)
        store.put_part(part, name, number, 2)
    assert all(torch.equal(store.load(name)[key], state[key]) for key in state)
    assert not list(store.backbones.glob("*.parts"))
    store.put_part(
        parts(state)[1], name, 2, 2
    )  # it is whole: a node with the same store was sent it, too


def test_a_wrong_or_missing_part_keeps_nothing(tmp_path: Path) -> None:
    """One flipped byte in one part; a part that came without the one before; more bytes than the
    store may hold.
    """
    store, (state, name) = BackboneStore(tmp_path, limit=150_000), made(1)
    with pytest.raises(Refused, match="the ones before it are not here"):
        store.put_part(parts(state)[1], name, 2, 2)
    store.put_part({"weight": state["weight"] + 1e-6}, name, 1, 2)
    with pytest.raises(Refused, match="as offered"):
        store.put_part(parts(state)[1], name, 2, 2)
    assert not store.has(name)
    assert not list(store.backbones.glob("*.parts"))
    store.put_part(parts(state)[0], name, 1, 3)
    with pytest.raises(Refused, match="at most 0 MB"):
        store.put_part(parts(state)[0], name, 2, 3)


def test_the_longest_unused_makes_room(tmp_path: Path) -> None:
    store = BackboneStore(tmp_path, limit=250_000)
    (first, a), (second, b), (third, c) = made(1), made(2), made(3)
    store.put(first, a)
    store.put(second, b)
    unused_since(store, a, IN_USE + 100)
    unused_since(store, b, IN_USE + 200)
    store.load(a)  # now `b` is the one
    store.put(third, c)
    assert [store.has(name) for name in (a, b, c)] == [True, False, True]
    assert not list(store.backbones.glob("*.part"))


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    """A plan that is running would find its backbone gone at its next message."""
    store = BackboneStore(tmp_path, limit=150_000)
    (first, a), (second, b) = made(1), made(2)
    store.put(first, a)
    with pytest.raises(Refused, match="in use"):
        store.put(second, b)
    assert [store.has(name) for name in (a, b)] == [True, False]
    with pytest.raises(Refused, match="at most 0 MB"):
        BackboneStore(tmp_path / "other", limit=1000).put(first, a)


def test_a_file_is_hashed_once_while_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, (state, name) = BackboneStore(tmp_path), made(1)
    store.put(state, name)
    times = []
    monkeypatch.setattr(
        backbone_store, "fingerprint_of", lambda state: times.append(1) or fingerprint_of(state)
    )
    store.load(name)
    store.load(name)
    assert not times
    (store.backbones / f"{name[7:]}.verified").unlink()
    store.load(name)
    assert len(times) == 1


def test_a_changed_byte_is_found_and_the_file_removed(tmp_path: Path) -> None:
    """Same size, same modification time: its change time tells that it was written to."""
    store, (state, name) = BackboneStore(tmp_path), made(1)
    store.put(state, name)
    path = store.backbones / f"{name[7:]}.safetensors"
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\x55")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Refused, match="has changed"):
        store.load(name)
    assert not store.has(name)
    store.put(state, name)
    store.load(name)


def _put_many(folder: Path, seeds: range) -> None:
    for seed in seeds:
        state, name = made(seed)
        store = BackboneStore(folder)
        store.put(state, name)
        store.load(name)


def _put_in_parts(folder: Path, seeds: Iterable[int], together: threading.Barrier) -> None:
    for seed in seeds:
        state, name = made(seed)
        for number, part in enumerate(parts(state), start=1):
            together.wait(60)  # the server sends a part when all have answered the one before
            BackboneStore(folder).put_part(part, name, number, 2)


def test_nodes_of_one_store_are_sent_the_same_parts(tmp_path: Path) -> None:
    """A part written anew, or deleted, while another node makes the whole of it."""
    together = threading.Barrier(4)
    with ThreadPoolExecutor(4) as nodes:
        for done in [nodes.submit(_put_in_parts, tmp_path, range(25), together) for _ in range(4)]:
            done.result(60)
    assert all(BackboneStore(tmp_path).has(made(seed)[1]) for seed in range(25))


@pytest.mark.slow
def test_two_processes_store_the_same_at_once(tmp_path: Path) -> None:
    start = multiprocessing.get_context("spawn")
    writers = [start.Process(target=_put_many, args=(tmp_path, range(12))) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    assert all(BackboneStore(tmp_path).has(made(seed)[1]) for seed in range(12))
    assert not list((tmp_path / "backbones").glob("*.part"))


def test_a_store_that_was_removed_is_told_as_such(tmp_path: Path) -> None:
    """Whoever cleared a folder is told that nothing was offered, and looks at the server."""
    store = BackboneStore(tmp_path / "store")
    store.put_plan("sha256:" + "0" * 64, {"plan": "one"})
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(Refused, match="not on its disk") as refused:
        store.plan("sha256:" + "0" * 64)
    # the server hands out once more, as to a node that never had it
    assert refused.value.code is Code.MISSING
