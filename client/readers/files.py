"""Many image files as one `Source`: each is looked at once, and decoded when it is asked for.

Looking at a file means to hash its bytes, read its header and check its end, so that a broken one
is left out before training, not met in its middle. What was seen is remembered in a file of the
node's store, by the file's size and times, so that the next process need not read a hundred
thousand files again.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from fedgraft.client.readers.image_file import examine, read_images
from fedgraft.client.readers.source import Label, Source, did_you_mean, digest
from fedgraft.common.errors import UserError

MISSING = "no such file"
FORBIDDEN = "no permission to read it"
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
PATIENT_COLUMNS = ("patient", "PatientID")  # what DICOM files say themselves
_KEY = 16  # bytes of a file's key in the memory of what was seen
_READERS = 4  # files read at once: discs and file servers wait more than they work
_BATCH = 1000  # files in flight


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a data set: its file, its label, and the split if the data set says so."""

    file: str
    label: Label
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What looking at a file found: SHA-256 of content and label, problem ("" if none), patient's
    pseudonym.
    """

    digest: bytes
    problem: str
    patient: str


def file_source(
    where: str,
    entries: Sequence[Entry],
    *,
    columns: Mapping[str, Sequence[str]] | None = None,
    places: Sequence[str] | None = None,
    cache: Path | None = None,
) -> Source:
    """A `Source` over image files; those that cannot be used are left out and counted by the kind
    of problem.

    Args:
        where: the folder or manifest, for messages.
        columns: texts of each entry by the column's name, as a manifest has them.
        places: where a person finds each entry; default: its file.
        cache: folder for the memory of what was seen; None: look at every file anew.

    Raises:
        UserError: no file can be used.
    """
    seen = _look(where, entries, cache)
    kept = [number for number, one in enumerate(seen) if not one.problem]
    problems = Counter(one.problem for one in seen if one.problem)
    if not kept:
        counted = "; ".join(f"{count}: {problem}" for problem, count in problems.most_common(5))
        raise UserError(
            f"no readable image ({counted})",
            where=where,
            remedy="give image files that can be read",
        )
    files = [entries[number].file for number in kept]
    texts = {name: [values[number] for number in kept] for name, values in (columns or {}).items()}
    patients = [seen[number].patient for number in kept]
    if any(patients):
        texts = {name: patients for name in PATIENT_COLUMNS} | texts
    shown = files if places is None else [places[number] for number in kept]
    splits: dict[str, list[int]] = {}
    for row, number in enumerate(kept):
        if (split := entries[number].split) is not None:
            splits.setdefault(split, []).append(row)

    def column(name: str) -> list[str]:
        if name not in texts:
            has = (
                f"it has {', '.join(texts)}"
                if texts
                else "write a manifest (.csv or .parquet) that has it"
            )
            raise UserError(
                f"no column {name!r}{did_you_mean(name, list(texts))}", where=where, remedy=has
            )
        return list(texts[name])

    return Source(
        where=where,
        labels=[entries[number].label for number in kept],
        digests=[seen[number].digest for number in kept],
        read=lambda rows, prepare=None: read_images([files[row] for row in rows], prepare),
        place=lambda row: shown[row],
        splits={name: np.array(rows, np.int64) for name, rows in splits.items()},
        column=column,
        skipped=sum(problems.values()),
        problems=dict(problems.most_common()),
    )


# ── looking at files ──────────────────────────────────────────────────────────────────────────────


def _look(where: str, entries: Sequence[Entry], cache: Path | None) -> list[Seen]:
    place = (
        None
        if cache is None
        else cache / f"seen-{hashlib.sha256(where.encode()).hexdigest()[:16]}.npz"
    )
    known = {} if place is None else _remembered(place)
    keys, seen, new = [], [], 0
    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(entries), _BATCH):
            for key, one, fresh in readers.map(
                _look_at, entries[start : start + _BATCH], repeat(known)
            ):
                keys.append(key)
                seen.append(one)
                new += fresh
    if place is not None and (new or len(known) != len(set(keys) - {b""})):
        _remember(place, keys, seen)
    return seen


def _look_at(entry: Entry, known: Mapping[bytes, Seen]) -> tuple[bytes, Seen, bool]:
    """A file's key (empty where there is none), what was found, and whether it had to be read for
    that.
    """
    try:
        found = os.stat(entry.file)
        # The time of change cannot be set back as that of modification can: a file that was swapped
        # is read again.
        stamp = (
            entry.file,
            entry.label,
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
            found.st_ino,
        )
        key = hashlib.sha256(repr(stamp).encode()).digest()[:_KEY]
        if (before := known.get(key)) is not None:
            return key, before, False
        with open(entry.file, "rb") as file:
            content = file.read()
    except PermissionError:
        return b"", Seen(b"", FORBIDDEN, ""), True
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return b"", Seen(b"", MISSING, ""), True
    problem, patient = examine(content)
    return key, Seen(digest(content, entry.label), problem, patient), True


# ── what was seen ─────────────────────────────────────────────────────────────────────────────────


def _remembered(place: Path) -> dict[bytes, Seen]:
    """What an earlier process saw, by key; nothing where the file is not there or is not whole."""
    try:
        with np.load(place, allow_pickle=False) as file:
            keys, digests, problem = file["keys"], file["digests"], file["problem"]
            patient, words = file["patient"], [str(word) for word in file["words"]]
    except Exception:  # whatever is wrong with it, the files themselves are there
        return {}
    if not len(keys) == len(digests) == len(problem) == len(patient):
        return {}
    return {
        key.tobytes(): Seen(
            one.tobytes(), words[what], pseudonym.tobytes().hex() if pseudonym.any() else ""
        )
        for key, one, what, pseudonym in zip(keys, digests, problem, patient, strict=True)
    }


def _remember(place: Path, keys: Sequence[bytes], seen: Sequence[Seen]) -> None:
    """All of the file or nothing, for this user's eyes. A disc that is full or read-only costs
    time, not the run.
    """
    rows = {key: one for key, one in zip(keys, seen, strict=True) if key}
    words = sorted({one.problem for one in rows.values()})
    number = {word: at for at, word in enumerate(words)}
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            np.savez(
                file,
                keys=_matrix(rows, _KEY),
                digests=_matrix((one.digest for one in rows.values()), 32),
                patient=_matrix(
                    (bytes.fromhex(one.patient) or bytes(16) for one in rows.values()), 16
                ),
                problem=np.array([number[one.problem] for one in rows.values()], np.uint16),
                words=np.array(words, np.str_),
            )
        os.replace(part, place)
    except OSError:
        part.unlink(missing_ok=True)


def _matrix(rows: Mapping[bytes, Seen] | Iterator[bytes], width: int) -> np.ndarray:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, width)
