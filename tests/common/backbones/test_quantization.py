"""Weights of 8 and 4 bits: near the ones they stand for, the same product and gradient, handed out
as they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor, nn

from fedgraft.common.backbones import quantization
from fedgraft.common.backbones.backbone import Backbone, backbone_from_state, backbone_state
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.backbones.quantization import (
    BLOCK,
    KINDS,
    Int8Linear,
    Nf4Linear,
    QuantizedLinear,
    choose_layers,
    count_plain_bytes,
)
from fedgraft.common.errors import UserError
from fedgraft.common.model.grafted_model import graft
from tests.huggingface_folders import write_folder

pytest.importorskip("bitsandbytes")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_layer(seed: int = 0, inputs: int = 32, outputs: int = 16) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    layer.weight = nn.Parameter(draw(seed, outputs, inputs), requires_grad=False)
    layer.bias = nn.Parameter(draw(seed + 1, outputs), requires_grad=False)
    return layer


def quantiles_of_the_paper() -> np.ndarray:
    """The 16 values of QLoRA's appendix E: quantiles of a normal distribution on both sides of an
    exact zero, scaled to ±1.
    """
    offset = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    values = np.sort(np.concatenate([above, [0.0], below]))
    return values / np.abs(values).max()


@given(st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_no_weight_of_8_bits_is_off_by_more_than_half_a_step(seed: int, scale: float) -> None:
    """A row whose largest value is cut, or rounded to the wrong side."""
    layer = make_layer(seed)
    layer.weight *= scale
    quantized = Int8Linear.of(layer)
    step = layer.weight.abs().amax(1, keepdim=True) / 127
    assert ((quantized.weight - layer.weight).abs() <= step * 0.50001).all()
    assert quantized.weight_int8.dtype == torch.int8


def test_a_row_of_zeros_stays_one() -> None:
    layer = make_layer()
    layer.weight[3] = 0
    for kind in KINDS.values():
        assert kind.of(layer).weight[3].eq(0).all()


def test_each_weight_of_4_bits_is_the_nearest_quantile_of_the_paper() -> None:
    """Another table, blocks along the wrong axis, or two numbers of a byte exchanged."""
    layer = make_layer(7, inputs=64)
    quantized = Nf4Linear.of(layer)
    blocks = layer.weight.reshape(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    table = torch.from_numpy(quantiles_of_the_paper()).float()
    nearest = ((blocks / largest)[..., None] - table).abs().argmin(-1)
    torch.testing.assert_close(
        quantized.weight, (table[nearest] * largest).view(16, 64), atol=1e-5, rtol=0
    )
    stored = sum(buffer.nbytes for buffer in quantized.buffers())
    assert stored == layer.weight.numel() * 0.5625


@pytest.mark.parametrize("kind", KINDS)
def test_the_product_and_its_gradients_are_those_of_the_weight_it_stands_for(kind: str) -> None:
    """A gradient of the inputs through another weight than the product's."""
    quantized = KINDS[kind].of(make_layer())
    x = draw(3, 5, 2, 32).requires_grad_()
    y = quantized(x)
    expected = nn.functional.linear(x, quantized.weight, quantized.bias)
    assert torch.equal(y, expected)
    g = draw(4, *y.shape)
    (mine,) = torch.autograd.grad(y, x, g)
    (theirs,) = torch.autograd.grad(expected, x, g)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_single_examples_pass_through(kind: str) -> None:
    quantized = KINDS[kind].of(make_layer())
    x = draw(3, 4, 32)
    each = torch.func.vmap(torch.func.grad(lambda row: quantized(row).square().sum()))(x)
    alone = [torch.func.grad(lambda row: quantized(row).square().sum())(row) for row in x]
    torch.testing.assert_close(each, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_nothing_of_a_weights_size_is_kept_for_the_way_back() -> None:
    """Torch would keep every weight that is made: all of them in float32, at once."""
    quantized = KINDS["int8"].of(make_layer())
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        quantized(draw(3, 5, 32).requires_grad_())
    assert all(tensor.numel() < quantized.in_features * quantized.out_features for tensor in kept)


# ── networks ──────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module", params=["bert", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"), request.param)


def load(folder: Path, **options: object) -> Backbone:
    return load_backbone("huggingface", weights=folder, max_length=16, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_handed_out_is_what_was_quantized(folder: Path, kind: str) -> None:
    """A node that quantizes anew, or needs the weights in float32."""
    plain, quantized = load(folder), load(folder, quantization=kind)
    assert quantized.fingerprint != plain.fingerprint
    # full fine-tuning would send as much
    assert count_plain_bytes(quantized.net) == count_plain_bytes(plain.net)
    state = backbone_state(quantized)
    assert not any(
        name.endswith("weight") and tensor.ndim == 2 and name.removesuffix(".weight") in chosen
        for chosen in [choose_layers(plain.net, plain.head_name)]
        for name, tensor in state.items()
    )
    received = backbone_from_state("huggingface", state, quantized.preprocess)
    assert received.fingerprint == quantized.fingerprint
    tokens = torch.randint(0, 8, (3, 16), generator=torch.Generator().manual_seed(0))
    assert torch.equal(received.net(tokens), quantized.net(tokens))
    assert load(folder, quantization=kind).fingerprint == quantized.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_merged_into_the_weights_they_were_trained_beside(
    folder: Path, kind: str
) -> None:
    """Merged into the weights in float32, a model answers as it was never trained."""
    model = graft(load(folder, quantization=kind), method="lora", classes=2, rank=2)
    for number, parameter in enumerate(model.trainable_parameters().values()):
        parameter.data.add_(draw(number, *parameter.shape), alpha=0.1)
    assert any(isinstance(module, QuantizedLinear) for module in model.net.modules())
    merged = model.merge()
    assert not any(isinstance(module, QuantizedLinear) for module in merged.modules())
    tokens = torch.randint(0, 8, (3, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(merged(tokens), model(tokens))
    # the model itself is as it was
    assert any(isinstance(module, QuantizedLinear) for module in model.net.modules())


def test_random_values_are_quantized_too(folder: Path) -> None:
    """A baseline of another precision than what it stands beside."""
    random = load(folder, quantization="int8", random=True)
    assert any(name.endswith("weight_int8") for name in backbone_state(random))
    drawn = load_backbone("vit_b_32", image_size=32, quantization="int8")
    names = [name for name in backbone_state(drawn) if name.endswith("weight_int8")]
    assert len(names) == 24
    # torch's own attention reads its weights by itself
    assert not any("self_attention" in name for name in names)


def test_a_network_of_convolutions_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="no Linear layers") as told:
        load_backbone("cifar-resnet8", image_size=16, quantization="int8")
    assert "leave it out" in str(told.value.remedy)


def test_a_machine_without_the_library_is_told_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = backbone_state(load(folder, quantization="nf4"))
    preprocess = load(folder).preprocess
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="4 bits need") as told:
        backbone_from_state("huggingface", state, preprocess)
    assert "fedgraft[quantized]" in str(told.value.remedy)
    load(folder, quantization="int8")
