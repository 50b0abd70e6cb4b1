"""The ResNet for time series: its parts, every adapter on it, its weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.client.privacy.one_pass import knows_layers
from fedgraft.common.adapters import METHODS
from fedgraft.common.backbones.backbone import Backbone, backbone_from_state, backbone_state
from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.series import SignalPreparation
from fedgraft.common.model.depth_features import choose_stages
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import GraftedModel, graft, load_adapter, save_adapter
from fedgraft.common.plan.signal_section import SignalSection
from fedgraft.common.tasks.classification import cross_entropies

NAME = "series-resnet"
SECTION = SignalSection(channels=("I", "II", "V1"), rate=100, samples=40)
TRAINED = ("lora", "bottleneck", "bias", "scale-shift")


@cache
def backbone() -> Backbone:
    return load_backbone(NAME, signal=SECTION, seed=1)


def records(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 40, generator=torch.Generator().manual_seed(0))


def moved(method: str, **options: Any) -> GraftedModel:
    model = graft(backbone(), method=method, classes=3, seed=4, rank=2, width=4, **options)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.trainable_parameters().values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return model


def test_it_has_the_layers_of_the_paper() -> None:
    """Another network under a known name."""
    state = backbone_state(backbone())
    shapes = {name: tuple(t.shape) for name, t in state.items() if t.ndim == 3}
    assert shapes["block1.conv1.weight"] == (64, 3, 7)
    assert shapes["block2.conv2.weight"] == (128, 128, 5)
    assert shapes["block3.conv3.weight"] == (128, 128, 3)
    # a shortcut has weights where the channels change
    assert [name for name in shapes if "shortcut" in name] == [
        "block1.shortcut.0.weight",
        "block2.shortcut.0.weight",
    ]
    assert backbone().features == 128


def test_all_depths_are_there() -> None:
    """One round over the last layer alone."""
    stages = choose_stages(backbone(), "all", "mean", records(1))
    assert stages == ("stem", "block1", "block2", "last")


@pytest.mark.parametrize("method", METHODS.names)
def test_adapters_begin_as_nothing_merge_and_come_back(method: str, tmp_path: Path) -> None:
    """An adapter over time that disturbs at the start, or is another one in its file."""
    x = records()
    fresh = graft(backbone(), method=method, classes=3, seed=4, rank=2, width=4)
    bare = graft(backbone(), method="head", classes=3, seed=4)
    model = moved(method)
    save_adapter(model, tmp_path)
    again = graft(backbone(), method=method, classes=3, seed=9, rank=2, width=4)
    load_adapter(again, tmp_path)
    with torch.inference_mode():
        assert torch.equal(fresh(x), bare(x))
        assert torch.equal(again(x), model(x))
    with torch.no_grad():
        model.double()
        torch.testing.assert_close(
            model.merge()(x.double()), model(x.double()), atol=1e-8, rtol=1e-8
        )


@pytest.mark.parametrize("method", ["head", *TRAINED])
def test_gradients_of_single_signals_are_those_of_a_loop(method: str) -> None:
    """A gradient that is missing in a norm is clipped too little."""
    model = moved(method)
    check_gradients(model, "hooks", records(), cross_entropies)
    assert knows_layers(model)


@pytest.mark.parametrize("method", ["head", "lora", "bottleneck"])
def test_what_is_frozen_in_front_is_the_network_itself(method: str) -> None:
    """Activations that are kept would be another model's."""
    model = moved(method, targets="auto" if method == "head" else "last-block")
    prefix = frozen_prefix(model)
    assert prefix is not None
    with torch.no_grad():
        assert torch.equal(prefix.tail(prefix(records())), model(records()))


def test_what_travels_is_the_same_network(tmp_path: Path) -> None:
    """A node that builds another network or prepares signals otherwise."""
    made = backbone()
    sent = backbone_from_state(made.name, backbone_state(made), made.preprocess)
    assert sent.fingerprint == made.fingerprint
    save_backbone(made, tmp_path / "ecg.safetensors", {})
    again = load_backbone(NAME, weights=tmp_path / "ecg.safetensors")
    assert again.fingerprint == made.fingerprint
    assert again.preprocess == SignalPreparation(SECTION)
    random = load_backbone(NAME, weights=tmp_path / "ecg.safetensors", random=True, seed=8)
    assert random.fingerprint != made.fingerprint


REFUSED = {
    "channels": ({"channels": ("I",)}, "weights for 3 channels"),
    "rate": ({"rate": 250}, r"trained with rate: 100\.0.*write backbone\.signal\.rate: 100"),
    "scale": ({"standardise": False}, "trained with standardise: true"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_signals_of_another_kind_than_the_weights_are_refused(name: str, tmp_path: Path) -> None:
    """A network that sees everything two and a half times as slow as it learnt it."""
    change, words = REFUSED[name]
    file = tmp_path / "ecg.safetensors"
    save_backbone(backbone(), file, {})
    longer = load_backbone(NAME, weights=file, signal=SECTION.model_copy(update={"samples": 80}))
    assert longer.fingerprint == backbone().fingerprint
    with pytest.raises(UserError, match=f"(?s){words}"):
        load_backbone(NAME, weights=file, signal=SECTION.model_copy(update=change))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """A traceback, or a network that is half of one and half of another."""
    file = tmp_path / "images.safetensors"
    save_backbone(load_backbone("cifar-resnet8"), file, {})
    file.with_name(file.name + ".json").unlink()
    with pytest.raises(UserError, match="not the weights of series-resnet"):
        load_backbone(NAME, weights=file)
