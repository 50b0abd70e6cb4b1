"""Wav2vec 2 out of folders: the library's own outputs, and every adapter on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.client.privacy.one_pass import knows_layers
from fedgraft.common.adapters import METHODS
from fedgraft.common.backbones.backbone import Backbone, backbone_from_state, backbone_state
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import UserError
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import (
    DepthChoice,
    GraftedModel,
    graft,
    load_adapter,
    save_adapter,
)
from fedgraft.common.plan.signal_section import SignalSection
from fedgraft.common.tasks.classification import cross_entropies
from tests.huggingface_folders import (
    AUDIO_KINDS,
    audio_model,
    change_config,
    write_audio_folder,
)

pytest.importorskip("transformers")
SECTION = SignalSection(channels=("audio",), rate=1000, samples=200)
AUDIO = torch.randn(3, 1, 200, generator=torch.Generator().manual_seed(0))


def load(folder: Path, **options: Any) -> Backbone:
    return load_backbone("huggingface-audio", weights=folder, **{"signal": SECTION, **options})


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    """Both kinds; never written."""
    base = tmp_path_factory.mktemp("models")
    return {kind: load(write_audio_folder(base / kind, kind)) for kind in AUDIO_KINDS}


def lively(backbone: Backbone, method: str, **options: Any) -> GraftedModel:
    """A model whose adapters have left their first values."""
    model = graft(backbone, method=method, classes=3, rank=2, width=3, seed=1, **options)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.trainable_parameters().values():
        moved = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(moved, alpha=0.05)
    return model


def mean_of_frames(kind: str, audio: Tensor) -> Tensor:
    return audio_model(kind)(audio[:, 0]).last_hidden_state.mean(1)


@pytest.mark.parametrize("kind", AUDIO_KINDS)
def test_outputs_are_the_librarys_own(kind: str, backbones: dict[str, Backbone]) -> None:
    """A normalisation too many, or in another place."""
    with torch.no_grad():
        ours = backbones[kind].net(AUDIO)
        assert ours.std() > 0.05
        torch.testing.assert_close(ours, mean_of_frames(kind, AUDIO), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["", "wav2vec2."])
def test_files_of_before_are_read(
    prefix: str, backbones: dict[str, Backbone], tmp_path: Path
) -> None:
    """weight_g and weight_v, as most published files have them."""
    folder = write_audio_folder(tmp_path / "model")
    file = folder / "model.safetensors"
    state = load_file(file)
    old: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        old[prefix + name.replace("parametrizations.weight.original1", "weight_v")] = tensor
    assert old.keys() != state.keys()
    old["wav2vec2.masked_spec_embed"] = torch.zeros(12)
    save_file(old, file)
    assert load(folder).fingerprint == backbones["base"].fingerprint


@pytest.mark.parametrize("kind", AUDIO_KINDS)
def test_it_travels_without_its_folder(kind: str, backbones: dict[str, Backbone]) -> None:
    """A node has nothing but tensors and the preparation's JSON."""
    backbone = backbones[kind]
    state = {name: tensor.clone() for name, tensor in backbone_state(backbone).items()}
    arrived = backbone_from_state("huggingface-audio", state, backbone.preprocess)
    assert arrived.fingerprint == backbone.fingerprint
    with torch.no_grad():
        assert torch.equal(arrived.net(AUDIO), backbone.net(AUDIO))


@pytest.mark.parametrize("method", METHODS.names)
@pytest.mark.parametrize("kind", AUDIO_KINDS)
def test_every_adapter_works(
    kind: str, method: str, backbones: dict[str, Backbone], tmp_path: Path
) -> None:
    """Nothing at first, something then; merged, and loaded again, with the same outputs."""
    backbone = backbones[kind]
    with torch.no_grad():
        fresh = graft(backbone, method=method, classes=3, rank=2, width=3, seed=1)
        head = fresh.net.get_submodule(fresh.head_name)
        torch.testing.assert_close(fresh(AUDIO), head(backbone.net(AUDIO)), atol=1e-6, rtol=1e-6)
        model = lively(backbone, method)
        save_adapter(model, tmp_path)
        load_adapter(fresh, tmp_path)
        assert torch.equal(fresh(AUDIO), model(AUDIO))
        exact = model.double()
        torch.testing.assert_close(
            exact.merge()(AUDIO.double()), exact(AUDIO.double()), atol=1e-9, rtol=1e-9
        )


