"""Images with boxes in COCO's format: one `.json` that names images, annotations and categories.

    {"images": [{"id": 1, "file_name": "a.png", "width": 640, "height": 480}],
     "annotations": [{"image_id": 1, "category_id": 3, "bbox": [x, y, width, height]}],
     "categories": [{"id": 3, "name": "nodule"}]}

File names begin at the .json's own folder, or at the folder `images` there. What else an image says
of itself, such as `patient` or `split`, is a column.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedgraft.client.readers.box_file import BoxFile, Picture, read_box_file
from fedgraft.client.readers.files import FileTexts, file_source, image_files
from fedgraft.client.readers.looked_at import ImageEntry
from fedgraft.client.readers.mask_source import measure_image
from fedgraft.client.readers.pixel_form import PixelForm
from fedgraft.client.readers.reader import Reader, ReadRequest, has_suffix
from fedgraft.client.readers.source import Boxes, Source
from fedgraft.client.readers.table_cells import MOST_TOLD, raise_mistakes
from fedgraft.common.errors import UserError

# where images may lie, from the file's own folder
FOLDERS = ("", "images")


def read_coco(request: ReadRequest) -> Source:
    """Return the images of a file with their boxes; images that cannot be used are left out.

    Raises:
        UserError: as `read_box_file`; an image that is not there, or of another size than stated.
    """
    path = Path(request.path)
    content = read_box_file(path)
    files = find_files(path, content.pictures)
    entries: list[ImageEntry] = []
    for file, picture in zip(files, content.pictures, strict=True):
        entries.append(ImageEntry(file, "", picture.split))
    source = file_source(
        str(path),
        entries,
        texts=FileTexts(list_columns(content.pictures), _list_places(path, content.pictures)),
        cache=request.cache,
        reading=request.reading,
        kind=image_files(request.form),
    )
    by_file = dict(zip(files, content.pictures, strict=True))
    kept = [by_file[file] for file in source.files]
    check_sizes(source.files, kept, request.form, str(path))
    return add_boxes(source, kept, content)


def find_files(path: Path, pictures: Sequence[Picture]) -> list[str]:
    """Return the file of each image. Raise `UserError` for those that are not there, or twice."""
    files: list[str] = []
    mistakes: list[UserError] = []
    seen: set[str] = set()
    for picture in pictures:
        candidates = [os.path.normpath(path.parent / place / picture.name) for place in FOLDERS]
        present = [file for file in candidates if os.path.isfile(file)]
        where = f"{path}: image {picture.id}"
        if not present:
            what = f"no such file: {picture.name}"
            remedy = "write file_name from the .json's own folder, or from images/ there"
            mistakes.append(UserError(what, where=where, remedy=remedy))
        elif present[0] in seen:
            what = f"the file {picture.name} once more"
            mistakes.append(UserError(what, where=where, remedy="name each image once"))
        if len(mistakes) >= MOST_TOLD:
            break
        files += present[:1]
        seen.update(present[:1])
    raise_mistakes(mistakes)
    return files


def list_columns(pictures: Sequence[Picture]) -> dict[str, list[str]]:
    """Return what images say of themselves, each by its name; nothing where one does not say it."""
    names: dict[str, None] = {}
    for picture in pictures:
        names |= dict.fromkeys(picture.texts)
    return {name: [picture.texts.get(name, "") for picture in pictures] for name in names}


def _list_places(path: Path, pictures: Sequence[Picture]) -> list[str]:
    return [f"{path}: image {picture.id} ({picture.name})" for picture in pictures]


def check_sizes(
    files: Sequence[str], pictures: Sequence[Picture], form: PixelForm, where: str
) -> None:
    """Raise `UserError` for images of another size than stated: their boxes would lie elsewhere."""
    mistakes: list[UserError] = []
    for file, picture in zip(files, pictures, strict=True):
        sides = measure_image(Path(file), form)
        if sides == picture.sides:
            continue
        stated = "×".join(map(str, picture.sides))
        own = "×".join(map(str, sides))
        what = f"{picture.name} is {own} (height × width), and {stated} is stated"
        remedy = "state the image's own size, upright, with boxes in its pixels"
        mistakes.append(UserError(what, where=f"{where}: image {picture.id}", remedy=remedy))
        if len(mistakes) >= MOST_TOLD:
            break
    raise_mistakes(mistakes)


def add_boxes(source: Source, pictures: Sequence[Picture], content: BoxFile) -> Source:
    """Return a source of files with the boxes of each record.

    A record's digest is of its boxes, too, as a label's would be; its identity is not.
    """
    digests: list[bytes] = []
    for picture, seen in zip(pictures, source.digests, strict=True):
        named = [(content.categories[int(box[0])], *box[1:]) for box in picture.boxes]
        digests.append(hashlib.sha256(seen + repr(named).encode()).digest())
    boxes = Boxes(
        categories=content.categories,
        records=[picture.numbers for picture in pictures],
        sides=[picture.sides for picture in pictures],
    )
    return replace(source, digests=digests, boxes=boxes, _derived={})


COCO = Reader(
    "coco",
    matches=has_suffix(".json"),
    read=read_coco,
    options=lambda request: request.form,
    has_boxes=True,
)
