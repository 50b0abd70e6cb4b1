"""Vision transformers out of folders: the library's own outputs, and every adapter on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
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
from fedgraft.common.tasks.classification import cross_entropies
from tests.huggingface_folders import (
    IMAGE_ARCHITECTURES,
    change_config,
    library_model,
    write_folder,
    write_image_folder,
)

pytest.importorskip("transformers")
IMAGES = torch.randint(0, 256, (3, 3, 30, 24), generator=torch.Generator().manual_seed(0))
IMAGES = IMAGES.to(torch.uint8)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    """Every architecture; never written."""
    base = tmp_path_factory.mktemp("models")
    opened: dict[str, Backbone] = {}
    for name in IMAGE_ARCHITECTURES:
        opened[name] = load(write_image_folder(base / name, name))
    return opened


def load(folder: Path, **options: Any) -> Backbone:
    return load_backbone("huggingface-image", weights=folder, **options)


def lively(backbone: Backbone, method: str, **options: Any) -> GraftedModel:
    """A model whose adapters have left their first values."""
    model = graft(backbone, method=method, classes=3, rank=2, width=3, seed=1, **options)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.trainable_parameters().values():
        moved = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(moved, alpha=0.05)
    return model


def first_token(architecture: str, images: Tensor, **options: Any) -> Tensor:
    output = library_model(architecture, images=True)(pixel_values=images, **options)
    # CLIP's last norm is behind what it calls its last states
    if architecture == "clip":
        return output.pooler_output
    return output.last_hidden_state[:, 0]


def interpolated(architecture: str) -> dict[str, bool]:
    """Return what tells the library that images have another size than it was trained with."""
    if architecture == "dinov2":
        return {}
    return {"interpolate_pos_encoding": True}


@pytest.mark.parametrize("size", [None, 24])
@pytest.mark.parametrize("architecture", IMAGE_ARCHITECTURES)
def test_outputs_are_the_librarys_own(architecture: str, size: int | None, tmp_path: Path) -> None:
    """Another size, too: positions are interpolated as the library does."""
    backbone = load(write_image_folder(tmp_path / "model", architecture), image_size=size)
    images = backbone.preprocess(IMAGES).only
    assert images.shape == (3, 3, size or 16, size or 16)
    options = interpolated(architecture)
    with torch.no_grad():
        ours = backbone.net(images)
        theirs = first_token(architecture, images, **options)
    assert ours.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_the_folders_preparation_is_taken(backbones: dict[str, Backbone], tmp_path: Path) -> None:
    """Other means than the network was trained with cost points that nobody sees."""
    preparation = backbones["vit"].preprocess.to_json()
    assert (preparation["size"], preparation["crop"]) == (20, 16)
    assert preparation["mean"] == [0.5, 0.4, 0.3]
    assert preparation["interpolation"] == "bicubic"
    folder = write_image_folder(tmp_path / "model")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 16, "resample": 0}))
    with pytest.raises(UserError, match="not known here"):
        load(folder)


@pytest.mark.parametrize("architecture", IMAGE_ARCHITECTURES)
def test_it_travels_without_its_folder(architecture: str, backbones: dict[str, Backbone]) -> None:
    """A node has nothing but tensors and the preparation's JSON."""
    backbone = backbones[architecture]
    state = {name: tensor.clone() for name, tensor in backbone_state(backbone).items()}
    arrived = backbone_from_state("huggingface-image", state, backbone.preprocess)
    assert arrived.fingerprint == backbone.fingerprint
    images = backbone.preprocess(IMAGES).only
    with torch.no_grad():
        assert torch.equal(arrived.net(images), backbone.net(images))


@pytest.mark.parametrize("method", METHODS.names)
@pytest.mark.parametrize("architecture", IMAGE_ARCHITECTURES)
def test_every_adapter_works(
    architecture: str, method: str, backbones: dict[str, Backbone], tmp_path: Path
) -> None:
    """Nothing at first, something then; merged, and loaded again, with the same outputs."""
    backbone = backbones[architecture]
    images = backbone.preprocess(IMAGES).only
    with torch.no_grad():
        fresh = graft(backbone, method=method, classes=3, rank=2, width=3, seed=1)
        head = fresh.net.get_submodule(fresh.head_name)
        torch.testing.assert_close(fresh(images), head(backbone.net(images)), atol=1e-6, rtol=1e-6)
        model = lively(backbone, method)
        save_adapter(model, tmp_path)
        load_adapter(fresh, tmp_path)
        assert torch.equal(fresh(images), model(images))
        exact = model.double()
        torch.testing.assert_close(
            exact.merge()(images.double()), exact(images.double()), atol=1e-9, rtol=1e-9
        )


