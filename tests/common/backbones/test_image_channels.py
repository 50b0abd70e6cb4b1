"""Networks for colour that take images of other channels: the rule, every family, what travels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.common.backbones.backbone import Backbone, backbone_from_state, backbone_state
from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.backbones.image_channels import bring_weight
from fedgraft.common.errors import UserError
from fedgraft.common.model.grafted_model import graft
from fedgraft.common.tasks.classification import cross_entropies
from tests.huggingface_folders import write_image_folder

# small ones, and the side of their images; a RepVGG's stem has two branches
NETWORKS = {
    "cifar-resnet20": 32,
    "resnet18": 32,
    "densenet121": 32,
    "vit_b_32": 32,
    "swin_t": 32,
    "timm/tf_efficientnet_lite0": 32,
    "timm/repvgg_a0": 32,
    "timm/mixer_s32_224": 224,
}


def random_images(channels: int, side: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, side, side, generator=generator)


def must_travel(made: Backbone, side: int, channels: int) -> None:
    """What a node makes of the tensors is the same network, and it takes such images."""
    sent = backbone_from_state(made.name, backbone_state(made), made.preprocess)
    assert sent.fingerprint == made.fingerprint
    images = random_images(channels, side)
    assert torch.equal(sent.net(images), made.net(images))
    raw = torch.randint(0, 256, (2, channels, 40, 50), dtype=torch.uint8)
    assert sent.preprocess(raw).only.shape == (2, channels, side, side)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_the_rule_is_that_of_timm(channels: int) -> None:
    """Another rule than the one that is stated, and that people know."""
    manipulate = pytest.importorskip("timm.models._manipulate")
    weight = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    theirs = manipulate.adapt_input_conv(channels, weight)
    torch.testing.assert_close(bring_weight(weight, channels), theirs)


@pytest.mark.parametrize("name", ["cifar-resnet20", "resnet18", "timm/tf_efficientnet_lite0"])
def test_a_grey_network_gives_what_repeated_grey_gives(name: str, tmp_path: Path) -> None:
    """A network that sees grey images otherwise than the weights were trained to."""
    file = tmp_path / "colour.safetensors"
    colour = load_backbone(name, image_size=32, seed=1)
    save_backbone(colour, file, {})
    grey = load_backbone(name, weights=file, image_size=32, channels=1)
    images = random_images(1, 32, 4)
    expected = colour.net(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(grey.net(images), expected, atol=1e-5, rtol=1e-5)
    assert grey.fingerprint != colour.fingerprint


def test_a_network_for_grey_images_takes_colour(tmp_path: Path) -> None:
    """Weights for one channel that are lost to a hospital with three."""
    file = tmp_path / "grey.safetensors"
    grey = load_backbone("cifar-resnet8", channels=1, seed=1)
    save_backbone(grey, file, {})
    colour = load_backbone("cifar-resnet8", weights=file, channels=3)
    images = random_images(1, 32)
    repeated = colour.net(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(repeated, grey.net(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_takes_any_number(name: str, channels: int) -> None:
    """A branch of a stem that still wants three, or a node that builds another network."""
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    side = NETWORKS[name]
    must_travel(load_backbone(name, image_size=side, channels=channels, seed=2), side, channels)


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="an extra")
@pytest.mark.parametrize("architecture", ["vit", "dinov2", "clip"])
def test_folders_of_hugging_face_do(architecture: str, tmp_path: Path) -> None:
    """A configuration that says 3 channels, and a preparation under the fingerprint."""
    folder = write_image_folder(tmp_path / "model", architecture)
    made = load_backbone("huggingface-image", weights=folder, channels=4)
    side = made.preprocess.to_json()["crop"]
    must_travel(made, side, 4)


@pytest.mark.skipif(not importlib.util.find_spec("monai"), reason="an extra")
@pytest.mark.parametrize("name", ["monai/resnet10-2d", "monai/unet-2d", "monai/basic-unet-2d"])
def test_networks_of_monai_do(name: str, tmp_path: Path) -> None:
    """A U-Net, whose input enters two convolutions."""
    file = tmp_path / "colour.safetensors"
    colour = load_backbone(name, image_size=64, seed=1)
    save_backbone(colour, file, {})
    must_travel(load_backbone(name, weights=file, image_size=64, channels=4), 64, 4)
    grey = load_backbone(name, weights=file, image_size=64, channels=1)
    images = random_images(1, 64)
    expected = colour.net(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(grey.net(images), expected, atol=1e-5, rtol=1e-4)


def test_weights_for_several_sequences_are_not_mixed(tmp_path: Path) -> None:
    """Four sequences that are added up to two without a word; and weights that nobody asked to
    change.
    """
    file = tmp_path / "four.safetensors"
    save_backbone(load_backbone("cifar-resnet8", channels=4), file, {})
    again = load_backbone("cifar-resnet8", weights=file)
    assert again.net(random_images(4, 32)).shape == (2, 64)
    with pytest.raises(UserError, match=r"conv1.weight is \[16, 4, 3, 3\] and should be"):
        load_backbone("cifar-resnet8", weights=file, channels=2)


def test_a_network_that_takes_colours_apart_is_refused() -> None:
    """An Inception that turns the first three of four sequences into colours."""
    with pytest.raises(UserError, match="takes images in colour alone"):
        load_backbone("inception_v3", channels=4)


@pytest.mark.parametrize("method", ["head", "lora", "bottleneck"])
def test_gradients_of_examples_are_those_of_a_loop(method: str) -> None:
    """Noise that hides nobody, where the first convolution is trained."""
    backbone = load_backbone("cifar-resnet8", channels=4, seed=2)
    model = graft(backbone, method=method, classes=2, rank=2, width=4, seed=1)
    if method == "lora":
        model = graft(backbone, method=method, classes=2, rank=2, seed=1, targets=["conv1"])
        assert any(name.startswith("conv1.") for name in model.adapter_spec())
    check_gradients(model, "hooks", random_images(4, 32), cross_entropies)
