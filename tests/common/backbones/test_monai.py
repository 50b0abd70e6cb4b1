"""MONAI's networks: the same outputs as plain MONAI, one part after the other, adapters on them,
and files of weights as they are published.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.common.backbones.backbone import Backbone, backbone_from_state, backbone_state
from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.backbones.zero_shortcut import ZeroShortcut
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.volume import VolumePreparation
from fedgraft.common.model.adapter_files import load_adapter, save_adapter
from fedgraft.common.model.depth_features import choose_stages
from fedgraft.common.model.frozen_prefix import _list_stages
from fedgraft.common.model.grafted_model import GraftedModel, graft
from fedgraft.common.plan.volume_section import VolumeSection
from fedgraft.common.tasks.classification import cross_entropies

pytest.importorskip("monai")
SECTION = VolumeSection(size=(32, 32, 32))
RESNET: Any = {"conv1_t_stride": 2, "num_classes": 2}
# one of each kind, small enough to be tried
NAMES = (
    "monai/resnet10-3d",
    "monai/resnet18-3d",
    "monai/resnet50-3d",
    "monai/densenet121-3d",
    "monai/densenet121-2d",
    "monai/basic-unet-3d",
    "monai/unet-3d",
    "monai/resnet18-2d",
)
METHODS = ("lora", "bottleneck", "bias", "scale-shift")


def plain(name: str) -> Any:
    """The network as MONAI itself makes it."""
    from monai.networks.nets import basic_unet, densenet, resnet, unet

    axes = int(name[-2])
    channels = {2: 3, 3: 1}[axes]
    short = name.removeprefix("monai/")[:-3]
    if short.startswith("resnet"):
        biased, shortcut = resnet.get_medicalnet_pretrained_resnet_args(int(short[6:]))
        options = {"shortcut_type": shortcut, "bias_downsample": biased, "spatial_dims": axes}
        return getattr(resnet, short)(n_input_channels=channels, **options, **RESNET)
    if short == "densenet121":
        return densenet.DenseNet121(spatial_dims=axes, in_channels=channels, out_channels=2)
    if short == "unet":
        widths = (16, 32, 64, 128, 256)
        return unet.UNet(axes, channels, 2, widths, (2, 2, 2, 2), num_res_units=2)
    return basic_unet.BasicUNet(axes, channels, 2)


@cache
def backbone(name: str) -> Backbone:
    if name.endswith("2d"):
        return load_backbone(name, image_size=64, seed=1)
    return load_backbone(name, volume=SECTION, seed=1)


def records(name: str, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if name.endswith("2d"):
        return torch.randn(count, 3, 64, 64, generator=generator)
    return torch.randn(count, 1, 32, 32, 32, generator=generator)


def bottom_of(net: Any, name: str, x: Tensor) -> Tensor:
    """What plain MONAI gives before its classifier, or at the bottom of a U-Net."""
    outputs: list[Tensor] = []

    def keep(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output)

    if "unet" not in name:
        last = net.fc if "resnet" in name else net.class_layers.out
        last.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0]))
        net(x)
        return outputs[0]
    here: Any = net.down_4 if "basic" in name else net.model
    while "basic" not in name and len(here) == 3:
        here = here[1].submodule
        if not isinstance(here, torch.nn.Sequential):
            break
    here.register_forward_hook(keep)
    net(x)
    return outputs[0].flatten(2).mean(2)


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_monai_computes(name: str, tmp_path: Path) -> None:
    """A shortcut, a stride or a tensor that is not MONAI's; weights of a whole U-Net."""
    torch.manual_seed(7)
    theirs = plain(name).eval()
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": theirs.state_dict()}, file)
    options: Any = {"image_size": 64} if name.endswith("2d") else {"volume": SECTION}
    mine = load_backbone(name, weights=file, **options)
    x = records(name)
    with torch.inference_mode():
        features = mine.net(x)
        assert features.shape == (2, mine.features)
        assert torch.equal(features, bottom_of(theirs, name, x))


@pytest.mark.parametrize("name", NAMES)
def test_its_parts_in_their_order_are_the_network(name: str) -> None:
    """Activations that are kept of another network."""
    model = graft(backbone(name), method="head", classes=3)
    x = records(name)
    stages = list(_list_stages(model.net))
    assert len(stages) > 3
    with torch.inference_mode():
        whole = model(x)
        for stage in stages:
            x = stage.run(x)
    assert torch.equal(whole, x)


@pytest.mark.parametrize("name", NAMES)
def test_all_depths_are_there(name: str) -> None:
    """A network whose blocks nobody knows would give one round its last layer alone."""
    stages = choose_stages(backbone(name), "all", "mean", records(name, 1))
    assert len(stages) >= 4


def moved(name: str, method: str) -> GraftedModel:
    model = graft(backbone(name), method=method, classes=3, seed=4, rank=2, width=4)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.trainable_parameters().values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES[:1] + NAMES[3:4] + NAMES[5:7])
