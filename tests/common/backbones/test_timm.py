"""timm's networks: the same outputs as plain timm, one part after the other, and convolutions that
pad as TensorFlow's do.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from fedgraft.common.backbones import timm_models
from fedgraft.common.backbones.backbone import Backbone, backbone_state
from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.backbones.family import kind_of
from fedgraft.common.backbones.timm_order import ORDER
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import read_tensors
from fedgraft.common.model.frozen_prefix import _list_stages
from fedgraft.common.model.grafted_model import graft

# a small one of each class whose order is written down, and the side of its images, pixels
SMALL = {
    "tf_efficientnet_lite0": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_050": 64,
    "ghostnet_050": 64,
    "resnet10t": 64,
    "regnetx_002": 64,
    "repvgg_a0": 64,
    "densenet121": 64,
    "convnext_atto": 64,
    "swin_tiny_patch4_window7_224": 224,
    "mixer_s32_224": 224,
    "vit_tiny_patch16_224": 224,
}
METHODS = ("head", "lora", "bottleneck", "bias", "scale-shift")


@cache
def backbone(name: str) -> Backbone:
    return load_backbone(f"timm/{name}", image_size=SMALL[name], seed=1)


def images(name: str, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, SMALL[name], SMALL[name], generator=generator)


@torch.inference_mode()
def plain_features(name: str, state: Any, x: torch.Tensor) -> torch.Tensor:
    """What plain timm gives before its classifier."""
    net: Any = timm.create_model(name, num_classes=2).eval()
    net.load_state_dict(state, strict=False)
    return net.forward_head(net.forward_features(x), pre_logits=True)


@pytest.mark.parametrize("name", SMALL)
def test_it_computes_what_timm_computes(name: str) -> None:
    """A convolution that pads otherwise, a classifier that is not the last, a lost tensor."""
    made = backbone(name)
    x = images(name)
    with torch.inference_mode():
        assert torch.equal(made.net(x), plain_features(name, backbone_state(made), x))


@pytest.mark.parametrize("name", SMALL)
def test_its_parts_in_their_order_are_the_network(name: str) -> None:
    """Activations that are kept of another network."""
    model = graft(backbone(name), method="head", classes=3)
    x = images(name)
    stages = list(_list_stages(model.net))
    assert len(stages) > 3
    with torch.inference_mode():
        whole = model(x)
        for stage in stages:
            x = stage.run(x)
    assert torch.equal(whole, x)


def test_every_order_is_tried_here() -> None:
    """An order that nobody held against its network."""
    assert {kind_of(backbone(name).net) for name in SMALL} == set(ORDER)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "regnetx_002"])
def test_adapters_begin_as_nothing_and_merge(name: str, method: str) -> None:
    """An adapter that sees another input than its convolution, or that cannot be folded in."""
    made = backbone(name)
    x = images(name)
    model = graft(made, method=method, classes=3, seed=4, rank=2, width=4)
    plain = graft(made, method="head", classes=3, seed=4)
    with torch.inference_mode():
        assert torch.equal(model(x), plain(x))
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    with torch.inference_mode():
        moved = model(x)
        assert not torch.allclose(moved, plain(x), atol=1e-3)
        torch.testing.assert_close(model.merge()(x), moved, atol=1e-4, rtol=1e-3)


def test_lora_serves_convolutions_that_padded_by_themselves() -> None:
    """In timm they are of a class of their own, and every adapter passed them over."""
    model = graft(backbone("tf_efficientnet_lite0"), method="lora", classes=2, targets="conv_stem")
    assert any(name.startswith("conv_stem.adapter") for name in model.trainable_parameters())


@pytest.mark.parametrize("side", [7, 8, 64, 65])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_padding_is_timms(side: int, stride: int) -> None:
    """A row too few at one side: features shifted by a pixel."""
    layers = importlib.import_module("timm.layers")
    theirs = layers.Conv2dSame(3, 5, 3, stride=stride)
    ours = nn.Sequential(theirs)
    x = torch.randn(1, 3, side, side)
    with torch.inference_mode():
        expected = theirs(x)
        timm_models.pad_before(ours)
        assert type(ours[0]) is nn.Conv2d
        assert torch.equal(ours(x), expected)


def test_weights_in_the_names_of_another_implementation() -> None:
    """The registry's file of EfficientNet-Lite0, which has its own names."""
    made = backbone("tf_efficientnet_lite0")
    net: Any = timm.create_model("tf_efficientnet_lite0", num_classes=2)
    tensors = [t for key, t in net.state_dict().items() if "num_batches" not in key]
    renamed = {f"_other{at}": tensor for at, tensor in enumerate(tensors)}
    first, *rest = renamed
    state = {timm_models.OTHER_NAMES: renamed[first]} | {key: renamed[key] for key in rest}
    fitted = timm_models.fit(net, state)
    assert set(fitted) == {key for key in net.state_dict() if "num_batches" not in key}
    assert all(torch.equal(fitted[key], net.state_dict()[key]) for key in fitted)
    assert made.features == 1280


