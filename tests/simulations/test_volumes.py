"""A federation on volumes, from three scanners to predictions: in one round, with LoRA, private.

The truth is known: two classes whose bodies differ in size.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from typer.testing import CliRunner

import fedgraft
from fedgraft.cli import app
from fedgraft.client.readers.volume_file import read_volumes
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.volume import Volume

pytest.importorskip("monai")
pytest.importorskip("nibabel")
from tests.volumes import body, write_nifti, write_series

# mm, and by how much one differs from another: some cannot be told apart
RADII = {"small": 7.0, "large": 11.0}
DEVIATION = 1.3
# spacing in mm to the right, front and head, and the axes of the file
SCANNERS: dict[str, Any] = {
    "north": ((2.0, 2.0, 2.0), "RAS"),
    "south": ((1.5, 1.5, 3.0), "LPS"),
    "west": ((2.5, 2.0, 2.0), "SLP"),
}
PLAN: dict[str, Any] = {
    "name": "blobs",
    "task": {
        "kind": "volume-classification",
        "classes": ["small", "large"],
        "labels": ["small", "large"],
    },
    "backbone": {
        "name": "monai/resnet10-3d",
        "volume": {"size": [16, 16, 16], "spacing": [2, 2, 2], "window": [0, 100]},
    },
    "adapter": {"method": "head"},
    "train": {"method": "closed-form"},
    "simulation": {
        "data": [f"{name}/list.csv" for name in SCANNERS],
        "partition": {"kind": "files"},
        "test_fraction": 0.3,
    },
}


def write_site(folder: Path, seed: int, count: int = 24) -> None:
    """Write what a hospital has; of the last of them a part as DICOM series."""
    spacing, axes = SCANNERS[folder.name]
    sides = [round(36 / step) for step in spacing]
    rows: list[tuple[str, str, str]] = []
    draw = random.Random(seed)
    for number in range(count):
        kind = ("small", "large")[number % 2]
        radius = RADII[kind] + draw.gauss(0, DEVIATION)
        voxels = body(sides, spacing, radius, seed=100 * seed + number)
        name = f"{number}.nii.gz"
        if folder.name == "west" and number < 4:
            name = f"series-{number}"
            write_series(folder / name, voxels, spacing, f"p{number}")
        else:
            write_nifti(folder / name, voxels, spacing, axes)
        rows.append((name, kind, f"{folder.name}-{number}"))
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient"])
        writer.writerows(rows)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volumes of three hospitals, and new ones."""
    folder = tmp_path_factory.mktemp("volumes")
    for number, name in enumerate(SCANNERS):
        write_site(folder / name, number)
    for kind, radius in RADII.items():
        voxels = body((30, 30, 30), (1.2, 1.2, 1.2), radius, seed=999)
        write_nifti(folder / "new" / f"{kind}.nii.gz", voxels, (1.2, 1.2, 1.2), "PIR")
    return folder


@pytest.fixture(autouse=True)
def here(sites: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(sites)
    return sites


def simulate(out: str, **changes: Any) -> fedgraft.Run:
    run = fedgraft.simulate(PLAN, set=changes, out=out, progress=False)
    assert isinstance(run, fedgraft.Run)
    return run


def must_know_the_new_ones(run: fedgraft.Run) -> None:
    predicted = run.shared_model.predict("new")
    assert predicted["class"].to_dict() == {f"{kind}.nii.gz": kind for kind in RADII}


def test_one_round_over_all_depths(here: Path) -> None:
    """The shortest way from scans of three hospitals to a model of all of them, and back from its
    folder to a scan of a fourth.
    """
    run = simulate("one")
    assert run.metrics.loc["shared model", "accuracy"] > 0.9
    must_know_the_new_ones(run)
    of_file = run.shared_model.predict("new/large.nii.gz")
    of_folder = run.shared_model.predict("new")
    assert float(of_file["p_large"].iloc[0]) == float(of_folder.loc["large.nii.gz", "p_large"])
    assert list(run.shared_model.predict("west/series-1")["class"]) == ["large"]
    volumes = torch.zeros(2, 1, 16, 16, 16)
    assert len(run.shared_model.predict(volumes)) == 2
    with pytest.raises(UserError, match=r"this model takes a \.nii"):
        run.shared_model.predict("north/list.csv")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "scale-shift"])
