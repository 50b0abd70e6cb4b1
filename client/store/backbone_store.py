"""Backbones and plans that a node has received, on disk under their hashes.

A backbone is written beside its place, flushed, and renamed into it: a reader sees all of it or
nothing, and two processes that store the same one do no harm. One that comes in parts grows in a
folder beside its place (`backbone_download.py`). What is read is what was verified:
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

from fedgraft.client.store.backbone_download import Download
from fedgraft.common.errors import Code, Refused
from fedgraft.common.files.tensor_files import fingerprint_of
from fedgraft.common.files.whole_files import flush_folder, replacing, write_whole
from fedgraft.common.wire.backbone_parts import Part

# the end of the name of a folder with what has come of a backbone
UNFINISHED = ".parts"
# seconds since it was last used
IN_USE = 3600.0
_MEGABYTE = 1e6


class BackboneStore:
    """A folder of `backbones/<sha256>.safetensors` and `plans/<sha256>.json`.

        store = BackboneStore(node.store)
        store.put(backbone_state(backbone), backbone.fingerprint)
        state = store.load(backbone.fingerprint)

    Args:
        limit: most bytes of backbones; None: no limit.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        self.backbones = folder / "backbones"
        self.plans = folder / "plans"
        self.limit = limit

    # ── receiving ─────────────────────────────────────────────────────────────────────────────────
    def put(self, state: Mapping[str, Tensor], fingerprint: str) -> None:
        """Verify a backbone that arrived, and keep it.

        Raises:
            Refused: its bytes are not those of `fingerprint`, or it does not fit the limit beside
                what is in use; nothing is kept.
        """
        _check_fingerprint(state, fingerprint)
        with self._alone():
            self._keep(state, fingerprint)

    def put_part(self, part: Part, fingerprint: str) -> list[int]:
        """Keep one of the parts in which a backbone arrives, in whatever order; the last one makes
        it whole.

        Returns:
            Numbers of the parts that are still missing; none once it is whole and verified.

        Raises:
            Refused: as `put`, or the part itself is damaged; the other parts stay.
        """
        with self._alone():
            # another node of this store was sent it, too
            if self.has(fingerprint):
                return []
            download = self._download(fingerprint)
            if download.table is None or download.table.digest != part.table.digest:
                self._remove_unfinished()
                self._make_room(part.table.size)
                self._check_disk(part.table.size)
            download.begin(part.table)
            download.keep(part)
            missing = download.missing()
            if not missing:
                download.finish(fingerprint)
                self._publish(download, fingerprint)
            return missing

    def find_download(self, fingerprint: str) -> Download | None:
        """Return what is here of a backbone that has not come whole; None where nothing is."""
        if self.has(fingerprint):
            return None
        download = self._download(fingerprint)
        return None if download.table is None else download

    def _remove_unfinished(self) -> None:
        """Make way for a download: there is one at a time, or a disk would fill with beginnings."""
        for unfinished in self.backbones.glob(f"*{UNFINISHED}"):
            shutil.rmtree(unfinished)

    def _publish(self, download: Download, fingerprint: str) -> None:
        """Give a verified download its place."""
        self._make_room(download.data.stat().st_size)
        download.data.replace(self._backbone(fingerprint))
        flush_folder(self.backbones)
        download.remove()
        self._note(fingerprint)

    def _download(self, fingerprint: str) -> Download:
        return Download(self._backbone(fingerprint).with_suffix(UNFINISHED))

    def _keep(self, state: Mapping[str, Tensor], fingerprint: str) -> None:
        """Write a verified backbone, if it is not here; whoever calls holds the lock."""
        if self.has(fingerprint):
            return
        self._make_room(_size(state))
        with replacing(self._backbone(fingerprint), mode=0o600) as part:
            save_file(_contiguous(state), part)
        self._note(fingerprint)

    # ── reading ───────────────────────────────────────────────────────────────────────────────────
    def has(self, fingerprint: str) -> bool:
        """Return whether the backbone is here."""
        return self._backbone(fingerprint).is_file()

    def load(self, fingerprint: str) -> dict[str, Tensor]:
        """Return the backbone's tensors.

        A file that has changed on disk is removed, so that it is sent again.

        Raises:
            Refused: it is not here, or its bytes are not those of its name.
        """
        path = self._backbone(fingerprint)
        what = f"backbone {fingerprint}"
        if not path.is_file():
            raise Refused(Code.MISSING, f"{what} is not in this node's store")
        verified = self._is_noted(fingerprint)
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            self._remove(path)
            reason = f"{what} cannot be read from this node's store; removed"
            raise Refused(Code.DAMAGED, reason) from error
        if not verified and fingerprint_of(state) != fingerprint:
            self._remove(path)
            raise Refused(Code.DAMAGED, f"{what} has changed in this node's store; removed")
        # a note that cannot be written costs time only
        with contextlib.suppress(OSError):
            self._note(fingerprint)
        return state

    # ── plans ─────────────────────────────────────────────────────────────────────────────────────
    def put_plan(self, plan_hash: str, offer: Mapping[str, object]) -> None:
        """Keep an offer (the plan and its backbone's description) under the plan's hash."""
        self.plans.mkdir(parents=True, exist_ok=True)
        write_whole(self._plan(plan_hash), json.dumps(dict(offer)), mode=0o600)

    def plan(self, plan_hash: str) -> dict[str, str]:
        """Return the offer kept under a plan's hash. Raises `Refused` where there is none, or the
        store itself is gone.
        """
        path = self._plan(plan_hash)
        try:
            status = path.stat()
        except FileNotFoundError:
            what = f"plan {plan_hash} was never offered to this node"
            if not self.folder.is_dir():
                what = "this node's store is not on its disk: was its folder removed?"
            raise Refused(Code.MISSING, what) from None
        return _read_offer(path, status.st_mtime_ns, status.st_ino)

    def find_plan(self, plan_hash: str) -> dict[str, str] | None:
        """Return the offer kept under a plan's hash; None where there is none."""
        if not self._plan(plan_hash).is_file():
            return None
        return self.plan(plan_hash)

    # ── room ──────────────────────────────────────────────────────────────────────────────────────
    def _make_room(self, size: int) -> None:
        """Evict what was not used for longest until `size` more bytes fit."""
        if self.limit is None:
            return
        self._check_size(size)
        files = sorted(self.backbones.glob("*.safetensors"), key=_last_used)
        total = sum(path.stat().st_size for path in files)
        for path in files:
            if total + size <= self.limit:
                return
            if time.time() - _last_used(path) < IN_USE:
                what = "this node's store is full of backbones that are in use"
                raise Refused(Code.STORAGE, f"{what}; offer it again later")
            total -= path.stat().st_size
            self._remove(path)
        if total + size > self.limit:
            raise Refused(Code.STORAGE, "this node's store has no room for the backbone")

    def _check_size(self, size: int) -> None:
        if self.limit is not None and size > self.limit:
            most = f"this node keeps at most {self.limit / _MEGABYTE:.0f} MB of backbones"
            raise Refused(Code.STORAGE, f"{most}; this one has {size / _MEGABYTE:.0f}")

    def _check_disk(self, size: int) -> None:
        """Raise `Refused` for more bytes than the disk has room for."""
        free = shutil.disk_usage(self.backbones).free
        if size > free:
            what = f"this node's disk has {free / _MEGABYTE:.0f} MB left"
            raise Refused(Code.STORAGE, f"{what}; the backbone has {size / _MEGABYTE:.0f}")

    # ── what was verified ─────────────────────────────────────────────────────────────────────────
    def _note(self, fingerprint: str) -> None:
        """Write down that this very file was verified.

        The note's own time says when the backbone was last used.
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

    # ── files ─────────────────────────────────────────────────────────────────────────────────────
    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        path.with_suffix(".verified").unlink(missing_ok=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time write or evict.

        Readers need not wait: an open file outlives its name.
        """
        self.backbones.mkdir(parents=True, exist_ok=True)
        with (self.backbones / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _backbone(self, fingerprint: str) -> Path:
        return self.backbones / f"{_digits(fingerprint)}.safetensors"

    def _plan(self, plan_hash: str) -> Path:
        return self.plans / f"{_digits(plan_hash)}.json"


def _size(state: Mapping[str, Tensor]) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.nbytes for tensor in state.values())


def _contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _check_fingerprint(state: Mapping[str, Tensor], fingerprint: str) -> None:
    arrived = fingerprint_of(state)
    if arrived != fingerprint:
        what = f"the backbone that arrived is {arrived}, not {fingerprint} as offered"
        raise Refused(Code.DAMAGED, what)


def _stamp(path: Path) -> list[int]:
    """Return size, inode and times.

    A file that was written to has another change time, which no program can set.
    """
    status = path.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _last_used(path: Path) -> float:
    """Return when a backbone was last used, Unix time."""
    note = path.with_suffix(".verified")
    if note.exists():
        return note.stat().st_mtime
    return path.stat().st_mtime


@functools.lru_cache(maxsize=2048)
def _read_offer(path: Path, changed: int, inode: int) -> dict[str, str]:
    """Return the content of an offer's file; read again when the file is another."""
    return json.loads(path.read_text())


def _digits(fingerprint: str) -> str:
    """Return the 64 hex digits of `sha256:<64 hex digits>`.

    A name from the wire becomes a file's name only in this shape.
    """
    digits = fingerprint.removeprefix("sha256:")
    if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise Refused(Code.MISMATCH, f"{fingerprint[:80]!r} is not a sha256 fingerprint")
    return digits
