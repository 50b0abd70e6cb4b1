"""What lies in a folder of class folders: each file is a record, or counted as what it is.

Nobody doubts that a thumbnail of a file server is no record; a mask beside its image is told by its
name only, and so a person says what it is (`data.leave_out`).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from fedgraft.client.readers.dicom import is_dicom
from fedgraft.client.readers.image_array_file import SUFFIX
from fedgraft.client.readers.image_file import SUFFIXES
from fedgraft.common.errors import UserError
from fedgraft.common.plan.reading_section import to_write

DICOM_SUFFIXES = (".dcm", ".dicom")
# what file servers and desktops put beside files, in small letters; and every name with a dot first
SYSTEM_FOLDERS = ("@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found")
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "ehthumbs.db", "dicomdir")
# words in a name that speak of something made from an image
MADE_FROM_IMAGES = (
    "mask",
    "masks",
    "seg",
    "segmentation",
    "segmentations",
    "annotation",
    "annotations",
    "overlay",
    "overlays",
    "preview",
    "previews",
    "thumb",
    "thumbnail",
    "thumbnails",
)
# bytes that tell whether a file is DICOM
_FIRST_BYTES = 132
# of an ending that is shown; another may be part of a name
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,8}")
_MOST_SHOWN = 5
_MADE = re.compile(rf"(?<![a-z])(?:{'|'.join(MADE_FROM_IMAGES)})(?![a-z])")
_NO_DIGITS = re.compile(r"\d.*")


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder by what they are.

    Attributes:
        images, dicom: the records, by the class folder that they are in, in order; keys are as they
            were given.
        beside: how many files are no records, by words for people.
    """

    images: Mapping[str, Sequence[str]]
    dicom: Mapping[str, Sequence[str]]
    beside: Mapping[str, int] = field(default_factory=dict)


def sort_files(
    root: str, class_folders: Sequence[str], leave_out: Sequence[str] | None
) -> FolderFiles:
    """Return what lies below a folder; every file below it is counted once.

    Args:
        root: the folder.
        class_folders: those in it that hold the records of one class each.
        leave_out: patterns of names or paths that a person left out; None: nobody has looked yet.

    Raises:
        UserError: nobody has looked, and names speak of masks or previews, or there are DICOM files
            and other images.
    """
    images: dict[str, list[str]] = {}
    dicom: dict[str, list[str]] = {}
    arrays: dict[str, list[str]] = {}
    others = _Others()
    for folder in class_folders:
        for file in walk(folder, others.system):
            if _is_left_out(file, root, leave_out or ()):
                others.left_out += 1
            elif is_image(file):
                images.setdefault(folder, []).append(file)
            elif file.lower().endswith(SUFFIX):
                arrays.setdefault(folder, []).append(file)
            elif may_be_dicom(file):
                dicom.setdefault(folder, []).append(file)
            else:
                others.endings[_ending(file)] += 1
    _count_outside(root, class_folders, others)
    # beside images an array is what was made of one: a mask, features
    if images or dicom:
        others.endings[SUFFIX] += len(_all_of(arrays))
    else:
        images = arrays

    files = FolderFiles(images, dicom, others.in_words())
    if leave_out is None:
        _check_alike(root, files)
        _check_names(root, files)
    return files


def walk(path: str, system: Counter[str] | None = None) -> Iterator[str]:
    """Give every file below a folder but those of the system, as text, in one order.

    A hundred thousand `Path` objects take long to make.

    Args:
        system: where those of the system are counted, by the name that shows it.
    """
    counts: Counter[str] = Counter() if system is None else system
    for folder, below, files in os.walk(path):
        for name in sorted(below):
            if is_system(name):
                below.remove(name)
                if system is not None:
                    counts[_system_name(name)] += _count_files(os.path.join(folder, name))
        below.sort()
        for name in sorted(files):
            if is_system(name, SYSTEM_FILES):
                counts[_system_name(name)] += 1
            else:
                yield os.path.join(folder, name)


def is_system(name: str, known: Sequence[str] = SYSTEM_FOLDERS) -> bool:
    """Return whether a file server or a desktop made this, and no person."""
    return name[0] == "." or name.lower() in known


# ── what is counted ───────────────────────────────────────────────────────────────────────────────
@dataclass
class _Others:
    """How many files are no records."""

    endings: Counter[str] = field(default_factory=Counter)
    system: Counter[str] = field(default_factory=Counter)
    left_out: int = 0
    outside: int = 0

    def in_words(self) -> dict[str, int]:
        """Return the counts that are not 0, by what they are of."""
        counts = {
            f"of other kinds ({_shown(self.endings)})": self.endings.total(),
            f"of the system ({_shown(+self.system)})": self.system.total(),
            "left out by data.leave_out": self.left_out,
            "in no class folder": self.outside,
        }
        return {words: count for words, count in counts.items() if count}


