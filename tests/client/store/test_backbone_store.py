"""The node's store of backbones: bounded, whole, verified, and safe for two processes."""

from __future__ import annotations

import dataclasses
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
from fedgraft.common.wire.backbone_parts import (
    Part,
    PartTable,
    TensorRow,
    cut_part,
    hash_pieces,
)
from tests.common.files.test_whole_files import full_disk


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


def parts(state: dict[str, torch.Tensor], size: int = 60_000) -> list[Part]:
    table = PartTable.of(state, size)
    return [cut_part(state, table, number) for number in table.numbers]


def test_parts_make_a_whole(tmp_path: Path) -> None:
    """A backbone that is there before its last part, or that differs from what was sent; parts that
    stay for ever.
    """
    store, (state, name), (other, another) = BackboneStore(tmp_path), made(1), made(2)
    # never finished
    store.put_part(parts(other)[0], another)
    left = []
    for part in parts(state):
        assert not store.has(name)
        left.append(store.put_part(part, name))
    assert left == [[2], []]
    assert all(torch.equal(store.load(name)[key], state[key]) for key in state)
    assert not list(store.backbones.glob("*.parts"))
    # it is whole: a node with the same store was sent it, too
    assert store.put_part(parts(state)[1], name) == []


def test_parts_may_come_in_any_order_and_to_another_process(tmp_path: Path) -> None:
    """What came of a broken hand-out is lost, or takes the place of what comes later."""
    state, name = made(3)
    for number, left in ((1, [1, 3, 4, 5, 6]), (4, [1, 3, 4, 6]), (0, [3, 4, 6])):
        assert BackboneStore(tmp_path).put_part(parts(state, 20_000)[number], name) == left
    # a process that knows nothing of the one before
    download = BackboneStore(tmp_path).find_download(name)
    assert download is not None
    assert download.missing() == [3, 4, 6]
    for number in (5, 3, 2):
        left = BackboneStore(tmp_path).put_part(parts(state, 20_000)[number], name)
    assert left == []
    assert BackboneStore(tmp_path).find_download(name) is None
    loaded = BackboneStore(tmp_path).load(name)
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_part_that_is_cut_in_another_way_begins_anew(tmp_path: Path) -> None:
    """Bytes of two ways of cutting in one file."""
    store, (state, name) = BackboneStore(tmp_path), made(1)
    store.put_part(parts(state, 20_000)[0], name)
    assert store.put_part(parts(state, 60_000)[0], name) == [2]
    assert store.put_part(parts(state, 60_000)[1], name) == []
    assert store.has(name)


def test_a_damaged_part_costs_that_part_alone(tmp_path: Path) -> None:
    """A flipped bit for which everything is sent again; one that is kept."""
    store, (state, name) = BackboneStore(tmp_path), made(1)
    first, second = parts(state)
    store.put_part(first, name)
    for broken in (
        dataclasses.replace(second, pieces=[bytes(sum(map(len, second.pieces)))]),
        dataclasses.replace(second, pieces=second.pieces[:-1]),
        dataclasses.replace(second, digest="of something else"),
    ):
        with pytest.raises(Refused, match="part 2 of the backbone arrived damaged") as refused:
            store.put_part(broken, name)
        assert refused.value.code is Code.DAMAGED
    download = store.find_download(name)
    assert download is not None
    assert download.missing() == [2]
    assert store.put_part(second, name) == []


def test_bytes_that_were_hashed_and_are_not_those_offered_keep_nothing(tmp_path: Path) -> None:
    """A server that sends another backbone, each part with its right hash."""
    store, (state, name) = BackboneStore(tmp_path), made(1)
    first, second = parts(state | {"weight": state["weight"] + 1e-6})
    store.put_part(first, name)
    with pytest.raises(Refused, match="as offered") as refused:
        store.put_part(second, name)
    assert refused.value.code is Code.DAMAGED
    assert not store.has(name)
    assert store.find_download(name) is None


def test_a_byte_that_changed_on_the_disk_costs_its_part_alone(tmp_path: Path) -> None:
    """A hand-out that is sent again whole for one bad block, or used with it."""
    store, (state, name) = BackboneStore(tmp_path), made(1)
    first, second = parts(state)
    store.put_part(first, name)
    (data,) = store.backbones.glob("*.parts/data")
    with data.open("r+b") as file:
        file.seek(5_000)
        file.write(b"\x55\x55")
    with pytest.raises(Refused, match="as offered"):
        store.put_part(second, name)
    download = store.find_download(name)
    assert download is not None
    assert download.missing() == [1]
    assert store.put_part(first, name) == []
    assert torch.equal(store.load(name)["weight"], state["weight"])


@pytest.mark.parametrize("cut", [0, 10, 70_000])
def test_a_download_whose_file_was_cut_short_lacks_what_was_cut(tmp_path: Path, cut: int) -> None:
    """Parts that are written down and not there."""
    store, (state, name) = BackboneStore(tmp_path), made(1)
    for part in parts(state, 30_000)[:3]:
        store.put_part(part, name)
    (data,) = store.backbones.glob("*.parts/data")
    os.truncate(data, cut)
    for part in parts(state, 30_000):
        left = store.put_part(part, name)
    assert left == []
    assert torch.equal(store.load(name)["weight"], state["weight"])


def test_what_is_declared_is_bounded_before_it_comes(tmp_path: Path) -> None:
    """A server that fills the disk with the beginnings of backbones, or with one large one."""
    store, (state, name) = BackboneStore(tmp_path, limit=90_000), made(1)
    with pytest.raises(Refused, match="at most 0 MB") as refused:
        store.put_part(parts(state)[0], name)
    assert refused.value.code is Code.STORAGE
    huge = PartTable((TensorRow("weight", "float32", (2**50,)),), 2**42)
    part = Part(huge, 1, [b"1234"], hash_pieces([b"1234"]))
    with pytest.raises(Refused, match="disk has"):
        BackboneStore(tmp_path / "other").put_part(part, name)
    for seed in range(4):
        beginning, other = made(seed, 10_000)
        store.put_part(parts(beginning, 20_000)[0], other)
    assert len(list(store.backbones.glob("*.parts"))) == 1
    # a part that is longer than its table says
    longer = parts(made(9, 10_000)[0])[0]
    longer = dataclasses.replace(longer, pieces=[*longer.pieces, b"more"])
    with pytest.raises(Refused, match="damaged"):
        store.put_part(longer, made(9, 10_000)[1])


def test_a_full_disk_is_told_and_keeps_what_came(tmp_path: Path) -> None:
    """An error of the node's code, or a part that is written down and is not there."""
    store, (state, name) = BackboneStore(tmp_path), made(1)
    first, second = parts(state)
    store.put_part(first, name)
    with full_disk(70_000), pytest.raises(Refused, match="no room") as refused:
        store.put_part(second, name)
    assert refused.value.code is Code.STORAGE
    download = store.find_download(name)
    assert download is not None
    assert download.missing() == [2]


def test_parts_of_an_older_release_do_not_stay(tmp_path: Path) -> None:
    """A folder of files that nobody reads any more, or that is taken for a download."""
    store, (state, name) = BackboneStore(tmp_path), made(1)
    folder = store.backbones / f"{name[7:]}.parts"
    folder.mkdir(parents=True)
    (folder / "00001").write_bytes(b"as it was")
    assert store.find_download(name) is None
    for part in parts(state):
        store.put_part(part, name)
    assert store.has(name)
    assert not folder.exists()


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
        for part in parts(state):
            together.wait(60)  # the server sends a part when all have answered the one before
            BackboneStore(folder).put_part(part, name)


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
