"""What a reader of one format says of itself; `client/readers/reader_table.py` lists them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedgraft.client.readers.pixel_form import AS_USUAL, PixelForm
from fedgraft.client.readers.scan_form import ONE_IMAGE, ScanForm
from fedgraft.client.readers.source import Label, Source, unreadable
from fedgraft.common.plan.reading_section import UNDECIDED, ReadingSection

Stamp = tuple[Hashable, ...]


@dataclass(frozen=True)
class Content:
    """What a reader gives.

    Attributes:
        material: the raw material, a member of `common.inputs.INPUTS`.
        words: for messages.
    """

    material: str
    words: str


IMAGES = Content("image", "images")
TABLE = Content("tabular", "a table")
TEXTS = Content("text", "texts")
SIGNALS = Content("series", "signals")
IMAGES_WITH_ROWS = Content("image-and-table", "images with columns")


@dataclass(frozen=True)
class TableColumns:
    """Which columns of a table a plan asks for.

        TableColumns.of(["age", "sex"], {"sex": ["f", "m"]}, ["ill"])

    Attributes:
        features: the input columns, or those of a text, in order.
        categories: those of them that hold categories, each with its values, in order.
        targets: the columns of labels, mostly one.
    """

    features: tuple[str, ...] = ()
    categories: tuple[tuple[str, tuple[Label, ...]], ...] = ()
    targets: tuple[str, ...] = ("target",)

    @classmethod
    def of(
        cls,
        features: Sequence[str],
        categories: Mapping[str, Sequence[Label]],
        targets: Sequence[str],
    ) -> TableColumns:
        """Return them from a plan's own lists; two that say the same are equal."""
        encoded = [(name, tuple(categories[name])) for name in sorted(categories)]
        return cls(tuple(features), tuple(encoded), tuple(targets))


NO_TABLE = TableColumns()


@dataclass(frozen=True)
class ManifestColumns:
    """What the columns of a manifest are called."""

    path: str = "path"
    label: str = "label"
    split: str = "split"
    mask: str = "mask"


USUAL_NAMES = ManifestColumns()


@dataclass(frozen=True)
class ReadRequest:
    """What is to be read, with everything that node.yaml and the plan say about reading it.

    Attributes:
        path: an absolute path, or a name with a prefix.
        cache: folder to remember there which image files were looked at already; None: look at
            every file anew.
        reading: what a person has decided about the data.
        channels: names of a signal's channels, in order.
        form: what the plan says of the channels and windows of images.
        scan: which images its volumes are made of.
        masks: whether each record has a mask in place of a label.
    """

    path: str
    table: TableColumns = NO_TABLE
    manifest: ManifestColumns = USUAL_NAMES
    cache: Path | None = None
    reading: ReadingSection = UNDECIDED
    channels: tuple[str, ...] = ()
    form: PixelForm = AS_USUAL
    scan: ScanForm = ONE_IMAGE
    masks: bool = False


@dataclass(frozen=True)
class Reader:
    """One format: how it is known, what it gives, and how it is read.

        NPZ = Reader("npz", lambda path: path.endswith(".npz"), read=lambda request: …)

    Attributes:
        name: what node.yaml's `data.format` calls it.
        matches: path → whether data of this format lies there.
        read: a request → its records. Raises `UserError` with file, line and column.
        gives: path → which raw material.
        stamp: path → what changes when the data does. Raises `UserError`.
        options: what of a request `read` depends on, beside the path and what was decided.
        has_masks: whether it reads records with masks in place of labels: "always", or "asked",
            where a request asks for them; "never".
        has_boxes: whether it reads records with boxes in place of labels.
    """

    name: str
    matches: Callable[[str], bool]
    read: Callable[[ReadRequest], Source]
    gives: Callable[[str], Content] = lambda _: IMAGES
    stamp: Callable[[str], Stamp] = lambda path: stamp_of([path])
    options: Callable[[ReadRequest], Hashable] = lambda _: None
    has_masks: Literal["always", "asked", "never"] = "never"
    has_boxes: bool = False


def stamp_of(paths: Sequence[str]) -> Stamp:
    """Return path, time of modification and size of each. Raise `UserError` where one is gone."""
    stamps = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise unreadable(paths[0], error) from None
        stamps.append((path, status.st_mtime_ns, status.st_size))
    return tuple(stamps)


def has_suffix(*suffixes: str) -> Callable[[str], bool]:
    """Return whether a path ends in one of these, in capitals or not."""

    def matches(path: str) -> bool:
        return Path(path).name.lower().endswith(suffixes) and not Path(path).is_dir()

    return matches
