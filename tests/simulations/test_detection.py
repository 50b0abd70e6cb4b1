"""A federation that finds things: from COCO's files of two hospitals to boxes of new images."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import fedgraft
from fedgraft.cli import app
from fedgraft.common.errors import UserError

SIDE = 32
PLAN: dict[str, Any] = {
    "name": "shapes",
    "task": {
        "kind": "image-detection",
        "classes": ["square", "disk"],
        "boxes": {"strides": [2, 4], "width": 16, "most": 8},
    },
    "backbone": {"name": "cifar-resnet8", "image_size": SIDE},
    "adapter": {"method": "head"},
    "train": {
        "rounds": 8,
        "local_epochs": 4,
        "batch_size": 8,
        "optimizer": {"name": "adam", "lr": 0.01},
    },
    "simulation": {
        "data": ["north/boxes.json", "south/boxes.json"],
        "partition": {"kind": "files"},
        "test_fraction": 0.25,
    },
}
Shape = tuple[int, list[int]]


def draw_shapes(
    rng: np.random.Generator, height: int, width: int, count: int
) -> tuple[np.ndarray, list[Shape]]:
    """Noise with bright squares and less bright disks, and their categories and boxes."""
    image = rng.integers(0, 90, (height, width))
    rows, columns = np.mgrid[:height, :width] + 0.5
    shapes: list[Shape] = []
    for _ in range(count):
        side = int(rng.integers(8, 14))
        top = int(rng.integers(0, height - side))
        left = int(rng.integers(0, width - side))
        if rng.random() < 0.5:
            image[top : top + side, left : left + side] = 230
            shapes.append((1, [left, top, side, side]))
        else:
            off = np.hypot(rows - top - side / 2, columns - left - side / 2)
            image[off <= side / 2] = 160
            shapes.append((2, [left, top, side, side]))
    return image.astype(np.uint8), shapes


def write_site(folder: Path, rng: np.random.Generator, count: int) -> None:
    (folder / "images").mkdir(parents=True)
    images = []
    annotations = []
    for number in range(count):
        image, shapes = draw_shapes(rng, SIDE, SIDE, int(number % 3 > 0))
        Image.fromarray(image).save(folder / f"images/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        for category, bbox in shapes:
            annotations.append({"image_id": number, "category_id": category, "bbox": bbox})
    names = [{"id": 1, "name": "square"}, {"id": 2, "name": "disk"}]
    content = {"images": images, "annotations": annotations, "categories": names}
    (folder / "boxes.json").write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two hospitals, and new images: one wider than what the network sees, one with nothing."""
    rng = np.random.default_rng(1)
    for site in ("north", "south"):
        write_site(tmp_path / site, rng, 32)
    (tmp_path / "new").mkdir()
    wide = rng.integers(0, 90, (SIDE, 3 * SIDE)).astype(np.uint8)
    # one in the first window, one where two windows overlap
    for left in (4, 40):
        wide[10:20, left : left + 10] = 230
    Image.fromarray(wide).save(tmp_path / "new/wide.png")
    nothing = rng.integers(0, 90, (SIDE, SIDE)).astype(np.uint8)
    Image.fromarray(nothing).save(tmp_path / "new/nothing.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simulate(out: str, **changes: Any) -> fedgraft.Run:
    run = fedgraft.simulate(PLAN, set=changes, out=out, progress=False)
    assert isinstance(run, fedgraft.Run)
    return run


def overlap(one: list[float], other: list[float]) -> float:
    """IoU of two boxes x, y, width, height."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    return both / (one[2] * one[3] + other[2] * other[3] - both)


def test_from_boxes_of_two_hospitals_to_boxes_of_new_images(sites: Path) -> None:
    """The whole way; a fresh head has an mAP@50 of nothing."""
    run = simulate("run")
    measured = run.metrics.loc["shared model"]
    assert measured["map_50"] > 0.5
    assert measured["map_50"] >= measured["map"]
    assert "mAP@50" in next(sites.glob("run/**/MODEL_CARD.md")).read_text()

    result = CliRunner().invoke(app, ["predict", "run", "new", "--out", "found.csv"])
    assert result.exit_code == 0, result.output
    with (sites / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["input", "class", "score", "x", "y", "w", "h"]
    sure = [row for row in rows if row["input"] == "wide.png" and float(row["score"]) > 0.3]
    for left in (4, 40):
        true = [float(left), 10.0, 10.0, 10.0]
        overlaps = [overlap([float(row[key]) for key in "xywh"], true) for row in sure]
        assert max(overlaps) > 0.4, left
    blank = [row for row in rows if row["input"] == "nothing.png"]
    assert blank
    assert all(row["class"] == "" or float(row["score"]) < 0.5 for row in blank)

    result = CliRunner().invoke(app, ["predict", "run", "new/wide.png", "--out", "found.json"])
    assert result.exit_code == 0, result.output
    found = json.loads((sites / "found.json").read_text())
    assert len(found) == len([row for row in rows if row["input"] == "wide.png"])
    assert {"image_id", "category_id", "bbox", "score"} == set(found[0])

    # as from Python: how many of each are told for sure
    told = run.shared_model.predict("new/nothing.png")
    assert float(np.asarray(told[["boxes_square", "boxes_disk"]]).sum()) == 0


@pytest.mark.parametrize("method", ["lora", "head"])
def test_boxes_under_differential_privacy_and_with_adapters(method: str) -> None:
    """Gradients of each image by itself are right, of convolutions at several levels, too; metrics
    with noise are of images.
    """
    run = simulate(
        "private",
        adapter={"method": method},
        train=PLAN["train"] | {"rounds": 1, "local_epochs": 1},
        privacy={"mode": "sample", "target_epsilon": 8, "max_grad_norm": 1.0},
    )
    assert run.result.privacy


def test_lora_trains_under_the_head() -> None:
    changes = PLAN["train"] | {"rounds": 1, "augment": "flip"}
    run = simulate("lora", adapter={"method": "lora"}, train=changes)
    assert run.metrics.loc["shared model", "loss"] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.method": "closed-form"}, "no sums that a head is solved from"),
        ({"train.augment": "affine"}, "mirrored"),
        ({"task.boxes": {"strides": [4, 16]}}, "twice the one before"),
        ({"task.boxes": {"strides": [8, 16]}}, r"maps of this network have strides"),
        ({"task.kind": "volume-detection"}, "volume-detection"),
        ({"backbone.name": "vit_b_16", "backbone.image_size": None}, "maps"),
    ],
)
def test_what_does_not_go_with_boxes_is_told(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        fedgraft.simulate(PLAN, set=changes, out="run", progress=False)