def test_the_real_weights_know_photographs() -> None:
    """Weights under wrong names give noise: of ImageNet's classes, flowers and buildings are told
    in scikit-learn's two sample photographs.
    """
    datasets = pytest.importorskip("sklearn.datasets")
    try:
        path = timm_models.find_lite0()
    except UserError:
        pytest.skip(f"{timm_models.LITE0_PACKAGE} is not installed")
    made = load_backbone(timm_models.LITE0, weights=timm_models.LITE0_WEIGHTS)
    state = read_tensors(path)
    head = nn.Linear(1280, 1000)
    head.load_state_dict({"weight": state["_fc.weight"], "bias": state["_fc.bias"]})
    photographs = torch.stack(
        [torch.from_numpy(image.copy()) for image in datasets.load_sample_images().images]
    ).permute(0, 3, 1, 2)
    with torch.inference_mode():
        best = head(made.net(made.preprocess(photographs).only)).topk(5).indices
    # ImageNet's 663 monastery, 698 palace, 832 stupa; 985 daisy, 738 pot, 308 fly, 309 bee
    assert {663, 698, 832} & set(best[0].tolist())
    assert {985, 738, 308, 309, 723, 944} & set(best[1].tolist())


def test_it_travels_without_its_package(tmp_path: Path) -> None:
    """What a node stores is the same network."""
    made = backbone("resnet10t")
    save_backbone(made, tmp_path / "r.safetensors", {})
    again = load_backbone("timm/resnet10t", weights=tmp_path / "r.safetensors")
    assert again.fingerprint == made.fingerprint
    assert again.preprocess == made.preprocess


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "timm/levit_128s"}, "no single Linear at its end"),
        ({"name": "timm/no_such_model"}, "no backbone is called"),
        ({"name": "timm/resnet18", "weights": "IMAGENET1K_V1"}, "known by a name"),
        ({"name": "timm/vit_tiny_patch16_224", "image_size": 230}, "patches of 16"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], words: str) -> None:
    """A traceback out of timm."""
    with pytest.raises(UserError, match=words):
        load_backbone(**options)


def test_without_timm_the_line_to_type_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hospital that lacks the extra reads what to install."""
    monkeypatch.setitem(sys.modules, "timm", None)
    timm_models.names.cache_clear()
    try:
        with pytest.raises(UserError) as caught:
            load_backbone("timm/resnet18")
    finally:
        timm_models.names.cache_clear()
    assert caught.value.remedy == "pip install 'fedgraft[timm]'"


def test_nobody_imports_timm_who_does_not_use_it() -> None:
    """Seconds in each message's process at a node."""
    code = (
        "import sys; from fedgraft.common.backbones import FAMILIES;"
        "from fedgraft.common.backbones.backbone_files import load_backbone;"
        "list(FAMILIES.values()); load_backbone('cifar-resnet20'); sys.exit('timm' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