def _shown(counts: Counter[str]) -> str:
    counts = +counts
    shown = [f"{name} {count:,}" for name, count in counts.most_common(_MOST_SHOWN)]
    if len(counts) > _MOST_SHOWN:
        shown.append("…")
    return ", ".join(shown)


def _ending(file: str) -> str:
    _, ending = os.path.splitext(file)
    return ending.lower() if _ENDING.fullmatch(ending) else "no ending"


def _count_files(path: str) -> int:
    return sum(len(files) for _, _, files in os.walk(path))


def _system_name(name: str) -> str:
    """Return a name that tells nothing of a record."""
    if name.lower() in (*SYSTEM_FOLDERS, *SYSTEM_FILES):
        return name
    return "hidden"


def _count_outside(root: str, class_folders: Sequence[str], others: _Others) -> None:
    """Count what lies below the root and in no class folder."""
    inside = set(class_folders)
    for folder, below, files in os.walk(root):
        for name in list(below):
            path = os.path.join(folder, name)
            if is_system(name):
                others.system[_system_name(name)] += _count_files(path)
            if is_system(name) or path in inside:
                below.remove(name)
        for name in files:
            if is_system(name, SYSTEM_FILES):
                others.system[_system_name(name)] += 1
            else:
                others.outside += 1


def _is_left_out(file: str, root: str, patterns: Sequence[str]) -> bool:
    """Return whether a pattern fits a file's path below the root or the end of that, such as its
    name, in capitals or not.
    """
    if not patterns:
        return False
    path = file[len(root) :].replace(os.sep, "/").lower()
    return any(fnmatchcase(f"/{path}", f"*/{pattern.lower()}") for pattern in patterns)


def is_image(file: str) -> bool:
    """Return whether a file's ending is that of an image which Pillow reads."""
    return file.lower().endswith(SUFFIXES)


def may_be_dicom(file: str) -> bool:
    """Return whether a file is one by its suffix or its first bytes.

    Scanners write names such as `IM000001`. Not the index of a CD, DICOMDIR.
    """
    if file.lower().endswith(DICOM_SUFFIXES):
        return True
    try:
        with open(file, "rb") as opened:
            return is_dicom(opened.read(_FIRST_BYTES))
    except OSError:
        return False


# ── what a person has to decide ───────────────────────────────────────────────────────────────────
def _check_alike(root: str, files: FolderFiles) -> None:
    """Raise UserError where DICOM files lie beside other images."""
    images = _all_of(files.images)
    dicom = _all_of(files.dicom)
    if not images or not dicom:
        return
    endings = Counter(_ending(file) for file in images)
    fewer = _pattern_of(min(images, dicom, key=len))
    raise UserError(
        f"{len(dicom):,} DICOM files are mixed with images of other kinds ({_shown(endings)})",
        where=root,
        remedy=_say_which(fewer),
    )


def _pattern_of(files: Sequence[str]) -> str:
    """Return a pattern that fits many of these files: by their ending, or by how names begin."""
    ending, _ = Counter(_ending(file) for file in files).most_common(1)[0]
    if ending.startswith("."):
        return f"*{ending}"
    names = [os.path.basename(file) for file in files]
    beginnings = Counter(_NO_DIGITS.sub("", name) for name in names)
    return f"{beginnings.most_common(1)[0][0]}*"


def _check_names(root: str, files: FolderFiles) -> None:
    """Raise UserError where the names of some files speak of what is made from images."""
    words: Counter[str] = Counter()
    named = 0
    every = 0
    for folder, members in (*files.images.items(), *files.dicom.items()):
        usual = _words_of(os.path.basename(folder))
        for file in members:
            every += 1
            spoken = _words_of(file[len(folder) :]) - usual
            if spoken:
                named += 1
                words[min(spoken)] += 1
    if not named or named == every:
        return
    commonest = words.most_common(1)[0][0]
    raise UserError(
        f"{named:,} of {every:,} images seem to be made from others, by their names"
        f" ({_shown(words)})",
        where=root,
        remedy=_say_which(f"*{commonest}*"),
    )


def _say_which(pattern: str) -> str:
    left_out = to_write("leave_out", f"['{pattern}']")
    return f"say which files are no records: {left_out}; if all are: []"


def _words_of(path: str) -> set[str]:
    """Return the words of a path that speak of what is made from images."""
    return set(_MADE.findall(path.lower()))


def _all_of(by_folder: Mapping[str, Sequence[str]]) -> list[str]:
    return [file for files in by_folder.values() for file in files]
