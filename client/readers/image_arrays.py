"""Images as arrays `(n, C, H, W)`: checked, joined without a copy, and as a `Source`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedgraft.client.readers.bit_depth import check_brightest, digests_at, spread
from fedgraft.client.readers.pixel_form import AS_USUAL, USUAL, PixelForm
from fedgraft.client.readers.source import (
    Label,
    Source,
    array_reader,
    content_digest,
    digest,
    unreadable,
)
from fedgraft.client.readers.stored import StoredRows
from fedgraft.common.errors import UserError

# images whose digests are computed together
_AT_ONCE = 1000


class LargeImages:
    """Images `(n, C, H, W)` that stay in their file; rows are read when they are picked."""

    def __init__(self, stored: StoredRows, where: str, form: PixelForm = AS_USUAL) -> None:
        self._stored = stored
        self._form = form
        self._where = where
        first = self[np.arange(min(1, len(stored)))]
        self.shape = (len(stored), *first.shape[1:])
        self.dtype = stored.dtype

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        try:
            return as_images(self._stored.take(rows), self._where, self._form)
        except (OSError, ValueError) as error:
            raise unreadable(self._where, error) from None


class JoinedImages:
    """Several arrays of images as one, none of them copied."""

    def __init__(self, parts: Sequence[np.ndarray | LargeImages]) -> None:
        self._parts = parts
        self.dtype = parts[0].dtype
        self._begins = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        first = self._parts[0]
        picked = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for part, begin in zip(self._parts, self._begins[:-1], strict=True):
            inside = (rows >= begin) & (rows < begin + len(part))
            picked[inside] = part[rows[inside] - begin]
        return picked


Images = np.ndarray | LargeImages | JoinedImages


class SpreadImages:
    """Images that use fewer than 16 bits, spread over all of them when they are picked."""

    def __init__(self, images: Images, bits: int) -> None:
        self._images = images
        self._bits = bits

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return spread(self._images[rows], self._bits)


def join_images(parts: Sequence[np.ndarray | LargeImages]) -> Images:
    """Return all parts as one; those in memory are concatenated if all of them are."""
    loaded = [part for part in parts if isinstance(part, np.ndarray)]
    if len(loaded) < len(parts):
        return JoinedImages(parts)
    return np.concatenate(loaded)


def image_source(
    where: str,
    images: Images,
    labels: list[Label],
    splits: Mapping[str, np.ndarray],
    column: Callable[[str], list[str]] | None = None,
    bits: int | None = None,
    form: PixelForm = AS_USUAL,
) -> Source:
    """Return a `Source` over images `(n, C, H, W)`.

    Args:
        bits: how many of 16 bits they use.
        form: what the plan says of channels.

    Raises:
        UserError: images of 16 bits are dark and nobody has said why, or have more than `bits`.
    """
    seen = _look_at(images, labels, is_usual=form.is_usual)
    check_brightest(where, seen.brightest, bits)
    wide = images.dtype == np.uint16
    return Source(
        where=where,
        labels=labels,
        digests=digests_at(bits, seen.digests),
        identities=seen.digests,
        contents=seen.contents,
        read=array_reader(SpreadImages(images, bits) if wide and bits is not None else images),
        place=lambda row: f"{where}: image {row}",
        splits=splits,
        column=column,
    )


@dataclass(frozen=True)
class _Seen:
    """What was seen of each image: digests with its label and without, and its highest value."""

    digests: list[bytes] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    brightest: list[int] = field(default_factory=list)


def _look_at(images: Images, labels: list[Label], *, is_usual: bool) -> _Seen:
    """Return what was seen of each image.

    Args:
        is_usual: whether they are grey or in colour. The channels of others lie where the plan's
            number of them says; their digests are the same wherever they were read.
    """
    seen = _Seen()
    for begin in range(0, len(images), _AT_ONCE):
        end = min(begin + _AT_ONCE, len(images))
        some = images[np.arange(begin, end)]
        for image, label in zip(some, labels[begin:end], strict=True):
            content = image.tobytes()
            values = content if is_usual else np.sort(image, axis=None).tobytes()
            seen.digests.append(digest(values, label))
            seen.contents.append(content_digest(content))
            if image.dtype == np.uint16:
                seen.brightest.append(int(image.max()))
    return seen


def as_images(array: np.ndarray, where: str, form: PixelForm = AS_USUAL) -> np.ndarray:
    """Return images of any accepted shape and type as uint8, uint16 or float32 `(n, C, H, W)`.

    Args:
        form: what the plan says of channels.

    Raises:
        UserError: another shape, or values that are not pixel values.
    """
    images = _with_channels_first(array, where, form.counts)
    if images.dtype.kind not in "iuf":
        raise UserError(f"{images.dtype} values", where=where, remedy="pixels are numbers")
    if images.dtype not in (np.uint8, np.uint16):
        images = _as_pixels(images, where)
    return np.ascontiguousarray(images)


def _with_channels_first(array: np.ndarray, where: str, counts: tuple[int, ...]) -> np.ndarray:
    channels = " or ".join(map(str, counts))
    remedy = f"images are (n, H, W), (n, H, W, C) or (n, C, H, W) with {channels} channels C"
    # or two plans would read one array in two ways, and its images were others to the ledger
    is_colour = array.ndim == 4 and {array.shape[1], array.shape[3]} & set(USUAL)
    if counts != USUAL and is_colour:
        raise UserError(f"an array of shape {array.shape}", where=where, remedy=remedy)
    if array.ndim == 3 and 1 in counts:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in counts:
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in counts:
        raise UserError(f"an array of shape {array.shape}", where=where, remedy=remedy)
    if 0 in array.shape[1:]:
        raise UserError(f"images without pixels: {array.shape}", where=where, remedy=remedy)
    return array


def _as_pixels(images: np.ndarray, where: str) -> np.ndarray:
    """Return numbers of any other type as pixel values."""
    low = float(images.min()) if images.size else 0.0
    high = float(images.max()) if images.size else 0.0
    whole = images.dtype.kind in "iu"
    if whole and low >= 0 and high <= 255:
        return images.astype(np.uint8)
    if whole and low >= 0 and high <= 65535:
        return images.astype(np.uint16)
    # NaN fails both comparisons
    if not whole and low >= 0 and high <= 1:
        return images.astype(np.float32)
    raise UserError(
        f"{images.dtype} values from {low:g} to {high:g}",
        where=where,
        remedy="pixels are whole numbers 0–255 (or 0–65535), or fractions 0–1",
    )
