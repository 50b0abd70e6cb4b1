"""From arrays of four channels, and CT slices through three windows, to predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedgraft
from fedgraft.common.errors import UserError
from tests.formats import content, dicom

CLASSES = ("ill", "well")
PLAN: dict[str, Any] = {
    "name": "sequences",
    "task": {"kind": "image-classification", "classes": list(CLASSES), "labels": list(CLASSES)},
    "backbone": {"name": "cifar-resnet8", "image_size": 16},
    "adapter": {"method": "head"},
    "train": {"method": "closed-form"},
    "simulation": {
        "data": ["north", "south"],
        "partition": {"kind": "files"},
        "test_fraction": 0.25,
    },
}


def draw_sequences(rng: np.random.Generator, *, is_ill: bool) -> np.ndarray:
    """Four channels (4, 16, 16) of noise on 0–1; of the ill the last has a bright square."""
    image = rng.uniform(0, 0.4, (4, 16, 16))
    top, left = rng.integers(0, 9, 2)
    if is_ill:
        image[3, top : top + 7, left : left + 7] += 0.5
    return image.astype(np.float32)


def draw_slice(rng: np.random.Generator, patient: str, *, is_ill: bool) -> bytes:
    """A CT slice whose own window shows nothing; the ill have blood of 60 HU in tissue of 30."""
    units = rng.normal(30, 5, (16, 16))
    top, left = rng.integers(0, 9, 2)
    if is_ill:
        units[top : top + 7, left : left + 7] += 30
    stored = np.round(units + 1024).astype(np.uint16)
    tags = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}
    return content(
        dicom(stored, bits=12, WindowCenter="1500", WindowWidth="100", patient=patient, **tags)
    )


@pytest.fixture(autouse=True, scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hospitals with arrays and with slices, and new ones of each."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(96):
        label = CLASSES[number % 2]
        is_ill = label == "ill"
        site = ("north", "south")[number // 2 % 2]
        name = f"{site}/{label}/{number}"
        if number >= 88:
            name = f"new/{label}-{number}"
        arrays = folder / "arrays" / f"{name}.npy"
        slices = folder / "slices" / f"{name}.dcm"
        for file in (arrays, slices):
            file.parent.mkdir(parents=True, exist_ok=True)
        np.save(arrays, draw_sequences(rng, is_ill=is_ill))
        slices.write_bytes(draw_slice(rng, f"P-{number}", is_ill=is_ill))
    return folder


def simulate(folder: Path, monkeypatch: pytest.MonkeyPatch, out: str, **changes: Any) -> Any:
    monkeypatch.chdir(folder)
    return fedgraft.simulate(PLAN, set=changes, out=out, progress=False)


def must_know_the_new_ones(run: Any) -> None:
    answers = run.shared_model.predict("new")["class"].to_dict()
    right = [file.partition("-")[0] == answer for file, answer in answers.items()]
    assert sum(right) >= len(right) - 1 == 7, answers


@pytest.mark.parametrize("method", ["closed-form", "steps"])
def test_four_sequences(sites: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """A fourth channel that nobody sees."""
    changes: dict[str, Any] = {}
    if method == "steps":
        optimizer = {"name": "adamw", "lr": 0.02}
        changes["train"] = {"rounds": 8, "batch_size": 8, "optimizer": optimizer}
        changes["adapter"] = {"method": "lora", "rank": 4}
    run = simulate(
        sites / "arrays", monkeypatch, f"four-{method}", **{"backbone.channels": 4}, **changes
    )
    must_know_the_new_ones(run)


def test_sums_with_noise(sites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public reference that is made for grey images alone."""
    privacy = {"mode": "sample", "target_epsilon": 8, "delta": 1e-3}
    changes = {"backbone.channels": 4, "privacy": privacy}
    run = simulate(sites / "arrays", monkeypatch, "private", **changes)
    assert '"epsilon"' in run.result.model_dump_json()
    assert len(run.shared_model.predict("new")) == 8


def test_windows_of_the_plan(sites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices seen through a window in which there is nothing to be seen; in predictions, too."""
    windows = [[0, 80], [-20, 180], [-800, 2000]]
    run = simulate(sites / "slices", monkeypatch, "windows", **{"backbone.windows": windows})
    must_know_the_new_ones(run)


def test_images_of_other_channels_are_refused(sites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback, or a network that sees three of four sequences."""
    with pytest.raises(UserError, match="images of other than 1 or 3 channels"):
        simulate(sites / "arrays", monkeypatch, "wrong")
    changes = {"backbone": {"name": "onnx", "weights": "a.safetensors", "channels": 4}}
    with pytest.raises(UserError, match="a converted model takes images in colour"):
        simulate(sites / "arrays", monkeypatch, "wrong", **changes)
