"""A federation on a converted network, from an ONNX file to predictions: in one round, with
adapters, private.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import fedgraft
from fedgraft.cli import app
from tests.onnx_files import SMALL, build, export

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
PLAN: dict[str, Any] = {
    "name": "digits-onnx",
    "task": {
        "kind": "image-classification",
        "classes": ["five", "six", "seven"],
        "labels": [5, 6, 7],
    },
    "backbone": {"name": "onnx", "weights": "model.safetensors"},
    "adapter": {"method": "head"},
    "train": {"method": "closed-form"},
    "simulation": {
        "data": "sklearn:digits",
        "nodes": 2,
        "reading": {"labels_left_out": "allow"},
    },
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(name: str) -> str:
    """Convert one of the small networks by the command, and return what it printed."""
    export(build(SMALL[name]), Path("model.onnx"))
    done = CliRunner().invoke(app, ["convert", "model.onnx", "--pixels", "0-1"])
    assert done.exit_code == 0, done.output
    return done.output


def simulate(out: str, **changes: Any) -> fedgraft.Run:
    run = fedgraft.simulate(PLAN, set=changes, out=out, progress=False)
    assert isinstance(run, fedgraft.Run)
    return run


@pytest.mark.parametrize("name", SMALL)
def test_one_round_over_all_depths(name: str, here: Path) -> None:
    """The shortest way from an ONNX file to a model of several hospitals."""
    printed = convert(name)
    assert "backbone: {name: onnx, weights: model.safetensors}" in printed
    run = simulate("one")
    assert run.metrics.loc["shared model", "accuracy"] > 0.8
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20), np.uint8)
    Image.fromarray(pixels).save("picture.png")
    assert set(run.shared_model.predict("picture.png")["class"]) <= {"five", "six", "seven"}


@pytest.mark.parametrize("method", ["lora", "bottleneck", "bias", "scale-shift"])
def test_adapters_train_by_steps(method: str, here: Path) -> None:
    """Through every engine, merged and written, and opened again."""
    convert("residual")
    changes = {
        "adapter": {"method": method},
        "train": {"rounds": 1, "batch_size": 16, "optimizer": {"lr": 0.01}},
    }
    run = simulate(method, **changes)
    assert run.metrics.loc["shared model", "accuracy"] > 0.3
    pixels = np.zeros((20, 20, 3), np.uint8)
    Image.fromarray(pixels).save("picture.png")
    assert len(run.shared_model.predict("picture.png")) == 1


@pytest.mark.parametrize("train", [{"method": "closed-form"}, {"rounds": 1, "batch_size": 16}])
def test_privacy_by_example_can_be_had(train: dict[str, Any], here: Path) -> None:
    """Sums with noise and steps with noise, on a network whose records lie second inside."""
    convert("transformer")
    changes = {
        "adapter": {"method": "head" if "method" in train else "lora"},
        "train": train,
        "privacy": {"mode": "sample", "target_epsilon": 8, "delta": 1e-3},
    }
    run = simulate("private", **changes)
    assert '"epsilon"' in run.result.model_dump_json()
