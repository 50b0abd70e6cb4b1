"""Files in COCO's format: what is read of them, and what is said of those that cannot be right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedgraft.client.data.data_set import DataSource, Records, open_records
from fedgraft.client.data.find_reader import find_reader
from fedgraft.client.readers.coco import COCO
from fedgraft.client.readers.reader import ReadRequest
from fedgraft.client.readers.source import Source
from fedgraft.common.errors import UserError
from fedgraft.common.plan.task_section import TaskSection

TASK = TaskSection.model_validate(
    {"kind": "image-detection", "classes": ["nodule", "mass"], "boxes": {"most": 3}}
)
CONTENT: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 30, "height": 20, "patient": "p1"},
        {"id": 9, "file_name": "b.png", "width": 30, "height": 20, "patient": "p2"},
    ],
    "annotations": [
        {"image_id": 7, "category_id": 3, "bbox": [2, 4, 10, 5]},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 30, 20]},
    ],
    "categories": [{"id": 1, "name": "mass"}, {"id": 3, "name": "nodule"}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image beside the file, and one in `images/`."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(1)
    for name in ("a.png", "images/b.png"):
        image = rng.integers(0, 255, (20, 30)).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / name)
    return tmp_path


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps(CONTENT | changes))
    return path


def read(path: Path) -> Source:
    return COCO.read(ReadRequest(str(path)))


def open_it(path: Path, task: TaskSection = TASK) -> Records:
    return open_records(DataSource(path, test_fraction=0.5), task)


def test_images_come_with_their_boxes(folder: Path) -> None:
    """Width and height are no ends, and a category's number is no class."""
    records = open_it(write(folder))
    boxes = records.source.boxes
    assert boxes is not None
    assert boxes.records[0].tolist() == [[3, 2, 4, 12, 9], [1, 0, 0, 30, 20]]
    assert boxes.records[1].shape == (0, 5)
    assert boxes.sides[0] == (20, 30)
    assert records.labels[0].tolist() == [[0, 2, 4, 12, 9], [1, 0, 0, 30, 20], [-1, 0, 0, 0, 0]]
    assert (records.labels[1, :, 0] == -1).all()
    assert records.owners == ["p1", "p2"]


def test_a_plan_may_call_categories_as_the_data_do(folder: Path) -> None:
    task = TASK.model_copy(update={"labels": (1, "nodule")})
    assert open_it(write(folder), task).labels[0, :2, 0].tolist() == [1, 0]


def test_boxes_are_part_of_what_a_record_is(folder: Path) -> None:
    """Other boxes are other data: the ledger and the run's papers must tell them apart."""
    before = read(write(folder))
    moved = [CONTENT["annotations"][0] | {"bbox": [2, 4, 10, 6]}]
    after = read(write(folder, annotations=moved))
    assert before.digests[0] != after.digests[0]
    assert before.digests[1] == after.digests[1]
    assert before.identities == after.identities


def test_the_files_own_splits_are_kept(folder: Path) -> None:
    images = [
        image | {"split": split}
        for image, split in zip(CONTENT["images"], ("train", "test"), strict=True)
    ]
    records = open_it(write(folder, images=images))
    assert records.splits["train"].tolist() == [0]
    assert records.splits["test"].tolist() == [1]


def annotation(**changes: Any) -> dict[str, Any]:
    return {"annotations": [CONTENT["annotations"][0] | changes]}


def image(**changes: Any) -> dict[str, Any]:
    return {"images": [CONTENT["images"][0] | changes], "annotations": []}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (annotation(image_id=8), r"annotations\[0\].*image_id 8"),
        (annotation(category_id=2), "category_id 2"),
        (annotation(bbox=[25, 4, 10, 5]), "outside of its image of 30×20"),
        (annotation(bbox=[2, -3, 10, 5]), "outside of its image"),
        (annotation(bbox=[2, 4, 0, 5]), "no area"),
        (annotation(bbox=[2, 4, -1, 5]), "no area"),
        (annotation(bbox=[2, 4, float("nan"), 5]), "no area"),
        (annotation(bbox=[2, 4, 5]), "no box"),
        (annotation(bbox="2 4 5 6"), "no box"),
        (annotation(iscrowd=1), "crowd"),
        (image(file_name="c.png"), "no such file: c.png"),
        (image(width=31), "a.png is 20×30"),
        (image(width=0), "below 1"),
        (image(id="7"), "id that is a whole number"),
        (image(split="holdout"), "holdout"),
        ({"images": [CONTENT["images"][0]] * 2}, "once more"),
        ({"categories": [{"id": 1}]}, "no 'name'"),
        ({"categories": [CONTENT["categories"][0]] * 2}, "once more"),
        ({"annotations": None}, "no list 'annotations'"),
    ],
)
def test_what_cannot_be_right_is_told(folder: Path, changes: dict[str, Any], words: str) -> None:
    """A box that is silently dropped or moved would teach that nothing is there."""
    with pytest.raises(UserError, match=words):
        read(write(folder, **changes))


def test_several_mistakes_are_told_at_once(folder: Path) -> None:
    wrong = [CONTENT["annotations"][0] | {"image_id": number} for number in (1, 2)]
    with pytest.raises(UserError, match=r"(?s)image_id 1.*image_id 2"):
        read(write(folder, annotations=wrong))


@pytest.mark.parametrize("content", ["[]", "{", "7", '"images"'])
def test_a_file_of_another_format_is_told(folder: Path, content: str) -> None:
    path = folder / "annotations.json"
    path.write_text(content)
    with pytest.raises(UserError):
        read(path)


def test_a_category_that_is_no_class_of_the_plan_is_told(folder: Path) -> None:
    categories = [{"id": 1, "name": "mass"}, {"id": 3, "name": "artefact"}]
    with pytest.raises(UserError, match=r"artefact.*nodule, mass"):
        open_it(write(folder, categories=categories))


def test_more_boxes_than_agreed_on_are_told(folder: Path) -> None:
    """What is left out without a word would be learnt as background."""
    many = [CONTENT["annotations"][0]] * 4
    with pytest.raises(UserError, match=r"4 boxes, and task.boxes.most is 3"):
        open_it(write(folder, annotations=many))


def test_a_plan_about_classes_does_not_take_boxes_for_labels(folder: Path) -> None:
    path = str(write(folder))
    assert find_reader(path, None, "image", boxes=True) is COCO
    with pytest.raises(UserError):
        find_reader(path, None, "image")
    with pytest.raises(UserError, match="has boxes"):
        find_reader(path, "coco", "image")
    with pytest.raises(UserError, match="no boxes"):
        find_reader(path, "npz", "image", boxes=True)


def test_a_plan_about_boxes_wants_boxes(folder: Path) -> None:
    with pytest.raises(UserError, match="COCO"):
        open_it(folder / "images")
