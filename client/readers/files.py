"""Many image files as one `Source`: each is looked at once, and decoded when it is asked for.

`client/readers/looked_at.py` looks at them and remembers it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from fedgraft.client.readers.bit_depth import check_brightest, digests_at
from fedgraft.client.readers.image_file import read_images
from fedgraft.client.readers.looked_at import ImageEntry, Look, look_at_files
from fedgraft.client.readers.pixel_form import AS_USUAL, PixelForm
from fedgraft.client.readers.source import Prepare, Source, did_you_mean
from fedgraft.common.errors import UserError
from fedgraft.common.plan.reading_section import UNDECIDED, ReadingSection

T = TypeVar("T")
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# what DICOM files say themselves
PATIENT_COLUMNS = ("patient", "PatientID")


@dataclass(frozen=True)
class FileTexts:
    """What a manifest says of its images beside file, label and split.

    Attributes:
        columns: texts of each image by the column's name.
        places: where a person finds each image; none: its file.
    """

    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    places: Sequence[str] = ()


NO_TEXTS = FileTexts()


@dataclass(frozen=True)
class FileKind:
    """What kind of files records are.

    Attributes:
        look: (where, entries, folder of the memory) → what looking at each file gives.
        read: (files, prepare, bits) → the records.
        singular, plural: in words for people.
        form: what else they are read by; read in another form a file is another record.
    """

    look: Callable[[str, Sequence[ImageEntry], Path | None], list[Look]]
    read: Callable[[Sequence[str], Prepare | None, int | None], Any]
    singular: str
    plural: str
    form: str = ""


def image_files(form: PixelForm) -> FileKind:
    """Return image files in the form that a plan wants."""
    look = partial(look_at_files, form=form)
    read = partial(read_images, form=form)
    return FileKind(look, read, "image", "images", "" if form.is_usual else str(form))


IMAGE_FILES = image_files(AS_USUAL)
NOTHING: Mapping[str, int] = MappingProxyType({})


def file_source(
    where: str,
    entries: Sequence[ImageEntry],
    *,
    texts: FileTexts = NO_TEXTS,
    cache: Path | None = None,
    reading: ReadingSection = UNDECIDED,
    beside: Mapping[str, int] = NOTHING,
    kind: FileKind = IMAGE_FILES,
) -> Source:
    """Return a `Source` over files with a record each.

    Those that cannot be used are left out and counted by the kind of problem.

    Args:
        where: the folder or manifest, for messages.
        cache: folder for the memory of what was seen; None: look at every file anew.
        reading: what a person has decided about the files.
        beside: what else lies in the folder, for `Source.beside`.
        kind: how they are looked at and read.

    Raises:
        UserError: no file can be used, or images of 16 bits are dark and nobody has said why.
    """
    looks = kind.look(where, entries, cache)
    usable = [number for number, look in enumerate(looks) if not look.problem]
    problems = Counter(look.problem for look in looks if look.problem)
    if not usable:
        counts = [f"{count}: {problem}" for problem, count in problems.most_common(5)]
        what = f"no readable {kind.singular} ({'; '.join(counts)})"
        raise UserError(what, where=where, remedy=f"give {kind.singular} files that can be read")

    entries = _pick(entries, usable)
    looks = _pick(looks, usable)
    files = [entry.file for entry in entries]
    places = _pick(texts.places, usable) if texts.places else files
    check_brightest(where, [look.brightest for look in looks], reading.bits)
    columns = _patient_columns(looks)
    for name, values in texts.columns.items():
        columns[name] = _pick(values, usable)

    def column(name: str) -> list[str]:
        _check_column(where, name, list(columns))
        return list(columns[name])

    def read(rows: np.ndarray, prepare: Prepare | None = None) -> Any:
        return kind.read(_pick(files, rows), prepare, reading.bits)

    identities = [look.digest for look in looks]
    return Source(
        where=where,
        labels=[entry.label for entry in entries],
        digests=digests_in(kind.form, digests_at(reading.bits, identities)),
        read=read,
        place=places.__getitem__,
        splits=_splits(entries),
        column=column,
        skipped=sum(problems.values()),
        problems=dict(problems.most_common()),
        beside=beside,
        files=files,
        contents=[look.content for look in looks],
        identities=identities,
        parts=[look.parts for look in looks],
        plural=kind.plural,
    )


def digests_in(form: str, digests: Sequence[bytes]) -> Sequence[bytes]:
    """Return digests that tell what is trained on, where files are read in a form of the plan."""
    if not form:
        return digests
    return [hashlib.sha256(digest + form.encode()).digest() for digest in digests]


def _pick(values: Sequence[T], rows: Iterable[int]) -> list[T]:
    return [values[row] for row in rows]


def _patient_columns(looks: Sequence[Look]) -> dict[str, list[str]]:
    """Return the columns that say whose each image is, where a file says it."""
    patients = [look.patient for look in looks]
    if not any(patients):
        return {}
    return dict.fromkeys(PATIENT_COLUMNS, patients)


def _check_column(where: str, name: str, columns: Sequence[str]) -> None:
    if name in columns:
        return
    remedy = "write a manifest (.csv or .parquet) that has it"
    if columns:
        remedy = f"it has {', '.join(columns)}"
    what = f"no column {name!r}{did_you_mean(name, columns)}"
    raise UserError(what, where=where, remedy=remedy)


def _splits(entries: Sequence[ImageEntry]) -> dict[str, np.ndarray]:
    """Return the row numbers of each split that some entry names, int64."""
    rows: dict[str, list[int]] = {}
    for row, entry in enumerate(entries):
        if entry.split is not None:
            rows.setdefault(entry.split, []).append(row)
    return {split: np.array(numbers, np.int64) for split, numbers in rows.items()}
