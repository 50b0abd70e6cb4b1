"""Backbones and plans that a node has received, on disk under their hashes.

A backbone is written beside its place, flushed, and renamed into it: a reader sees all of it or
nothing, and two processes that store the same one do no harm. What is read is what was verified:
the fingerprint is computed over the tensors when all have arrived, and again when a file is loaded
that is not the very one that was verified (its size, inode and times are kept beside it). A round
checks the frozen part by itself, before and after.

With a limit, the backbone that was not used for the longest time makes room for a new one; one that
was used in the last hour belongs to a plan that is running, and stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedgraft.common.errors import Code, Refused
from fedgraft.common.files.tensor_files import fingerprint_of
from fedgraft.common.files.whole_files import replacing, write_whole

IN_USE = 3600.0  # seconds since it was last used


class BackboneStore:
    """A folder of `backbones/<sha256>.safetensors` and `plans/<sha256>.json`.

    Args:
        limit: most bytes of backbones; None: no limit.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.backbones = folder / "backbones"
        self.plans = folder / "plans"
        self.limit = limit

    def has(self, fingerprint: str) -> bool:
        """Whether the backbone is here."""
        return self._backbone(fingerprint).is_file()

    def put(self, state: Mapping[str, Tensor], fingerprint: str) -> None:
        """Verify a backbone that arrived, and keep it.

        Raises:
            Refused: its bytes are not those of `fingerprint`, or it does not fit the limit beside
                what is in use; nothing is kept.
        """
        _must_be(state, fingerprint)
        with self._alone():
            self._keep(state, fingerprint)

    def put_part(
        self, state: Mapping[str, Tensor], fingerprint: str, part: int, parts: int
    ) -> None:
        """Keep one of the parts (from 1) in which a backbone arrives; the last one makes it whole.
        Raises as `put`.
        """
        if parts == 1:
            return self.put(state, fingerprint)
        folder = self._backbone(fingerprint).with_suffix(".parts")
        with self._alone():
            if self.has(fingerprint):  # another node of this store was sent it, too
                return None
            if part == 1:  # what another sending, or another backbone, left unfinished
                for old in self.backbones.glob("*.parts"):
                    shutil.rmtree(old)
                folder.mkdir()
            here = [folder / f"{number:05d}" for number in range(1, part)]
            if not all(path.is_file() for path in here):
                raise Refused(
                    Code.MISSING,
                    f"part {part} of the backbone came, and the ones before it are not here",
                )
            self._must_fit(
                sum(path.stat().st_size for path in here) + sum(t.nbytes for t in state.values())
            )
            save_file(
                {name: tensor.contiguous() for name, tensor in state.items()},
                folder / f"{part:05d}",
            )
            if part == parts:
                try:  # mapped, not read: the memory of one part is enough
                    files = [*here, folder / f"{part:05d}"]
                    whole = {
                        name: tensor for path in files for name, tensor in load_file(path).items()
                    }
                    _must_be(whole, fingerprint)
                    self._keep(whole, fingerprint)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
        return None

    def _keep(self, state: Mapping[str, Tensor], fingerprint: str) -> None:
        """Write a verified backbone, if it is not here; whoever calls holds the lock."""
        if self.has(fingerprint):
            return
        self._make_room(sum(tensor.nbytes for tensor in state.values()))
        with replacing(self._backbone(fingerprint), mode=0o600) as part:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, part)
        self._note(fingerprint)

    def load(self, fingerprint: str) -> dict[str, Tensor]:
        """The backbone's tensors. A file that has changed on disk is removed, so that it is sent
        again.

        Raises:
            Refused: it is not here, or its bytes are not those of its name.
        """
        path = self._backbone(fingerprint)
        if not path.is_file():
            raise Refused(Code.MISSING, f"backbone {fingerprint} is not in this node's store")
        verified = self._is_noted(fingerprint)
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            self._remove(path)
            raise Refused(
                Code.DAMAGED,
                f"backbone {fingerprint} cannot be read from this node's store; removed",
            ) from error
        if not verified and fingerprint_of(state) != fingerprint:
            self._remove(path)
            raise Refused(
                Code.DAMAGED, f"backbone {fingerprint} has changed in this node's store; removed"
            )
        with contextlib.suppress(OSError):  # a note that cannot be written costs time only
            self._note(fingerprint)
        return state

    def put_plan(self, plan_hash: str, offer: Mapping[str, object]) -> None:
        """Keep an offer (the plan and its backbone's description) under the plan's hash."""
        self.plans.mkdir(parents=True, exist_ok=True)
        write_whole(self._plan(plan_hash), json.dumps(dict(offer)), mode=0o600)

    def plan(self, plan_hash: str) -> dict[str, str]:
        """The offer kept under a plan's hash. Raises `Refused` where there is none."""
        path = self._plan(plan_hash)
        try:
            found = path.stat()
        except FileNotFoundError:
            raise Refused(
                Code.MISSING, f"plan {plan_hash} was never offered to this node"
            ) from None
        return _offer(path, found.st_mtime_ns, found.st_ino)

    def _make_room(self, size: int) -> None:
        """Evict what was not used for longest until `size` more bytes fit."""
        if self.limit is None:
            return
        self._must_fit(size)
        kept = sorted(self.backbones.glob("*.safetensors"), key=_used)
        total = sum(path.stat().st_size for path in kept)
        for path in kept:
            if total + size <= self.limit:
                return
            if time.time() - _used(path) < IN_USE:
                raise Refused(
                    Code.STORAGE,
                    "this node's store is full of backbones that are in use; offer it again later",
                )
            total -= path.stat().st_size
            self._remove(path)
        if total + size > self.limit:
            raise Refused(Code.STORAGE, "this node's store has no room for the backbone")

    def _must_fit(self, size: int) -> None:
        if self.limit is not None and size > self.limit:
            raise Refused(
                Code.STORAGE,
                f"this node keeps at most {self.limit / 1e6:.0f} MB of backbones; this one has"
                f" {size / 1e6:.0f}",
            )

    def _note(self, fingerprint: str) -> None:
        """That this very file was verified; the note's own time says when the backbone was last
        used.
        """
        path = self._backbone(fingerprint)
        note = path.with_suffix(".verified")
        stamp = json.dumps(_stamp(path))
        if note.is_file() and note.read_text() == stamp:
            os.utime(note)
            return
        write_whole(note, stamp, mode=0o600, durable=False)

    def _is_noted(self, fingerprint: str) -> bool:
        path = self._backbone(fingerprint)
        try:
            return json.loads(path.with_suffix(".verified").read_text()) == _stamp(path)
        except (OSError, ValueError):
            return False

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        path.with_suffix(".verified").unlink(missing_ok=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time writes or evicts; readers need not wait, an open file outlives its
        name.
        """
        self.backbones.mkdir(parents=True, exist_ok=True)
        with (self.backbones / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _backbone(self, fingerprint: str) -> Path:
        return self.backbones / f"{_hex(fingerprint)}.safetensors"

    def _plan(self, plan_hash: str) -> Path:
        return self.plans / f"{_hex(plan_hash)}.json"


def _must_be(state: Mapping[str, Tensor], fingerprint: str) -> None:
    if (found := fingerprint_of(state)) != fingerprint:
        raise Refused(
            Code.DAMAGED, f"the backbone that arrived is {found}, not {fingerprint} as offered"
        )


def _stamp(path: Path) -> list[int]:
    """Size, inode and times. A file that was written to has another change time, which no program
    can set.
    """
    found = path.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _used(path: Path) -> float:
    """When a backbone was last used, Unix time."""
    note = path.with_suffix(".verified")
    return (note if note.exists() else path).stat().st_mtime


@functools.lru_cache(maxsize=2048)
def _offer(path: Path, changed: int, inode: int) -> dict[str, str]:
    """The content of an offer's file; read again when the file is another."""
    return json.loads(path.read_text())


def _hex(fingerprint: str) -> str:
    """`sha256:<64 hex digits>` → the digits. A name from the wire becomes a file's name only in
    this shape.
    """
    digits = fingerprint.removeprefix("sha256:")
    if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise Refused(Code.MISMATCH, f"{fingerprint[:80]!r} is not a sha256 fingerprint")
    return digits