def test_adapters_begin_as_nothing_merge_and_come_back(
    name: str, method: str, tmp_path: Path
) -> None:
    """An adapter over three axes that disturbs at the start, or is another one in its file."""
    x = records(name)
    fresh = graft(backbone(name), method=method, classes=3, seed=4, rank=2, width=4)
    bare = graft(backbone(name), method="head", classes=3, seed=4)
    model = moved(name, method)
    save_adapter(model, tmp_path)
    again = graft(backbone(name), method=method, classes=3, seed=9, rank=2, width=4)
    load_adapter(again, tmp_path)
    with torch.inference_mode():
        assert torch.equal(fresh(x), bare(x))
        assert not torch.allclose(model(x), bare(x), atol=1e-3)
        assert torch.equal(again(x), model(x))
    with torch.no_grad():
        model.double()
        merged = model.merge()
        torch.testing.assert_close(merged(x.double()), model(x.double()), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("method", ["head", *METHODS])
@pytest.mark.parametrize("name", ["monai/resnet10-3d", "monai/unet-3d"])
def test_gradients_of_examples_are_those_of_a_loop(name: str, method: str) -> None:
    """Noise that hides nobody."""
    model = graft(backbone(name), method=method, classes=2, seed=1, rank=2, width=4)
    check_gradients(model, "hooks", records(name), cross_entropies)


def test_shortcuts_of_zeros_hand_gradients_on() -> None:
    """MONAI's own cut the graph: what lies in front would be taught by a part of the network."""
    layers = [m for m in backbone("monai/resnet18-3d").net.modules() if type(m) is ZeroShortcut]
    assert len(layers) == 3
    x = torch.randn(1, 2, 5, 5, 5, requires_grad=True)
    ZeroShortcut(3, 2)(x).sum().backward()
    assert x.grad is not None
    assert float(x.grad.sum()) == 2 * 27


def test_weights_of_medicalnet(tmp_path: Path) -> None:
    """`module.` before every name, and a decoder instead of a classifier."""
    state = plain("monai/resnet10-3d").state_dict()
    published = {f"module.{key}": t for key, t in state.items() if not key.startswith("fc.")}
    published["module.conv_seg.0.weight"] = torch.zeros(4, 4)
    file = tmp_path / "resnet_10_23dataset.pth"
    torch.save({"state_dict": published}, file)
    mine = load_backbone("monai/resnet10-3d", weights=file, volume=SECTION)
    assert torch.equal(backbone_state(mine)["conv1.weight"], state["conv1.weight"])


def test_weights_for_one_sequence_are_brought_to_several(tmp_path: Path) -> None:
    """MedicalNet's weights, of no use to whoever has four sequences."""
    file = tmp_path / "one.safetensors"
    one = load_backbone("monai/resnet10-3d", volume=SECTION, seed=1)
    save_backbone(one, file, {})
    section = VolumeSection(size=(32, 32, 32), sequences=("t1", "t1ce", "t2", "flair"))
    four = load_backbone("monai/resnet10-3d", weights=file, volume=section)
    scan = records("monai/resnet10-3d")
    repeated = four.net(scan.expand(-1, 4, -1, -1, -1))
    torch.testing.assert_close(repeated, one.net(scan), atol=1e-5, rtol=1e-4)
    sent = backbone_from_state(four.name, backbone_state(four), four.preprocess)
    assert sent.fingerprint == four.fingerprint


def test_what_travels_is_the_same_network(tmp_path: Path) -> None:
    """A node that builds another network or prepares volumes otherwise."""
    section = VolumeSection(size=(32, 32, 32), channels=2, window=(-100, 300))
    made = load_backbone("monai/unet-3d", volume=section, seed=3)
    sent = backbone_from_state(made.name, backbone_state(made), made.preprocess)
    assert sent.fingerprint == made.fingerprint
    save_backbone(made, tmp_path / "unet.safetensors", {})
    again = load_backbone(made.name, weights=tmp_path / "unet.safetensors")
    assert again.fingerprint == made.fingerprint
    assert again.preprocess == VolumePreparation(section)
    with pytest.raises(UserError, match="weights for 2 channels"):
        load_backbone(made.name, weights=tmp_path / "unet.safetensors", volume=SECTION)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """A traceback, or a network that is half of one and half of another."""
    file = tmp_path / "weights.pth"
    torch.save(plain("monai/resnet10-3d").state_dict(), file)
    with pytest.raises(UserError, match="not the weights of monai/unet-3d"):
        load_backbone("monai/unet-3d", weights=file)


def test_without_monai_the_pip_line_is_named_and_nothing_else_needs_it() -> None:
    """Twelve seconds at every start, or a traceback where the extra is missing."""
    code = (
        "import sys; sys.modules['monai'] = None\n"
        "import fedgraft\n"
        "from fedgraft.common.backbones.backbone_files import load_backbone\n"
        "load_backbone('cifar-resnet8')\n"
        "try: load_backbone('monai/resnet10-3d')\n"
        "except Exception as error: print(error)\n"
    )
    root = Path(__file__).resolve().parents[3]
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert "pip install 'fedgraft[monai]'" in ended.stdout, ended.stderr
