"""Gradients of single examples of convolutions over one axis and over three, against a loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedgraft.client.privacy.clipping_engine import Drawn
from fedgraft.client.privacy.ghost_clipping import GhostClipping
from fedgraft.client.privacy.one_pass import OnePass, knows_layers
from fedgraft.client.privacy.opacus_hooks import OpacusHooks
from fedgraft.common.adapters.bias import AddedBias
from fedgraft.common.adapters.bottleneck import Bottleneck
from fedgraft.common.adapters.host import attach_to
from fedgraft.common.adapters.initial_values import ConvShape, new_conv
from fedgraft.common.adapters.lora import LoraOptions, _new_conv_lora
from fedgraft.common.adapters.method import Attachment
from fedgraft.common.adapters.scale_shift import ScaleShift
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.tasks.classification import cross_entropies

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 3: nn.Conv3d}
SHAPES = {1: (11,), 3: (5, 6, 7)}
ADAPTERS = ("lora", "bottleneck", "bias", "scale-shift")


class OneConvolution(nn.Module):
    """A convolution, the mean over its positions, and a frozen classifier."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.out_channels, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).tanh().flatten(2).mean(2))


def model_of(layer: nn.Module) -> GraftedModel:
    torch.manual_seed(0)
    net = OneConvolution(layer)
    return GraftedModel(net, method="x", options=None, outputs=3, head_name="head").double()


def records(axes: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, channels, *SHAPES[axes], dtype=torch.float64, generator=generator)


def looped(model: GraftedModel, x: Tensor, norm: float) -> list[Tensor]:
    """The clipped sum, one example after the other."""
    parameters = list(model.trainable_parameters().values())
    total = [torch.zeros_like(p) for p in parameters]
    for row in range(len(x)):
        loss = F.cross_entropy(model(x[row : row + 1]), torch.tensor([row % 3]))
        gradients = torch.autograd.grad(loss, parameters)
        size = float(torch.cat([each.flatten() for each in gradients]).norm())
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += gradient * min(1.0, norm / (size + 1e-6))
    return total


def must_agree(model: GraftedModel, engine: Any, x: Tensor, norm: float) -> None:
    sums = engine.sums(Drawn(x, torch.arange(len(x)) % 3))
    engine.detach()
    parameters = model.trainable_parameters().values()
    for parameter, wanted in zip(parameters, looped(model, x, norm), strict=True):
        assert sums[parameter].shape == wanted.shape
        assert float((sums[parameter] - wanted).norm()) <= 1e-9 * float(wanted.norm()) + 1e-15


def adapted(axes: int, method: str, groups: int = 1) -> GraftedModel:
    """A frozen convolution with an adapter whose values are not those of the beginning."""
    torch.manual_seed(5)
    layer = CONVOLUTIONS[axes](4, 6, 3, stride=2, padding=1, groups=groups).requires_grad_(False)
    serial = {"bias": AddedBias(6, last=False), "scale-shift": ScaleShift(6, last=False)}
    if method == "lora":
        attachment = Attachment(LoraOptions(rank=2), "auto", seed=3)
        attach_to(layer, _new_conv_lora("layer", layer, attachment))
    elif method == "bottleneck":
        kind = CONVOLUTIONS[axes]
        down = new_conv(ConvShape(6, 2, bias=True), seed=3, name="down", kind=kind)
        up = new_conv(ConvShape(2, 6, bias=True), seed=None, name="up", kind=kind)
        attach_to(layer, Bottleneck(down, up))
    else:
        attach_to(layer, serial[method])
    model = model_of(layer)
    for parameter in model.trainable_parameters().values():
        parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)
    return model


@settings(max_examples=60, deadline=None)
@given(
    axes=st.sampled_from((1, 3)),
    groups=st.sampled_from((1, 2)),
    kernel=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    stride=st.lists(st.integers(1, 2), min_size=3, max_size=3),
    padding=st.lists(st.integers(0, 2), min_size=3, max_size=3),
    dilation=st.lists(st.integers(1, 2), min_size=3, max_size=3),
    norm=st.sampled_from((1e-3, 1e3)),
    bias=st.booleans(),
)
def test_any_window(axes, groups, kernel, stride, padding, dilation, norm, bias) -> None:
    """Axes mixed up, a dilation that skips the wrong voxels, groups exchanged."""
    layer = CONVOLUTIONS[axes](
        4,
        6,
        tuple(kernel[:axes]),
        stride=tuple(stride[:axes]),
        padding=tuple(padding[:axes]),
        dilation=tuple(dilation[:axes]),
        groups=groups,
        bias=bias,
    )
    model = model_of(layer)
    assert knows_layers(model)
    must_agree(model, OnePass(model, cross_entropies, norm), records(axes, 4), norm)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
def test_float32_goes_another_way(axes: int, stride: int, padding: int) -> None:
    """Examples mixed up where each is a group of one convolution."""
    torch.manual_seed(3)
    layer = CONVOLUTIONS[axes](4, 6, 3, stride=stride, padding=padding)
    model = model_of(layer)
    x = records(axes, 4)
    exact = looped(model, x, 0.01)
    engine = OnePass(model.float(), cross_entropies, 0.01)
    sums = engine.sums(Drawn(x.float(), torch.arange(3)))
    for parameter, wanted in zip(model.trainable_parameters().values(), exact, strict=True):
        torch.testing.assert_close(sums[parameter].double(), wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("method", ADAPTERS)
@pytest.mark.parametrize("norm", [1e-3, 1e3])
def test_adapters(axes: int, method: str, norm: float) -> None:
    """LoRA's two factors confused where they run as one convolution; channels that are not
    axis 1.
    """
    model = adapted(axes, method)
    assert knows_layers(model)
    must_agree(model, OnePass(model, cross_entropies, norm), records(axes, 4), norm)


@pytest.mark.parametrize("axes", [1, 3])
def test_lora_on_groups(axes: int) -> None:
    """Blocks of a grouped update exchanged."""
    model = adapted(axes, "lora", groups=2)
    must_agree(model, OnePass(model, cross_entropies, 0.01), records(axes, 4), 0.01)


@pytest.mark.parametrize("engine", [OpacusHooks, GhostClipping])
@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("method", ["lora", "bottleneck"])
def test_opacus_gives_the_same(engine: Any, axes: int, method: str) -> None:
    """Both engines of Opacus, which serve what is not known here and ghost clipping."""
    model = adapted(axes, method)
    must_agree(model, engine(model, cross_entropies, 0.01), records(axes, 4), 0.01)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("method", ["lora", "bias", "scale-shift"])
def test_merged_is_adapted(axes: int, groups: int, method: str) -> None:
    """A merged convolution that computes something else than the adapted one."""
    model = adapted(axes, method, groups)
    x = records(axes, 4)
    with torch.no_grad():
        torch.testing.assert_close(model.merge()(x), model(x), rtol=1e-10, atol=1e-12)
