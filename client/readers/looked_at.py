"""Looking at image files before they are used, and remembering what was seen.

Looking at a file means to hash its bytes, read its header and check its end, so that a broken one
is left out before training, not met in its middle; and to see whether it is blank, or dark. What
was seen is remembered in a file of the node's store, by the file's size and times, so that the next
process need not read a hundred thousand files again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from fedgraft.client.readers.bit_depth import NOT_ASKED
from fedgraft.client.readers.image_file import examine
from fedgraft.client.readers.pixel_form import AS_USUAL, PixelForm
from fedgraft.client.readers.source import CONTENT_BYTES, Label, content_digest, digest

MISSING = "no such file"
FORBIDDEN = "no permission to read it"
# bytes of a file's key in the memory of what was seen, of a digest, of a pseudonym
_KEY = 16
_DIGEST = 32
_PATIENT = 16
_COLUMNS = ("keys", "digests", "contents", "problem", "patient", "brightest")
# files read at once: discs and file servers wait more than they work
_READERS = 4
# files in flight
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image of a data set: its file, its label, and the split if the data set says so."""

    file: str
    label: Label
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What looking at a file gave.

    Attributes:
        digest: SHA-256 of content and label.
        problem: why it cannot be used, in words that tell nothing of it; "" if it can.
        patient: the patient's pseudonym, hexadecimal; "" where the file says none.
        content: digest of the content alone.
        brightest: the highest value of an image of 16 bits; see `client/readers/bit_depth.py`.
        parts: digests of the single images of a record that has several, with its label.
    """

    digest: bytes
    problem: str
    patient: str = ""
    content: bytes = b""
    brightest: int = NOT_ASKED
    parts: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """A look, the file's key (empty where it has none), and whether the file was read for it."""

    key: bytes
    look: Look
    fresh: bool


def look_at_files(
    where: str, entries: Sequence[ImageEntry], cache: Path | None, form: PixelForm = AS_USUAL
) -> list[Look]:
    """Return what looking at each file gives, from memory where the file is the same.

    Args:
        where: the folder or manifest; what is remembered is remembered for it.
        cache: folder for the memory; None: look at every file anew.
        form: what the plan says of channels and windows.
    """
    memory = None
    known: dict[bytes, Look] = {}
    if cache is not None:
        kind = where if form.is_usual else f"{where}\0{form}"
        name = hashlib.sha256(kind.encode()).hexdigest()[:16]
        memory = cache / f"seen-{name}.npz"
        known = _recall(memory)

    seen: list[_Seen] = []
    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            seen += readers.map(_look_at, batch, repeat(known), repeat(form))
    if memory is not None:
        looks = {each.key: each.look for each in seen if each.key}
        if any(each.fresh for each in seen) or len(known) != len(looks):
            _remember(memory, looks)
    return [each.look for each in seen]


def _look_at(entry: ImageEntry, known: Mapping[bytes, Look], form: PixelForm) -> _Seen:
    try:
        key = _key(entry)
        if key in known:
            return _Seen(key, known[key], fresh=False)
        with open(entry.file, "rb") as file:
            content = file.read()
    except PermissionError:
        return _Seen(b"", Look(b"", FORBIDDEN), fresh=True)
    # ValueError: a name that no file can have
    except (OSError, ValueError):
        return _Seen(b"", Look(b"", MISSING), fresh=True)
    seen = examine(content, form)
    look = Look(
        digest=digest(content, entry.label),
        problem=seen.problem,
        patient=seen.patient,
        content=content_digest(content),
        brightest=seen.brightest,
    )
    return _Seen(key, look, fresh=True)


def _key(entry: ImageEntry) -> bytes:
    """Return what is another one when the file or its label is. Raise OSError or ValueError.

    The time of change cannot be set back as that of modification can: a file that was swapped is
    read again.
    """
    status = os.stat(entry.file)
    stamp = (
        entry.file,
        entry.label,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
    )
    return hashlib.sha256(repr(stamp).encode()).digest()[:_KEY]


# ── what was seen ─────────────────────────────────────────────────────────────────────────────────
def _recall(memory: Path) -> dict[bytes, Look]:
    """Return what an earlier process saw, by key; nothing where the file is not there or whole."""
    try:
        with np.load(memory, allow_pickle=False) as file:
            columns = [file[name] for name in _COLUMNS]
            words = [str(word) for word in file["words"]]
    # whatever is wrong with it, the images themselves are there
    except Exception:
        return {}
    if len({len(column) for column in columns}) != 1:
        return {}
    looks = {}
    for key, digest_, content, problem, patient, brightest in zip(*columns, strict=True):
        looks[key.tobytes()] = Look(
            digest=digest_.tobytes(),
            problem=words[problem],
            patient=patient.tobytes().hex() if patient.any() else "",
            content=content.tobytes(),
            brightest=int(brightest),
        )
    return looks


def _remember(memory: Path, looks: Mapping[bytes, Look]) -> None:
    """Write all of the file or nothing, for this user's eyes.

    A disc that is full or read-only costs time, not the run.
    """
    words = sorted({look.problem for look in looks.values()})
    numbers = {word: at for at, word in enumerate(words)}
    digests = [look.digest for look in looks.values()]
    patients = [bytes.fromhex(look.patient) or bytes(_PATIENT) for look in looks.values()]
    contents = [look.content for look in looks.values()]
    problems = [numbers[look.problem] for look in looks.values()]
    brightest = [look.brightest for look in looks.values()]
    part = memory.with_name(f"{memory.name}.{os.getpid()}.part")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            np.savez(
                file,
                keys=_matrix(list(looks), _KEY),
                digests=_matrix(digests, _DIGEST),
                contents=_matrix(contents, CONTENT_BYTES),
                patient=_matrix(patients, _PATIENT),
                problem=np.array(problems, np.uint16),
                brightest=np.array(brightest, np.int32),
                words=np.array(words, np.str_),
            )
        os.replace(part, memory)
    except OSError:
        part.unlink(missing_ok=True)


def _matrix(rows: Sequence[bytes], width: int) -> np.ndarray:
    """Return rows of so many bytes as `(n, width)` uint8."""
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, width)
