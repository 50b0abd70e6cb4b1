"""Images in a NumPy archive: MedMNIST's layout (`train_images`, `train_labels`, …), or `images`,
`labels`.

Large arrays of an uncompressed archive stay in the file (client/readers/stored.py); others are
loaded.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fedgraft.client.readers.source import SPLITS, Source, array_reader, digest, plain, unreadable
from fedgraft.client.readers.stored import StoredRows, stored_rows
from fedgraft.common.errors import UserError

_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
)
_AT_ONCE = 1000  # images whose digests are computed together
_LAYOUT = "write arrays train_images, train_labels (and val_…, test_…), or images and labels"


def read_npz(path: Path) -> Source:
    """Every image of an archive, the splits in the order train, val, test.

    Images: `(n, H, W)` grey, `(n, H, W, C)` or `(n, C, H, W)` with C 1 or 3. Labels: `(n,)` or `(n,
        1)`.

    Raises:
        UserError: the file is missing or corrupt, holds pickled objects, or has another layout.
    """
    arrays, large = load_archive(path, kept=_large_images)
    parts = [split for split in SPLITS if f"{split}_images" in {**arrays, **large}]
    keys = [f"{split}_" for split in parts] or [""]
    for key in keys:
        for name in (f"{key}images", f"{key}labels"):
            if name not in arrays and name not in large:
                found = ", ".join(sorted([*arrays, *large])[:8]) or "nothing"
                raise UserError(
                    f"no array {name!r}; found {found}", where=str(path), remedy=_LAYOUT
                )
    images, labels = [], []
    for key in keys:
        where = f"{path}: {key}images"
        stored = large.get(f"{key}images")
        batch = (
            as_images(arrays[f"{key}images"], where)
            if stored is None
            else LargeImages(stored, where)
        )
        stated = arrays[f"{key}labels"]
        if stated.ndim == 2 and stated.shape[1] == 1:
            stated = stated[:, 0]
        if stated.ndim != 1 or len(stated) != len(batch):
            raise UserError(
                f"{key}labels has shape {stated.shape} for {len(batch)} images",
                where=str(path),
                remedy="one label an image is needed: (n,) or (n, 1)",
            )
        images.append(batch)
        labels += [plain(label) for label in stated.tolist()]
    if len({batch.shape[1:] for batch in images} | {batch.dtype for batch in images}) > 2:
        shapes = ", ".join(f"{batch.dtype}{batch.shape[1:]}" for batch in images)
        raise UserError(
            f"splits differ: {shapes}", where=str(path), remedy="give all splits one size and type"
        )
    ends = np.cumsum([0] + [len(batch) for batch in images])
    splits = {split: np.arange(ends[i], ends[i + 1]) for i, split in enumerate(parts)}
    others = {name: arrays[name] for name in arrays if not name.endswith(("images", "labels"))}

    def column(name: str) -> list[str]:
        parts = [others.get(f"{key}{name}", np.empty(0)).reshape(-1) for key in keys]
        if [len(part) for part in parts] != [len(batch) for batch in images]:
            remedy = (
                f"write {' and '.join(f'{key}{name}' for key in keys)}, with one value an image"
            )
            raise UserError(
                f"no array {name!r} with a value for each image", where=str(path), remedy=remedy
            )
        return [str(value) for part in parts for value in part.tolist()]

    return image_source(str(path), _joined(images), labels, splits, column)


class LargeImages:
    """Images `(n, C, H, W)` that stay in their file; rows are read when they are picked."""

    def __init__(self, stored: StoredRows, where: str) -> None:
        self._stored, self._where = stored, where
        self.shape, self.dtype = (
            (len(stored), *self[np.arange(min(1, len(stored)))].shape[1:]),
            stored.dtype,
        )

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        try:
            return as_images(self._stored.take(rows), self._where)
        except (OSError, ValueError) as error:
            raise unreadable(self._where, error) from None


class JoinedImages:
    """Several arrays of images as one, none of them copied."""

    def __init__(self, parts: Sequence[np.ndarray | LargeImages]) -> None:
        self._parts = parts
        self._begins = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        picked = np.empty((len(rows), *self._parts[0].shape[1:]), self._parts[0].dtype)
        for part, begin in zip(self._parts, self._begins[:-1], strict=True):
            mine = (rows >= begin) & (rows < begin + len(part))
            picked[mine] = part[rows[mine] - begin]
        return picked


Images = np.ndarray | LargeImages | JoinedImages


def _joined(parts: Sequence[np.ndarray | LargeImages]) -> Images:
    loaded = [part for part in parts if isinstance(part, np.ndarray)]
    return np.concatenate(loaded) if len(loaded) == len(parts) else JoinedImages(parts)


def image_source(
    where: str,
    images: Images,
    labels: list,
    splits: dict[str, np.ndarray],
    column: Callable[[str], list[str]] | None = None,
) -> Source:
    """A `Source` over images `(n, C, H, W)`."""
    digests: list[bytes] = []
    for begin in range(0, len(images), _AT_ONCE):
        some = images[np.arange(begin, min(begin + _AT_ONCE, len(images)))]
        digests += [
            digest(image.tobytes(), label)
            for image, label in zip(some, labels[begin:], strict=False)
        ]
    return Source(
        where=where,
        labels=labels,
        digests=digests,
        read=array_reader(images),
        place=lambda row: f"{where}: image {row}",
        splits=splits,
        column=column,
    )


def _large_images(path: Path, name: str) -> StoredRows | None:
    return stored_rows(path, name) if name.endswith("images") else None


def load_archive(
    path: Path, *, kept: Callable[[Path, str], StoredRows | None] = lambda *_: None
) -> tuple[dict[str, np.ndarray], dict[str, StoredRows]]:
    """The arrays of an .npz file, and those of them that `kept` leaves in it.

    Pickled objects are refused: reading them would run code from the file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive")
            large = {name: rows for name in archive.files if (rows := kept(path, name)) is not None}
            return {name: archive[name] for name in archive.files if name not in large}, large
    except _BROKEN as error:
        if "allow_pickle" in str(error) or "pickle" in str(error).lower():
            raise UserError(
                "holds pickled objects (or is no NumPy archive); they are never loaded",
                where=str(path),
                remedy="save plain arrays of numbers with numpy.savez",
            ) from None
        raise unreadable(path, error) from None


def as_images(array: np.ndarray, where: str) -> np.ndarray:
    """Images of any of the accepted shapes and types → uint8, uint16 or float32 `(n, C, H, W)`.

    Raises:
        UserError: another shape, or values that are not pixel values.
    """
    remedy = "images are (n, H, W), (n, H, W, C) or (n, C, H, W) with 1 or 3 channels C"
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in (1, 3):
        raise UserError(f"an array of shape {array.shape}", where=where, remedy=remedy)
    if 0 in array.shape[1:]:
        raise UserError(f"images without pixels: {array.shape}", where=where, remedy=remedy)
    if array.dtype.kind not in "iuf":
        raise UserError(f"{array.dtype} values", where=where, remedy="pixels are numbers")
    if array.dtype not in (np.uint8, np.uint16):
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if array.dtype.kind in "iu" and low >= 0 and high <= 65535:
            array = array.astype(np.uint8 if high <= 255 else np.uint16)
        elif array.dtype.kind == "f" and low >= 0 and high <= 1:  # NaN fails both comparisons
            array = array.astype(np.float32)
        else:
            raise UserError(
                f"{array.dtype} values from {low:g} to {high:g}",
                where=where,
                remedy="pixels are whole numbers 0–255 (or 0–65535), or fractions 0–1",
            )
    return np.ascontiguousarray(array)