@pytest.mark.parametrize("method", ["head", "lora", "bottleneck", "scale-shift", "bias"])
@pytest.mark.parametrize("kind", AUDIO_KINDS)
def test_gradients_of_single_records_are_those_of_a_loop(
    kind: str, method: str, backbones: dict[str, Backbone]
) -> None:
    """A gradient that is missing in a norm is clipped too little."""
    model = lively(backbones[kind], method)
    check_gradients(model, "hooks", AUDIO[:2], cross_entropies)
    assert knows_layers(model)


@pytest.mark.parametrize("method", ["head", "lora", "bottleneck"])
@pytest.mark.parametrize("kind", AUDIO_KINDS)
def test_what_is_frozen_in_front_is_the_network_itself(
    kind: str, method: str, backbones: dict[str, Backbone]
) -> None:
    """Activations that are kept would be another model's."""
    targets = "auto" if method == "head" else "last-block"
    model = lively(backbones[kind], method, targets=targets)
    prefix = frozen_prefix(model)
    assert prefix is not None
    with torch.no_grad():
        assert torch.equal(prefix.tail(prefix(AUDIO)), model(AUDIO))


@pytest.mark.parametrize("kind", AUDIO_KINDS)
def test_features_of_all_depths(kind: str, backbones: dict[str, Backbone]) -> None:
    """One round needs the mean of each block's output, and what enters the classifier."""
    choice = DepthChoice("all", "mean", AUDIO[:1])
    model = graft(backbones[kind], method="head", classes=3, depths=choice)
    assert model.depths is not None
    with torch.no_grad():
        features = model.depths(AUDIO)
        torch.testing.assert_close(features[:, -12:], backbones[kind].net(AUDIO))


def test_peft_loads_what_we_save(backbones: dict[str, Backbone], tmp_path: Path) -> None:
    """The folder of the model and the run's adapter, opened by the library's own tools."""
    peft = pytest.importorskip("peft")
    model = lively(backbones["base"], "lora", targets=["encoder.layers"])
    save_adapter(model, tmp_path)
    plain = audio_model("base")
    plain.classifier = nn.Linear(12, 3)
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path)).eval().get_base_model()
    with torch.no_grad():
        expected = theirs.classifier(theirs(AUDIO[:, 0]).last_hidden_state.mean(1))
        torch.testing.assert_close(model(AUDIO), expected, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_heard_says_what_to_write(tmp_path: Path) -> None:
    """Another rate than the network learnt, stereo, a record shorter than a frame, code."""
    folder = write_audio_folder(tmp_path / "model")
    assert load(folder, signal=None).preprocess.to_json()["samples"] == 5000
    changed = {"rate": 800.0}, {"standardise": False}, {"channels": ("left", "right")}
    wanted = r"trained with rate: 1000", "trained with standardise: true", "hears one"
    for change, words in zip(changed, wanted, strict=True):
        with pytest.raises(UserError, match=words):
            load(folder, signal=SECTION.model_copy(update=change))
    with pytest.raises(UserError, match="one frame of this network takes"):
        load(folder).net(torch.zeros(1, 1, 20))
    with pytest.raises(UserError, match="for audio write"):
        load_backbone("huggingface", weights=folder)
    for key, value in {"auto_map": {"a": "b"}, "add_adapter": True, "hidden_size": 10**9}.items():
        before = (folder / "config.json").read_text()
        with pytest.raises(UserError, match=key):
            load(change_config(folder, **{key: value}))
        (folder / "config.json").write_text(before)
    (folder / "preprocessor_config.json").write_text('{"sampling_rate": "fast"}')
    with pytest.raises(UserError, match="not known here"):
        load(folder)
