"""Adapters on disk: what comes back, what the real PEFT makes of it, and bad files."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedgraft.common.adapters import METHODS
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.errors import UserError
from fedgraft.common.model.grafted_model import GraftedModel, graft, load_adapter, save_adapter

Lively = Callable[[str], Backbone]
Inputs = Callable[..., Tensor]
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def trained(backbone: Backbone, **options: object) -> GraftedModel:
    """A grafted model whose adapters do something."""
    model = graft(backbone, **{"method": "lora", "classes": 3, "rank": 4, "seed": 1, **options})  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(2)
    model.load_adapter_state(
        {
            k: v + 0.03 * torch.randn(v.shape, generator=generator)
            for k, v in model.adapter_state().items()
        }
    )
    return model


def through_peft(backbone: Backbone, folder: Path, x: Tensor) -> Tensor:
    """What Hugging Face's PEFT computes: plain network, a fresh Linear for a head, our folder."""
    from peft import PeftModel

    net = copy.deepcopy(backbone.net)
    net.set_submodule(backbone.head_name, nn.Linear(backbone.features, 3))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")  # PEFT only warns where keys are missing
        warnings.filterwarnings("ignore", message=".*groups > 1.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return PeftModel.from_pretrained(net, str(folder)).eval()(x)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("cifar-resnet20", "auto"),
        ("cifar-resnet20", "last-block"),
        (
            "cifar-resnet20",
            ("conv1",),
        ),  # as PEFT matches by the end of a name, this one needs an expression
        ("mlp", "auto"),
        ("resnet18", "auto"),
        ("mobilenet_v3_small", "auto"),
        ("mobilenet_v3_small", ("features.1", "features.12")),  # depthwise, too
        pytest.param("resnext50_32x4d", "last-block", marks=pytest.mark.slow),  # 32 groups
        pytest.param("efficientnet_b0", "auto", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", "auto", marks=pytest.mark.slow),
        pytest.param("vit_b_16", "auto", marks=pytest.mark.slow),
        # torchvision's Swin attention multiplies by `qkv.weight`, which PEFT's layers pass on
        # unadapted
        pytest.param("swin_t", ("*.mlp", "*.reduction", "features.0.0"), marks=pytest.mark.slow),
    ],
)
def test_peft_loads_it_with_equal_outputs(
    name: str, targets: str | tuple[str, ...], lively: Lively, inputs: Inputs, tmp_path: Path
) -> None:
    """The shared model must be usable without fedgraft: other keys, shapes or scales would show
    here.
    """
    backbone, x = lively(name), inputs(name)
    model = trained(backbone, targets=targets)
    save_adapter(model, tmp_path)
    with torch.no_grad():
        wanted, plain = model(x), model.net.get_submodule(model.head_name)(backbone.net(x))
    assert (wanted - plain).abs().max() > 1e-3
    tolerance = 1e-5 * float(wanted.abs().max().clamp(min=1))
    assert (through_peft(backbone, tmp_path, x) - wanted).abs().max() <= tolerance


@pytest.mark.slow
def test_what_peft_cannot_do_is_known(lively: Lively, inputs: Inputs, tmp_path: Path) -> None:
    """PEFT passes over adapters on Swin's attention. Should it learn to, our notes are out of
    date.
    """
    backbone, x = lively("swin_t"), inputs("swin_t")
    model = trained(backbone, targets=("*.qkv",))
    save_adapter(model, tmp_path)
    with torch.no_grad():
        ignored = model.net.get_submodule(model.head_name)(backbone.net(x))
    torch.testing.assert_close(through_peft(backbone, tmp_path, x), ignored)
    assert (model(x) - ignored).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS.names)