@pytest.mark.parametrize("method", ["head", "lora", "bottleneck", "scale-shift", "bias"])
@pytest.mark.parametrize("architecture", IMAGE_ARCHITECTURES)
def test_gradients_of_single_images_are_those_of_a_loop(
    architecture: str, method: str, backbones: dict[str, Backbone]
) -> None:
    """A gradient that is missing in a norm is clipped too little."""
    model = lively(backbones[architecture], method)
    check_gradients(model, "hooks", torch.randn(2, 3, 16, 16), cross_entropies)
    assert knows_layers(model)


@pytest.mark.parametrize("method", ["head", "lora", "bottleneck"])
@pytest.mark.parametrize("architecture", IMAGE_ARCHITECTURES)
def test_what_is_frozen_in_front_is_the_network_itself(
    architecture: str, method: str, backbones: dict[str, Backbone]
) -> None:
    """Activations that are kept would be another model's."""
    backbone = backbones[architecture]
    targets = "auto" if method == "head" else "last-block"
    model = lively(backbone, method, targets=targets)
    prefix = frozen_prefix(model)
    assert prefix is not None
    images = backbone.preprocess(IMAGES).only
    with torch.no_grad():
        assert torch.equal(prefix.tail(prefix(images)), model(images))


@pytest.mark.parametrize("architecture", IMAGE_ARCHITECTURES)
def test_features_of_all_depths(architecture: str, backbones: dict[str, Backbone]) -> None:
    """One round needs the mean of each block's output, and what enters the classifier."""
    backbone = backbones[architecture]
    images = backbone.preprocess(IMAGES).only
    choice = DepthChoice("all", "mean", images[:1])
    model = graft(backbone, method="head", classes=3, depths=choice)
    assert model.depths is not None
    assert len(model.depths.stages) == 4
    with torch.no_grad():
        features = model.depths(images)
        torch.testing.assert_close(features[:, -12:], backbone.net(images))


@pytest.mark.parametrize("architecture", IMAGE_ARCHITECTURES)
def test_peft_loads_what_we_save(
    architecture: str, backbones: dict[str, Backbone], tmp_path: Path
) -> None:
    """The folder of the model and the run's adapter, opened by the library's own tools."""
    peft = pytest.importorskip("peft")
    backbone = backbones[architecture]
    model = lively(backbone, "lora")
    save_adapter(model, tmp_path)
    plain = library_model(architecture, images=True)
    plain.classifier = nn.Linear(12, 3)
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path)).eval().get_base_model()
    images = backbone.preprocess(IMAGES).only
    options = interpolated(architecture)
    with torch.no_grad():
        output = theirs(pixel_values=images, **options)
        first = output.last_hidden_state[:, 0]
        if architecture == "clip":
            first = output.pooler_output
        expected = theirs.classifier(first)
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_read_says_what_to_write(tmp_path: Path) -> None:
    """A model for texts in a plan of images, gated layers, patches that do not fill an image."""
    folder = write_image_folder(tmp_path / "vit")
    with pytest.raises(UserError, match=r"16 pixels|patches of 4"):
        load(folder, image_size=18)
    texts = write_folder(tmp_path / "bert")
    (texts / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"known are vit, dinov2, clip; for texts write"):
        load(texts)
    with pytest.raises(UserError, match=r"for images write backbone\.name: huggingface-image"):
        load_backbone("huggingface", weights=folder)
    dino = write_image_folder(tmp_path / "dinov2", "dinov2")
    with pytest.raises(UserError, match="use_swiglu_ffn"):
        load(change_config(dino, use_swiglu_ffn=True))
    with pytest.raises(UserError, match="auto_map"):
        load(change_config(folder, auto_map={"AutoModel": "evil.Model"}))
