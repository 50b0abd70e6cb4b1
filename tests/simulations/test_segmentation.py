"""A federation that outlines: from images and volumes with masks, in one round and by steps, to
masks of new ones.
"""

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
    "name": "squares",
    "task": {
        "kind": "image-segmentation",
        "classes": ["background", "square"],
        "labels": [0, 255],
        "mask": {"stride": 2, "width": 8},
    },
    "backbone": {"name": "cifar-resnet8", "image_size": SIDE},
    "adapter": {"method": "head"},
    "train": {"method": "closed-form"},
    "simulation": {
        "data": ["north", "south"],
        "partition": {"kind": "files"},
        "test_fraction": 0.25,
    },
}
STEPS: dict[str, Any] = {
    "train": {
        "rounds": 6,
        "local_epochs": 3,
        "batch_size": 8,
        "optimizer": {"name": "adam", "lr": 0.01},
        "augment": "flip",
    }
}


def draw_square(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a brighter square in it, and its mask of 0 and 255."""
    image = rng.integers(0, 120, (height, width))
    mask = np.zeros((height, width), np.uint8)
    side = int(rng.integers(height // 4, height // 2))
    top = int(rng.integers(0, height - side))
    left = int(rng.integers(0, width - side))
    mask[top : top + side, left : left + side] = 255
    return (image + (mask > 0) * 90).astype(np.uint8), mask


@pytest.fixture(autouse=True)
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two hospitals with images and masks, and new ones of other sizes."""
    rng = np.random.default_rng(1)
    for site in ("north", "south"):
        for name in ("images", "masks"):
            (tmp_path / site / name).mkdir(parents=True)
        for number in range(16):
            image, mask = draw_square(rng, SIDE, SIDE)
            Image.fromarray(image).save(tmp_path / site / f"images/{number}.png")
            Image.fromarray(mask).save(tmp_path / site / f"masks/{number}.png")
    (tmp_path / "new").mkdir()
    (tmp_path / "truth").mkdir()
    for name, height, width in (("wide", 32, 80), ("tall", 60, 32), ("same", 32, 32)):
        image, mask = draw_square(rng, height, width)
        Image.fromarray(image).save(tmp_path / f"new/{name}.png")
        Image.fromarray(mask).save(tmp_path / f"truth/{name}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simulate(out: str, **changes: Any) -> fedgraft.Run:
    run = fedgraft.simulate(PLAN, set=changes, out=out, progress=False)
    assert isinstance(run, fedgraft.Run)
    return run


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def dice_of(one: np.ndarray, other: np.ndarray) -> float:
    both = float(((one > 0) & (other > 0)).sum())
    return 2 * both / max(float((one > 0).sum() + (other > 0).sum()), 1.0)


SOLVED_FIRST = {
    "train": {**STEPS["train"], "start": "closed-form", "rounds": 3, "augment": "patches"}
}


@pytest.mark.parametrize(
    "changes", [{}, STEPS, SOLVED_FIRST], ids=["closed-form", "steps", "solved-first"]
)
def test_from_masks_of_two_hospitals_to_masks_of_new_images(
    sites: Path, changes: dict[str, Any]
) -> None:
    """The whole way; new images of another size are outlined to their edges, in their own size."""
    run = simulate("run", **changes)
    assert run.metrics.loc["shared model", "dice"] > 0.8
    result = CliRunner().invoke(app, ["predict", "run", "new", "--out", "outlined"])
    assert result.exit_code == 0, result.output
    for name in ("wide", "tall", "same"):
        found = read(sites / f"outlined/{name}.png")
        truth = read(sites / f"truth/{name}.png")
        assert found.shape == truth.shape
        assert set(np.unique(found)) <= {0, 255}
        assert dice_of(found, truth) > 0.6, name
    with (sites / "outlined/shares.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["input"] for row in rows] == ["same.png", "tall.png", "wide.png"]
    share = float(rows[0]["share_square"])
    assert share == pytest.approx((read(sites / "outlined/same.png") > 0).mean(), abs=1e-6)
    again = run.shared_model.masks("new")
    assert np.array_equal(again[2] > 0, read(sites / "outlined/wide.png") > 0)
    card = next(sites.glob("run/**/MODEL_CARD.md")).read_text()
    assert "Dice" in card


def test_the_same_model_to_the_bit_however_images_are_dealt(sites: Path) -> None:
    """Sums over places are integers: were they not, each deal would give another model."""
    (sites / "list.csv").write_text(
        "path,mask,where,split\n"
        + "".join(
            f"{site}/images/{n}.png,{site}/masks/{n}.png,{n % 3},{'test' if n > 11 else 'train'}\n"
            for site in ("north", "south")
            for n in range(16)
        )
    )
    heads = []
    for kind in ({"kind": "column", "column": "where"}, {"kind": "iid"}):
        partition = {**kind, "min_examples": 2}
        simulation: dict[str, Any] = {"data": "list.csv", "partition": partition, "nodes": 4}
        if kind["kind"] == "column":
            del simulation["nodes"]
        simulate(kind["kind"], simulation=simulation)
        file = next((sites / kind["kind"]).glob("**/adapter_model.safetensors"))
        heads.append(file.read_bytes())
    assert heads[0] == heads[1]


def test_a_value_that_is_no_class_is_named(sites: Path) -> None:
    """Masks of 0 and 255 under a plan that numbers its classes 0 and 1."""
    with pytest.raises(UserError, match="holds 255") as found:
        simulate("run", **{"task.labels": None})
    assert "labels: [0, 255]" in str(found.value)


def test_records_without_masks_are_refused_in_words(sites: Path) -> None:
    """Class folders given to a plan that outlines."""
    for label in ("a", "b"):
        (sites / "folders" / label).mkdir(parents=True)
        for number in range(4):
            image, _ = draw_square(np.random.default_rng(number), SIDE, SIDE)
            Image.fromarray(image).save(sites / f"folders/{label}/{number}.png")
    with pytest.raises(UserError, match="images/ and masks/"):
        simulate("run", **{"simulation.data": ["folders", "north"]})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {
                "privacy": {"mode": "sample", "target_epsilon": 3},
                "train": {"method": "closed-form", "closed_form": {"shares": "equal"}},
            },
            "train.closed_form.shares",
        ),
        ({"train": {"calibrate": "temperature"}}, "train.calibrate"),
        ({"task": {**PLAN["task"], "kind": "image-classification"}}, "task.mask"),
        ({"task.kind": "tabular-segmentation"}, "segmentation is for image and volume"),
        ({"backbone": {"name": "vit_b_32", "image_size": 32}}, "a mask needs maps"),
    ],
)
def test_a_plan_that_cannot_be_says_what_to_write(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        simulate("run", **changes)


def test_patches_are_for_masks_alone() -> None:
    """Half of an image under the label of all of it."""
    task = {"kind": "image-classification", "classes": ["a", "b"]}
    with pytest.raises(UserError, match="patches"):
        fedgraft.validate({**PLAN, "task": task, "train": {"augment": "patches"}})


@pytest.mark.parametrize("release", ["sums", "products"])
def test_one_round_under_privacy(sites: Path, release: str) -> None:
    """The whole way: a head on features of norm 1, opened again, outlines what it did in the run,
    and each hospital spent what the plan says. So few images are drowned by the noise.
    """
    privacy = {"mode": "sample", "target_epsilon": 18, "delta": 1e-3}
    train = {"method": "closed-form", "closed_form": {"release": release}}
    run = simulate("run", privacy=privacy, train=train)
    result = json.loads((sites / "run/result.json").read_text())
    assert {row["epsilon"] <= 18 for row in result["privacy"].values()} == {True}
    assert 0 <= float(run.metrics.loc["shared model", "dice"]) <= 1
    found = run.shared_model.masks("new")
    again = fedgraft.load_shared_model("run").masks("new")
    for one, other in zip(found, again, strict=True):
        assert np.array_equal(one, other)


def test_steps_under_privacy_with_a_head_solved_at_the_end(sites: Path) -> None:
    """Steps train a decoder; the last round's head is another, on features of norm 1."""
    privacy = {"mode": "sample", "target_epsilon": 18, "delta": 1e-3}
    train = {**STEPS["train"], "rounds": 2, "local_epochs": 1, "finish": "closed-form"}
    run = simulate("run", privacy=privacy, train=train)
    assert 0 <= float(run.metrics.loc["shared model", "dice"]) <= 1


def test_noise_on_whole_updates_and_on_counts_of_overlaps(sites: Path) -> None:
    """Privacy of a node: what is measured of it must still be told as masks are."""
    privacy = {"mode": "local", "noise_multiplier": 0.5, "max_update_norm": 1.0, "delta": 1e-3}
    train = {**STEPS["train"], "rounds": 1}
    run = simulate("run", privacy=privacy, train=train)
    assert 0 <= float(run.metrics.loc["shared model", "dice"]) <= 1
    assert json.loads((sites / "run/result.json").read_text())["privacy"]


# ── volumes ───────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("backbone", "volume"),
    [
        ("cifar-resnet8", {"size": [8, 24, 24], "slices": 8, "window": [0, 100]}),
        ("monai/resnet10-3d", {"size": [16, 24, 24], "spacing": [2, 2, 2], "window": [0, 100]}),
    ],
)
def test_a_ball_in_volumes(sites: Path, backbone: str, volume: dict[str, Any]) -> None:
    """NIfTI masks in another orientation than their volumes, back to the patient's axes."""
    pytest.importorskip("monai")
    nibabel = pytest.importorskip("nibabel")
    from tests.volumes import body, write_nifti

    spacing = (2.0, 2.0, 3.0)
    for number in range(33):
        site = sites / "scans" / ("north", "south")[number % 2]
        voxels = body((24, 24, 12), spacing, 8.0 + number % 4, seed=number)
        if number == 32:
            site = sites / "scans" / "new"
        write_nifti(site / f"images/{number}.nii.gz", voxels, spacing)
        write_nifti(site / f"masks/{number}.nii.gz", (voxels > 50).astype(np.uint8), spacing, "LPS")
    run = simulate(
        "volumes",
        task={
            "kind": "volume-segmentation",
            "classes": ["outside", "ball"],
            "mask": {"stride": 1},
        },
        backbone={"name": backbone, "volume": volume},
        **{"simulation.data": ["scans/north", "scans/south"]},
    )
    assert run.metrics.loc["shared model", "dice"] > 0.7
    arguments = ["predict", "volumes", "scans/new/images", "--out", "outlined"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found: Any = nibabel.load(sites / "outlined/32.nii.gz")
    truth: Any = nibabel.as_closest_canonical(nibabel.load(sites / "scans/new/masks/32.nii.gz"))
    assert np.allclose(found.affine, truth.affine)
    assert dice_of(np.asarray(found.dataobj), np.asarray(truth.dataobj)) > 0.6