def test_adapters_train_by_steps(method: str) -> None:
    """Volumes through the steps of training, and kept activations of five axes."""
    train = {"rounds": 4, "batch_size": 8, "optimizer": {"lr": 0.01}, "finish": "closed-form"}
    run = simulate(method, adapter={"method": method, "targets": "last-block"}, train=train)
    assert run.metrics.loc["shared model", "accuracy"] > 0.9
    must_know_the_new_ones(run)


@pytest.mark.slow
def test_heads_on_other_features_do_not_share_activations() -> None:
    """Features that were kept for one plan, read by another's head: both end at the same place."""
    few = simulate("few", **{"train.closed_form.features": "last"})
    many = simulate("many")
    assert many.metrics.loc["shared model", "examples"] > 0
    assert few.metrics.loc["shared model", "examples"] > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"method": "closed-form"}},
        {"train": {"rounds": 1, "batch_size": 8}, "adapter": {"method": "lora", "rank": 2}},
    ],
)
def test_privacy_by_example_can_be_had(changes: dict[str, Any]) -> None:
    """Sums with noise, and steps with noise, on volumes; every record of its own patient."""
    privacy = {"mode": "sample", "target_epsilon": 8, "delta": 1e-3}
    run = simulate(f"private-{len(changes)}", privacy=privacy, **changes)
    assert '"epsilon"' in run.result.model_dump_json()
    assert set(run.shared_model.predict("new")["class"]) <= set(RADII)


