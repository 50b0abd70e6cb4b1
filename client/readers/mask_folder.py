"""Images or volumes with masks in two folders: `images/a.png` and `masks/a.png`.

    folder/images/p001/a.png       folder/train/images/…, folder/test/images/…, with its own splits
    folder/masks/p001/a.png        or masks/p001/a_mask.png, masks/p001/a_seg.nii.gz

A mask is called as its image, with another ending or with what it is behind the name.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fedgraft.client.readers.files import SPLIT_NAMES, FileKind, file_source, image_files
from fedgraft.client.readers.folder import stamp_folders
from fedgraft.client.readers.folder_files import is_image, is_system, may_be_dicom, walk
from fedgraft.client.readers.looked_at import ImageEntry
from fedgraft.client.readers.mask_file import is_mask
from fedgraft.client.readers.mask_source import MaskKind, add_masks, image_masks, volume_masks
from fedgraft.client.readers.nifti import SUFFIXES as NIFTI
from fedgraft.client.readers.nifti import is_nifti
from fedgraft.client.readers.reader import IMAGES, Reader, ReadRequest
from fedgraft.client.readers.source import Source
from fedgraft.client.readers.table_cells import MOST_TOLD, raise_mistakes
from fedgraft.client.readers.volume_file import volume_files
from fedgraft.client.readers.volume_folder import VOLUMES, list_volumes
from fedgraft.common.errors import UserError

RECORDS = "images"
MASKS = "masks"
# what may stand behind an image's name in its mask's
BEHIND = ("_mask", "_masks", "_seg", "_segmentation", "_label")
_OTHERS = "files that are no images"


def holds_masks(path: str) -> bool:
    """Return whether a folder, or its folder `train`, has the two folders."""
    return any(_has_both(place) for place, _ in list_places(Path(path)))


def list_places(path: Path) -> list[tuple[Path, str | None]]:
    """Return the folders that have the two folders, each with its split; None: it has none."""
    if _has_both(path):
        return [(path, None)]
    places: list[tuple[Path, str | None]] = []
    if not path.is_dir():
        return places
    for name in sorted(os.listdir(path)):
        split = SPLIT_NAMES.get(name.lower())
        if split is not None and _has_both(path / name):
            places.append((path / name, split))
    return places


def _has_both(path: Path) -> bool:
    return (path / RECORDS).is_dir() and (path / MASKS).is_dir()


def read_pairs(
    request: ReadRequest,
    kind: FileKind,
    masks: MaskKind,
    list_records: Callable[[Path], tuple[list[Path], int]],
) -> Source:
    """Return every usable record below `images`, with its mask.

    Args:
        list_records: a folder → its records, and how many other files there are.

    Raises:
        UserError: a record without a mask, or a mask that does not fit; several at once.
    """
    path = Path(request.path)
    entries: list[ImageEntry] = []
    paired: dict[str, str] = {}
    mistakes: list[UserError] = []
    others: Counter[str] = Counter()
    for place, split in list_places(path):
        known = list_masks(place / MASKS)
        records, count = list_records(place / RECORDS)
        others[_OTHERS] += count
        for record in records:
            entries.append(ImageEntry(str(record), "", split))
            mask = known.get(name_of(record, place / RECORDS))
            if mask is None and len(mistakes) < MOST_TOLD:
                mistakes.append(_say_missing(record, place))
            paired[str(record)] = str(mask)
    raise_mistakes(mistakes)
    source = file_source(
        str(path),
        entries,
        cache=request.cache,
        reading=request.reading,
        beside=+others,
        kind=kind,
    )
    return add_masks(source, [paired[file] for file in source.files], masks)


def _say_missing(record: Path, place: Path) -> UserError:
    name = name_of(record, place / RECORDS)
    what = f"no mask {place.name}/{MASKS}/{name}.*"
    remedy = f"put it there, called as the image or with {BEHIND[0]} behind; or take the image out"
    return UserError(what, where=str(record), remedy=remedy)


def list_masks(folder: Path) -> dict[str, Path]:
    """Return the masks below a folder by the name of their image."""
    masks: dict[str, Path] = {}
    for place, _, files in os.walk(folder):
        for name in sorted(files):
            if is_mask(name) and not is_system(name):
                stem = name_of(Path(place) / name, folder)
                for ending in BEHIND:
                    masks.setdefault(stem.removesuffix(ending), Path(place) / name)
    return masks


def name_of(file: Path, folder: Path) -> str:
    """Return a file's name below a folder without its ending, `p001/a`."""
    name = file.relative_to(folder).as_posix()
    for ending in (NIFTI[1], NIFTI[0]):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return os.path.splitext(name)[0] if file.suffix and not file.is_dir() else name


# ── readers ───────────────────────────────────────────────────────────────────────────────────────
def list_images(folder: Path) -> tuple[list[Path], int]:
    """Return the image files below a folder, sorted, and how many others there are."""
    images: list[Path] = []
    others = 0
    for file in walk(str(folder)):
        if is_image(file) or may_be_dicom(file):
            images.append(Path(file))
        else:
            others += 1
    return sorted(images), others


def _read_images(request: ReadRequest) -> Source:
    return read_pairs(request, image_files(request.form), image_masks(request.form), list_images)


def _read_volumes(request: ReadRequest) -> Source:
    def list_scans(folder: Path) -> tuple[list[Path], int]:
        return list_volumes(folder, request.scan)

    return read_pairs(request, volume_files(request.scan), volume_masks(request.scan), list_scans)


def _holds_volumes(path: str) -> bool:
    """Whether the records of a folder with masks are volumes: their masks are NIfTI files."""
    for place, _ in list_places(Path(path)):
        for _, _, files in os.walk(place / MASKS):
            if any(map(is_nifti, files)):
                return True
    return False


MASK_FOLDER = Reader(
    "mask-folder",
    matches=lambda path: holds_masks(path) and not _holds_volumes(path),
    read=_read_images,
    gives=lambda _: IMAGES,
    stamp=stamp_folders,
    options=lambda request: request.form,
    has_masks="always",
)
VOLUME_MASK_FOLDER = Reader(
    "volume-mask-folder",
    matches=lambda path: holds_masks(path) and _holds_volumes(path),
    read=_read_volumes,
    gives=lambda _: VOLUMES,
    stamp=stamp_folders,
    options=lambda request: request.scan,
    has_masks="always",
)
