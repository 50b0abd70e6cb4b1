"""`fedgraft predict` where answers are boxes: a line for each, or COCO's results."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fedgraft.common.errors import UserError
from fedgraft.common.files.foreign_text import as_cell
from fedgraft.common.files.whole_files import write_whole
from fedgraft.common.inputs.material import Raw
from fedgraft.common.model.shared_model import SharedModel
from fedgraft.common.model.whole_boxes import find_in_image

HEADER = ("input", "class", "score", "x", "y", "w", "h")
# name, and of each box: number of its class, score, x, y, width, height
Found = tuple[str, list[tuple[int, float, list[float]]]]


def write_boxes(shared: SharedModel, out: Path, batches: Iterable[tuple[list[str], Raw]]) -> int:
    """Write the boxes of every image in its own pixels.

    A CSV has a line for each box, the best first, and one without a class for an image that has
    none. A `.json` has COCO's results; there an image's id is its name, and a category's its number
    in `task.labels`, or else its place among the plan's classes, from 1.

    Returns:
        How many lines, without the header, or results were written.

    Raises:
        UserError: an input that cannot be read, or a file that cannot be written.
    """
    images = list(find_in_images(shared, batches))
    if out.suffix.lower() == ".json":
        results = as_results(shared, images)
        written = len(results)
        content = json.dumps(results, indent=1)
    else:
        lines = as_lines(shared, images)
        written = len(lines)
        table = io.StringIO()
        csv.writer(table).writerows([HEADER, *lines])
        content = table.getvalue()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, content.encode(), durable=False)
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        remedy = "name another file: --out FILE.csv"
        raise UserError(what, where=str(out), remedy=remedy) from error
    return written


def find_in_images(
    shared: SharedModel, batches: Iterable[tuple[list[str], Raw]]
) -> Iterator[Found]:
    """Yield the boxes of each image of batches of names and raw images."""
    for names, images in batches:
        for name, image in zip(names, images, strict=True):
            found = find_in_image(shared, image)
            boxes: list[tuple[int, float, list[float]]] = []
            for number, (left, top, right, bottom) in enumerate(found.boxes.tolist()):
                score = float(found.scores[number])
                sides = [left, top, right - left, bottom - top]
                boxes.append((int(found.classes[number]), score, sides))
            yield name, boxes


def as_lines(shared: SharedModel, images: Iterable[Found]) -> list[list[str]]:
    """Return the lines of a table of boxes; an image without one has a line, too."""
    lines: list[list[str]] = []
    for name, boxes in images:
        for number, score, sides in boxes:
            numbers = [f"{side:.2f}" for side in sides]
            kind = as_cell(shared.classes[number])
            lines.append([as_cell(name), kind, f"{score:.6f}", *numbers])
        if not boxes:
            lines.append([as_cell(name), *[""] * (len(HEADER) - 1)])
    return lines


def as_results(shared: SharedModel, images: Iterable[Found]) -> list[dict[str, Any]]:
    """Return boxes as COCO's results."""
    numbers = shared.plan.task.labels or range(1, len(shared.classes) + 1)
    results: list[dict[str, Any]] = []
    for name, boxes in images:
        for number, score, sides in boxes:
            bbox = [round(side, 2) for side in sides]
            category = numbers[number]
            results.append(
                {"image_id": name, "category_id": category, "bbox": bbox, "score": round(score, 6)}
            )
    return results
