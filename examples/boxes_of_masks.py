"""Boxes around the connected parts of masks, in COCO's format, a file for each site.

    python examples/boxes_of_masks.py LIST COLUMN FOLDER

LIST is a .csv with the columns `path` and `mask`, COLUMN the one that says whose each image is.
Parts of fewer than four pixels each way are left out; what touches is one part.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

LEAST_SIDE = 4


def find_parts(mask: np.ndarray) -> list[list[int]]:
    """Return the box [x, y, width, height] of each connected part of a mask."""
    labelled: Any = ndimage.label(mask, np.ones((3, 3)))
    boxes: list[list[int]] = []
    for rows, columns in ndimage.find_objects(labelled[0]):
        width = columns.stop - columns.start
        height = rows.stop - rows.start
        if min(width, height) >= LEAST_SIDE:
            boxes.append([columns.start, rows.start, width, height])
    return boxes


def describe_site(rows: Iterable[Mapping[str, str]], data: Path, out: Path) -> dict[str, Any]:
    """Return what COCO's format says of a site's images, named from the folder `out`."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, row in enumerate(rows, start=1):
        mask = np.asarray(Image.open(data / row["mask"])) > 0
        height, width = mask.shape
        name = os.path.relpath((data / row["path"]).absolute(), out.absolute())
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for bbox in find_parts(mask):
            annotations.append({"image_id": number, "category_id": 1, "bbox": bbox})
    categories = [{"id": 1, "name": "nucleus"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def main(listed: Path, column: str, out: Path) -> None:
    """Write a file for each value of a column, and say how many boxes it has."""
    sites: dict[str, list[dict[str, str]]] = {}
    with listed.open() as file:
        for row in csv.DictReader(file):
            sites.setdefault(row[column], []).append(row)
    out.mkdir(parents=True, exist_ok=True)
    for site, rows in sites.items():
        content = describe_site(rows, listed.parent, out)
        (out / f"{site}.json").write_text(json.dumps(content))
        print(f"{site}: {len(content['images'])} images, {len(content['annotations'])} boxes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