def test_round_trip(method: str, lively: Lively, inputs: Inputs, tmp_path: Path) -> None:
    """Every method's adapters come back bit for bit, and the same ones give the same files."""
    for name in ("cifar-resnet20", "mobilenet_v3_small"):
        targets = ("features.1", "layer1") if method not in ("head", "full") else "auto"
        model = trained(lively(name), method=method, targets=targets)
        save_adapter(model, tmp_path / name)
        files = {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        assert sorted(files) == [CONFIG, TENSORS]
        back = graft(lively(name), method=method, classes=3, rank=4, targets=targets, seed=9)
        load_adapter(back, tmp_path / name)
        with torch.no_grad():
            assert torch.equal(back(inputs(name)), model(inputs(name)))
        save_adapter(back, tmp_path / name)
        assert {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} == files


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["auto", ("*.out_proj",), ("*.self_attention", "*.out_proj")])
def test_round_trip_of_attention(
    targets: str | tuple[str, ...], lively: Lively, inputs: Inputs, tmp_path: Path
) -> None:
    """The zeros that stand for a projection without adapter must not confuse our own reading."""
    model = trained(lively("vit_b_16"), targets=targets)
    save_adapter(model, tmp_path)
    back = graft(lively("vit_b_16"), method="lora", classes=3, rank=4, targets=targets)
    load_adapter(back, tmp_path)
    assert all(torch.equal(v, back.adapter_state()[k]) for k, v in model.adapter_state().items())


@pytest.mark.parametrize("name", ["cifar-resnet20", "mlp"])
def test_a_that_does_not_travel_is_in_the_file(
    name: str, lively: Lively, inputs: Inputs, tmp_path: Path
) -> None:
    """Under freeze-a the file holds A, too: PEFT, and a version that would draw another A, give the
    same outputs.
    """
    backbone, x = lively(name), inputs(name)
    model = trained(backbone, freeze_a=True)
    assert not any("lora_A" in key for key in model.adapter_state())
    save_adapter(model, tmp_path)
    other = graft(backbone, method="lora", classes=3, rank=4, seed=99, freeze_a=True)
    load_adapter(other, tmp_path)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))
        torch.testing.assert_close(model.merge()(x), model(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        through_peft(backbone, tmp_path, x), model(x).detach(), atol=1e-5, rtol=1e-5
    )
    assert model.frozen_fingerprint() == backbone.fingerprint


def test_bad_folders_meet_a_clear_message(lively: Lively, tmp_path: Path) -> None:
    """Missing, damaged or foreign files: a UserError that names the file, and the model as it
    was.
    """
    model = trained(lively("mlp"))
    save_adapter(model, tmp_path)
    tensors, config = load_file(tmp_path / TENSORS), json.loads((tmp_path / CONFIG).read_text())
    fresh = graft(lively("mlp"), method="lora", classes=3, rank=4)
    start = fresh.adapter_state()

    def fails(folder: Path, file: str, word: str, into: GraftedModel = fresh) -> None:
        with pytest.raises(UserError) as caught:
            load_adapter(into, folder)
        assert caught.value.where == str(folder / file)
        assert word in caught.value.what
        assert caught.value.remedy

    fails(tmp_path / "nowhere", CONFIG, "FileNotFoundError")
    for bad in ("{", "[]", "{}", json.dumps({**config, "r": 0})):
        (tmp_path / CONFIG).write_text(bad)
        fails(tmp_path, CONFIG, "holds no adapter")
    (tmp_path / CONFIG).write_text(json.dumps({**config, "lora_alpha": 99}))
    fails(tmp_path, CONFIG, "scaled by")
    (tmp_path / CONFIG).write_text(json.dumps(config))
    fails(tmp_path, CONFIG, "method 'lora'", graft(lively("mlp"), method="bias", classes=3))
    fails(tmp_path, TENSORS, "should be", graft(lively("mlp"), method="lora", classes=4, rank=4))
    save_file({k: v for k, v in tensors.items() if "head" not in k}, tmp_path / TENSORS)
    fails(tmp_path, TENSORS, "head.bias is missing")
    save_file({**tensors, "base_model.model.more": torch.zeros(1)}, tmp_path / TENSORS)
    fails(tmp_path, TENSORS, "more is not of this model")
    (tmp_path / TENSORS).write_bytes(b"12345678")
    fails(tmp_path, TENSORS, "damaged")
    assert all(torch.equal(v, start[k]) for k, v in fresh.adapter_state().items())
