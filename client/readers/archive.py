"""Images in a NumPy archive: MedMNIST's layout (`train_images`, `train_labels`, …), or `images`,
`labels`.

Large arrays of an uncompressed archive stay in the file (client/readers/stored.py); others are
loaded.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgraft.client.readers.image_array_file import ONE_HEADER
from fedgraft.client.readers.image_arrays import LargeImages, as_images, image_source, join_images
from fedgraft.client.readers.mask_file import as_numbers
from fedgraft.client.readers.mask_source import add_mask_arrays
from fedgraft.client.readers.pixel_form import AS_USUAL, PixelForm
from fedgraft.client.readers.reader import Reader, ReadRequest, has_suffix
from fedgraft.client.readers.source import SPLITS, Label, Source, unreadable
from fedgraft.client.readers.stored import StoredRows, stored_rows
from fedgraft.common.errors import UserError
from fedgraft.common.tasks.labels import join_labels

_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
)
_LAYOUT = (
    "write arrays train_images, train_labels (and val_…, test_…), or images and labels; where a"
    " plan asks for masks, train_masks or masks in place of labels"
)


def read_npz(
    path: Path, bits: int | None = None, form: PixelForm = AS_USUAL, *, masks: bool = False
) -> Source:
    """Return every image of an archive, the splits in the order train, val, test.

    Images: `(n, H, W)` grey, `(n, H, W, C)` or `(n, C, H, W)` with C 1 or 3, or what the
    plan says. Labels: `(n,)`, or `(n, k)` of several.

    Args:
        bits: how many of 16 bits the images use; None: nobody has said.
        form: what the plan says of channels.
        masks: whether images have masks `(n, H, W)` in place of labels.

    Raises:
        UserError: the file is missing or corrupt, holds pickled objects, or has another layout.
    """
    arrays, large = load_archive(path, leave=_large_images)
    check_no_windows(path, form)
    archive = _Archive(str(path), arrays, large, form)
    parts = [split for split in SPLITS if archive.has(f"{split}_images")]
    prefixes = [f"{split}_" for split in parts] or [""]
    answers = "masks" if masks else "labels"
    for prefix in prefixes:
        archive.check_names(f"{prefix}images", f"{prefix}{answers}")

    images = []
    labels: list[Label] = []
    for prefix in prefixes:
        batch = archive.images(f"{prefix}images")
        images.append(batch)
        labels += [""] * len(batch) if masks else archive.labels(f"{prefix}labels", len(batch))
    _check_alike(images, str(path))

    counts = [len(batch) for batch in images]
    ends = np.cumsum([0, *counts])
    splits = {}
    for number, split in enumerate(parts):
        splits[split] = np.arange(ends[number], ends[number + 1])

    def column(name: str) -> list[str]:
        return archive.column(name, prefixes, counts)

    source = image_source(str(path), join_images(images), labels, splits, column, bits, form)
    if not masks:
        return source
    pairs = zip(prefixes, images, strict=True)
    parts_of_masks = [archive.masks(f"{prefix}masks", batch) for prefix, batch in pairs]
    return add_mask_arrays(source, np.concatenate(parts_of_masks))


def check_no_windows(path: Path, form: PixelForm) -> None:
    """Raise `UserError` where a plan has windows: images of an archive are what they show."""
    if form.windows:
        what = "images that are what they show, and the plan has backbone.windows"
        remedy = "give DICOM, or .npy files with the values themselves; or leave windows out"
        raise UserError(what, where=str(path), remedy=remedy)


@dataclass(frozen=True)
class _Archive:
    """The arrays of one file by their names: loaded ones, and large ones that stay in it."""

    where: str
    arrays: Mapping[str, np.ndarray]
    large: Mapping[str, StoredRows]
    form: PixelForm = AS_USUAL

    def has(self, name: str) -> bool:
        return name in self.arrays or name in self.large

    def check_names(self, *names: str) -> None:
        for name in names:
            if not self.has(name):
                present = ", ".join(sorted([*self.arrays, *self.large])[:8]) or "nothing"
                what = f"no array {name!r}; found {present}"
                raise UserError(what, where=self.where, remedy=_LAYOUT)

    def images(self, name: str) -> np.ndarray | LargeImages:
        where = f"{self.where}: {name}"
        if name in self.large:
            return LargeImages(self.large[name], where, self.form)
        return as_images(self.arrays[name], where, self.form)

    def labels(self, name: str, count: int) -> list[Label]:
        stated = self.arrays[name]
        if stated.ndim == 1:
            stated = stated[:, None]
        if stated.ndim != 2 or len(stated) != count or not stated.shape[1]:
            raise UserError(
                f"{name} has shape {stated.shape} for {count} images",
                where=self.where,
                remedy="a label an image is needed, (n,), or several of them, (n, labels)",
            )
        columns = [[str(value) for value in column] for column in stated.T.tolist()]
        return join_labels(columns)

    def masks(self, name: str, images: np.ndarray | LargeImages) -> np.ndarray:
        """Return the masks of images, uint8 `(n, H, W)`. Raise `UserError`."""
        stated = self.arrays[name]
        where = f"{self.where}: {name}"
        wanted = (len(images), *images.shape[-2:])
        if stated.shape == (*wanted, 1):
            stated = stated[..., 0]
        if stated.shape != wanted:
            what = f"masks of shape {stated.shape} for images of shape {images.shape}"
            raise UserError(what, where=where, remedy=f"give one number a pixel: {wanted}")
        return as_numbers(stated, where)

    def column(self, name: str, prefixes: Sequence[str], counts: Sequence[int]) -> list[str]:
        """Return the text of one more array with a value for each image."""
        names = [f"{prefix}{name}" for prefix in prefixes]
        values: list[object] = []
        for own, count in zip(names, counts, strict=True):
            part = self._beside(own)
            if len(part) != count:
                what = f"no array {name!r} with a value for each image"
                remedy = f"write {' and '.join(names)}, with one value an image"
                raise UserError(what, where=self.where, remedy=remedy)
            values += part.tolist()
        return [str(value) for value in values]

    def _beside(self, name: str) -> np.ndarray:
        """Return an array that is neither images nor labels nor masks, flat; empty where there is
        none.
        """
        if name.endswith(("images", "labels", "masks")) or name not in self.arrays:
            return np.empty(0)
        return self.arrays[name].reshape(-1)


def _check_alike(images: Sequence[np.ndarray | LargeImages], where: str) -> None:
    sizes = {batch.shape[1:] for batch in images}
    types = {batch.dtype for batch in images}
    if len(sizes) == 1 and len(types) == 1:
        return
    shapes = ", ".join(f"{batch.dtype}{batch.shape[1:]}" for batch in images)
    raise UserError(
        f"splits differ: {shapes}", where=where, remedy="give all splits one size and type"
    )


def _large_images(path: Path, name: str) -> StoredRows | None:
    if not name.endswith("images"):
        return None
    return stored_rows(path, name)


def _leave_none(path: Path, name: str) -> StoredRows | None:
    return None


def load_archive(
    path: Path, *, leave: Callable[[Path, str], StoredRows | None] = _leave_none
) -> tuple[dict[str, np.ndarray], dict[str, StoredRows]]:
    """Return the arrays of an .npz file, and those of them that `leave` leaves in it.

    Pickled objects are refused: reading them would run code from the file.
    """
    arrays: dict[str, np.ndarray] = {}
    large: dict[str, StoredRows] = {}
    try:
        with ONE_HEADER, np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive")
            for name in archive.files:
                rows = leave(path, name)
                if rows is None:
                    arrays[name] = archive[name]
                else:
                    large[name] = rows
    except _BROKEN as error:
        if "pickle" in str(error).lower():
            raise UserError(
                "holds pickled objects (or is no NumPy archive); they are never loaded",
                where=str(path),
                remedy="save plain arrays of numbers with numpy.savez",
            ) from None
        raise unreadable(path, error) from None
    return arrays, large


def _read(request: ReadRequest) -> Source:
    bits = request.reading.bits
    return read_npz(Path(request.path), bits, request.form, masks=request.masks)


NPZ = Reader(
    "npz",
    has_suffix(".npz"),
    read=_read,
    options=lambda request: (request.form, request.masks),
    has_masks="asked",
)