def test_two_sequences_of_which_one_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second sequence that never reaches the network, in training or in predictions."""
    rng = random.Random(3)
    for number in range(48):
        kind = ("small", "large")[number % 2]
        place = tmp_path / ("north", "south")[number // 2 % 2] / kind / f"p{number}"
        if number >= 44:
            place = tmp_path / "new" / f"{kind}-{number}"
        spacing = (2.0, 2.0, 2.0)
        write_nifti(place / "t1.nii.gz", body((18,) * 3, spacing, 9.0, seed=number), spacing)
        radius = RADII[kind] + rng.gauss(0, 0.5)
        voxels = body((18,) * 3, spacing, radius, seed=100 + number)
        write_nifti(place / f"x_{number}_flair.nii.gz", voxels, spacing, "LPS")
    monkeypatch.chdir(tmp_path)
    volume = {"size": [16, 16, 16], "spacing": [2, 2, 2], "sequences": ["t1", "flair"]}
    data = {"simulation.data": ["north", "south"], "backbone.volume": volume}
    run = simulate("sequences", **data)
    answers = run.shared_model.predict("new")["class"].to_dict()
    assert len(answers) == 4
    assert all(name.startswith(answer) for name, answer in answers.items()), answers


def test_a_lesion_outside_of_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies beyond the plan's size, which no prediction ever looks at."""
    rng = random.Random(5)
    spacing = (2.0, 2.0, 2.0)

    def write(path: Path, slices: int, radius: float, seed: int, above: int = 0) -> None:
        voxels = body((16, 16, 16), spacing, radius, seed)
        tall = np.random.default_rng(seed).normal(0, 10, (16, 16, slices)).astype(np.float32)
        begin = (slices - 16) // 2 + above
        tall[:, :, begin : begin + 16] = voxels
        write_nifti(path, tall, spacing)

    for number in range(48):
        kind = ("healthy", "lesion")[number % 2]
        radius = 0.0 if kind == "healthy" else rng.uniform(6, 11)
        site = ("north", "south")[number // 2 % 2]
        write(tmp_path / site / kind / f"{number}.nii.gz", 16, radius, number)
    write(tmp_path / "new" / "lesion.nii.gz", 32, 9.0, seed=100, above=8)
    write(tmp_path / "new" / "healthy.nii.gz", 32, 0.0, seed=101)
    monkeypatch.chdir(tmp_path)
    classes = ["healthy", "lesion"]
    task = {"kind": "volume-classification", "classes": classes, "labels": classes}
    run = simulate("tall", task=task, **{"simulation.data": ["north", "south"]})

    middle = run.shared_model.predict("new")["p_lesion"].to_dict()
    whole = run.shared_model.predict("new", sliding=True)["p_lesion"].to_dict()
    assert whole["lesion.nii.gz"] > whole["healthy.nii.gz"] + 0.2
    assert abs(middle["lesion.nii.gz"] - middle["healthy.nii.gz"]) < 0.15

    # the same by hand: three crops of 16 along the body
    volume: Any = read_volumes([Path("new/lesion.nii.gz")])
    values = volume[0].values
    crops = [Volume(values[:, at : at + 16], spacing) for at in (0, 8, 16)]
    by_hand = run.shared_model.predict(crops)["p_lesion"].to_numpy()
    assert whole["lesion.nii.gz"] == pytest.approx(float(by_hand.mean()), abs=1e-5)

    ended = CliRunner().invoke(
        app, ["predict", "tall", "new", "--sliding", "--out", "tall.csv"], catch_exceptions=False
    )
    assert ended.exit_code == 0, ended.output
    written = pandas.read_csv("tall.csv", index_col="input")["p_lesion"].to_dict()
    assert written["lesion.nii.gz"] == pytest.approx(whole["lesion.nii.gz"], abs=1e-5)
    with pytest.raises(UserError, match="crops are of volumes"):
        run.shared_model.predict(torch.zeros(1, 1, 16, 16, 16), sliding=True)


SLICED: dict[str, Any] = {
    "backbone": {
        "name": "cifar-resnet8",
        "volume": {"size": [16, 16, 16], "spacing": [2, 2, 2], "window": [0, 100], "slices": 4},
    }
}


def test_slices_in_a_network_over_images() -> None:
    """A network for images, of no use to whoever has scans; in one round, and in predictions."""
    run = simulate("slices", **SLICED)
    must_know_the_new_ones(run)
    again = fedgraft.load_shared_model("slices").predict("new")
    assert again.equals(run.shared_model.predict("new"))


@pytest.mark.parametrize("method", ["head", "lora"])
def test_slices_under_privacy_by_example(method: str) -> None:
    """Noise that hides a slice, and not a scan."""
    privacy = {"mode": "sample", "target_epsilon": 8, "delta": 1e-3}
    train = {"rounds": 1, "batch_size": 8}
    adapter = {"method": method}
    run = simulate(f"slices-{method}", privacy=privacy, train=train, adapter=adapter, **SLICED)
    assert '"epsilon"' in run.result.model_dump_json()
    assert set(run.shared_model.predict("new")["class"]) <= set(RADII)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone.volume.slices": 4}, "takes no slices of volumes"),
        ({"backbone.volume.slices": 17, "backbone.name": "resnet18"}, "has 16 from feet to head"),
        ({"backbone.image_size": 64}, "a size in voxels"),
        ({"train.augment": "flip"}, "flip is for images"),
        ({"backbone.name": "resnet18"}, "cannot take the data"),
        ({"backbone.name": "monai/resnet11-3d"}, "no backbone is called"),
        ({"backbone.volume.size": [400, 400, 400]}, "values a record"),
        ({"task.columns": ["age"]}, "volumes have no columns"),
    ],
)
def test_a_plan_that_cannot_be_says_what_to_write(change: dict[str, Any], words: str) -> None:
    """A traceback from within MONAI, an hour later."""
    with pytest.raises(UserError, match=words):
        simulate("wrong", **change)
