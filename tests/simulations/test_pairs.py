"""A federation on images with columns beside them, from three hospitals' lists to predictions.

The truth is known: two signs of the illness, one in the pixels and one in a column, each as far
from certain as the other.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fedgraft
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image_and_table import ImageWithRow

SITES = ("north", "south", "west")
PLAN: dict[str, Any] = {
    "name": "pairs",
    "task": {
        "kind": "image-and-table-classification",
        "classes": ["well", "ill"],
        "columns": ["age", "marker", "sex"],
        "categories": [{"column": "sex", "values": ["f", "m"]}],
    },
    "backbone": {"name": "with-table/cifar-resnet8", "image_size": 16},
    "adapter": {"method": "head"},
    "train": {"method": "closed-form"},
    "seed": 7,
    "simulation": {
        "data": [f"{name}/list.csv" for name in SITES],
        "partition": {"kind": "files"},
        "test_fraction": 0.5,
    },
}
RANGES = [
    {"columns": ["age"], "low": 20, "high": 95},
    {"columns": ["marker"], "low": 0, "high": 80},
]
STANDARDISED = {"rounds": 4, "start": "standardise", "optimizer": {"lr": 0.01}}


def write_site(folder: Path, seed: int, count: int = 300) -> None:
    """Write what a hospital has: images brighter in the middle where patients are ill, a column
    that is higher, and two that say nothing.
    """
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows: list[tuple[str, ...]] = []
    for number in range(count):
        ill = int(draw.integers(2))
        in_image, in_row = draw.normal(1.6 * ill - 0.8, 1.0, 2)
        pixels = draw.normal(110, 12, (20, 20))
        pixels[5:15, 5:15] += 22 * in_image
        name = f"{number}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
        age = "" if draw.random() < 0.1 else f"{55 + 12 * draw.normal():.0f}"
        sex = str(draw.choice(["f", "m"]))
        rows.append((name, ("well", "ill")[ill], age, f"{40 + 9 * in_row:.2f}", sex))
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "age", "marker", "sex"])
        writer.writerows(rows)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lists of three hospitals."""
    folder = tmp_path_factory.mktemp("pairs")
    for number, name in enumerate(SITES):
        write_site(folder / name, number)
    return folder


def run(sites: Path, out: Path, changes: dict[str, Any]) -> fedgraft.Run:
    """Return a finished run of the plan with some of its sections changed."""
    data = [str(sites / path) for path in PLAN["simulation"]["data"]]
    plan = PLAN | {"simulation": PLAN["simulation"] | {"data": data}} | changes
    done = fedgraft.simulate(plan, out=out, baselines=[], progress=False)
    assert isinstance(done, fedgraft.Run)
    return done


def auroc(done: fedgraft.Run) -> float:
    """Return the shared model's AUROC on all tests."""
    return float(done.metrics.loc["shared model", "auroc"])


def test_together_they_tell_more_than_either_alone(sites: Path, tmp_path: Path) -> None:
    """A pair whose table is drowned by its images, or the other way round, would tell no more than
    one of them: Bayes' rule has 0.87 here for both, 0.79 for one.
    """
    both = auroc(run(sites, tmp_path / "both", {}))
    image = {
        "task": {"kind": "image-classification", "classes": ["well", "ill"]},
        "backbone": {"name": "cifar-resnet8", "image_size": 16},
    }
    table = {
        "task": PLAN["task"] | {"kind": "tabular-classification", "target": "label"},
        "backbone": {"name": "columns"},
    }
    alone = [
        auroc(run(sites, tmp_path / "image", image)),
        auroc(run(sites, tmp_path / "table", table)),
    ]
    assert both > max(alone) + 0.04
    assert min(alone) > 0.7


@pytest.mark.parametrize(
    "changes",
    [
        {"train": STANDARDISED},
        {"train": STANDARDISED | {"finish": "closed-form"}, "adapter": {"method": "lora"}},
        {
            "train": {"rounds": 2},
            "adapter": {"method": "lora", "rank": 2},
            "task": PLAN["task"] | {"ranges": RANGES},
            "privacy": {"mode": "sample", "target_epsilon": 20},
        },
        {
            "task": PLAN["task"] | {"ranges": RANGES},
            "privacy": {"mode": "sample", "target_epsilon": 20},
        },
    ],
    ids=["head", "lora", "private-lora", "private-one-round"],
)
def test_every_way_of_training_ends(sites: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Constants that are told late, or activations of two tensors, would end a run half-way."""
    done = run(sites, tmp_path / "run", changes)
    assert done.result.status == "completed"
    if "privacy" not in changes:
        assert auroc(done) > 0.7


def test_a_list_without_labels_is_predicted(sites: Path, tmp_path: Path) -> None:
    """A row that is put beside another image would be seen nowhere but in its answer."""
    done = run(sites, tmp_path / "run", {})
    rows = [("0.png", "", "52", "f"), ("1.png", "61", "31.5", "m")]
    listed = sites / "north" / "new.csv"
    with listed.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "age", "marker", "sex"])
        writer.writerows(rows)
    model = fedgraft.load_shared_model(tmp_path / "run")
    table = model.predict(listed)
    assert table.index.tolist() == ["0.png", "1.png"]

    image = torch.from_numpy(np.array(Image.open(sites / "north" / "1.png")))[None]
    # numbers, then one input a category
    raw = [ImageWithRow(image, torch.tensor([61.0, 31.5, 0.0, 1.0]))]
    again = model.predict(raw)
    assert again["p_ill"].iloc[0] == pytest.approx(table["p_ill"].iloc[1], abs=1e-6)
    with pytest.raises(UserError, match="no images with rows"):
        model.predict(np.zeros((1, 1, 20, 20), np.uint8))
    assert done.result.status == "completed"


def test_a_plan_whose_columns_nothing_scales_is_refused(sites: Path, tmp_path: Path) -> None:
    """An income beside features of order 1 would be all that steps see."""
    with pytest.raises(UserError, match="nothing scales the columns"):
        run(sites, tmp_path / "run", {"train": {"rounds": 2}})
    with pytest.raises(UserError, match="float32"):
        run(
            sites,
            tmp_path / "rounded",
            {"train": STANDARDISED | {"activations": "float16"}},
        )
    with pytest.raises(UserError, match="with-table/NAME"):
        run(sites, tmp_path / "other", {"backbone": {"name": "cifar-resnet8"}})
