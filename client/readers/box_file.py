"""What a file in COCO's format says, held against itself: images, categories, boxes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.client.readers.files import SPLIT_NAMES
from fedgraft.client.readers.source import unreadable
from fedgraft.client.readers.table_cells import MOST_TOLD, raise_mistakes
from fedgraft.common.errors import UserError

LISTS = ("images", "annotations", "categories")
OWN = ("id", "file_name", "width", "height", "split")
# pixels that a box may lie outside of its image by: files round
ROUNDING = 0.5
FORMAT = "write images, annotations and categories as COCO does (docs/boxes.md)"


@dataclass(frozen=True, eq=False)
class Picture:
    """An image that a file names.

    Attributes:
        id: its number in the file.
        name: its file, as written.
        sides: height and width.
        split: train, val or test; None: the file does not say it.
        texts: what else it says of itself.
        boxes: `(k, 5)`: category, left, top, right, bottom, pixels.
    """

    id: int
    name: str
    sides: tuple[int, int]
    split: str | None
    texts: Mapping[str, str]
    boxes: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def numbers(self) -> np.ndarray:
        """Return its boxes, float64 `(k, 5)`."""
        return np.array(self.boxes, np.float64).reshape(-1, 5)


@dataclass(frozen=True, eq=False)
class BoxFile:
    """Images with their boxes, and the name of each category by its number."""

    pictures: list[Picture]
    categories: Mapping[int, str]


def read_box_file(path: Path) -> BoxFile:
    """Return what a file says.

    Raises:
        UserError: no file in COCO's format; an annotation of an image or a category that is not
            there, a box outside of its image or of no area; several at once.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    for name in LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise UserError(f"no list {name!r}", where=str(path), remedy=FORMAT)
    categories: dict[int, str] = {}
    pictures: dict[int, Picture] = {}
    readings: dict[str, Callable[[Any, str], None]] = {
        "categories": lambda said, where: add_category(said, categories, where),
        "images": lambda said, where: add_picture(said, pictures, where),
        "annotations": lambda said, where: add_box(said, pictures, categories, where),
    }
    for name, add in readings.items():
        mistakes: list[UserError] = []
        for number, said in enumerate(content[name]):
            try:
                add(said, f"{path}: {name}[{number}]")
            except UserError as mistake:
                mistakes.append(mistake)
            if len(mistakes) >= MOST_TOLD:
                break
        raise_mistakes(mistakes)
    return BoxFile(list(pictures.values()), categories)


def add_category(said: Any, categories: dict[int, str], where: str) -> None:
    """Add a category's name by its number. Raise `UserError` for what is none."""
    try:
        number = _read_id(said, "id")
        name = str(said["name"])
    except (ValueError, KeyError) as error:
        raise UserError(f"no {error}", where=where, remedy=FORMAT) from None
    if number in categories:
        remedy = "give each category its own id"
        raise UserError(f"id {number} once more", where=where, remedy=remedy)
    categories[number] = name


def add_picture(said: Any, pictures: dict[int, Picture], where: str) -> None:
    """Add an image by its number. Raise `UserError` for what is none, or is there already."""
    picture = read_picture(said, where)
    if picture.id in pictures:
        remedy = "give each image its own id"
        raise UserError(f"id {picture.id} once more", where=where, remedy=remedy)
    pictures[picture.id] = picture


def read_picture(said: Any, where: str) -> Picture:
    """Return an image as a file says it. Raise `UserError` for what is none."""
    try:
        number = _read_id(said, "id")
        sides = (_read_id(said, "height"), _read_id(said, "width"))
        name = said["file_name"]
    except (ValueError, KeyError) as error:
        raise UserError(f"no {error}", where=where, remedy=FORMAT) from None
    if not isinstance(name, str) or not name or min(sides) < 1:
        raise UserError("no file name, or sides below 1", where=where, remedy=FORMAT)
    split = said.get("split")
    if split is not None and str(split).lower() not in SPLIT_NAMES:
        remedy = "write train, val or test for every image, or for none"
        raise UserError(f"split {str(split)[:20]!r}", where=where, remedy=remedy)
    own = None if split is None else SPLIT_NAMES[str(split).lower()]
    texts = {str(key): str(value) for key, value in said.items() if key not in OWN}
    return Picture(number, name, sides, own, texts)


def add_box(
    said: Any, pictures: Mapping[int, Picture], categories: Mapping[int, str], where: str
) -> None:
    """Add an annotation's box to its image. Raise `UserError` for one that no image has."""
    try:
        image = _read_id(said, "image_id")
        category = _read_id(said, "category_id")
        box = [float(number) for number in said["bbox"]]
        x, y, width, height = box
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"no box: {error}", where=where, remedy=FORMAT) from None
    if image not in pictures:
        what = f"image_id {image}, and there is no image of that id"
        raise UserError(what, where=where, remedy="add the image, or take its boxes out")
    if category not in categories:
        what = f"category_id {category}, and there is no category of that id"
        raise UserError(what, where=where, remedy="add it to categories with its name")
    if said.get("iscrowd"):
        remedy = "take it out, or draw a box around each"
        raise UserError("a crowd, which is no box around one thing", where=where, remedy=remedy)
    picture = pictures[image]
    if not all(map(math.isfinite, box)) or width <= 0 or height <= 0:
        what = f"a box of no area, {box}"
        raise UserError(what, where=where, remedy="write bbox as [x, y, width, height] in pixels")
    rows, columns = picture.sides
    right, bottom = x + width, y + height
    if min(x, y) < -ROUNDING or right > columns + ROUNDING or bottom > rows + ROUNDING:
        what = f"box {box} lies outside of its image of {columns}×{rows} (width × height)"
        remedy = "write bbox as [x, y, width, height] in the image's own pixels"
        raise UserError(what, where=where, remedy=remedy)
    ends = (max(x, 0.0), max(y, 0.0), min(right, columns), min(bottom, rows))
    picture.boxes.append((float(category), *map(float, ends)))


def _read_id(said: Any, key: str) -> int:
    """Return a whole number. Raise `ValueError` with the key for anything else."""
    value = said.get(key) if isinstance(said, dict) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key} that is a whole number")
    return value
