"""Gradients of single examples, layer by layer, against a loop and against Opacus."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedgraft.client.privacy import choose_engine
from fedgraft.client.privacy.clipping_engine import Drawn, losses_of
from fedgraft.client.privacy.dp_sgd import PrivateTraining, make_private
from fedgraft.client.privacy.example_gradients import Products, Rows
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.privacy.one_pass import OnePass, knows_layers
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.model.grafted_model import GraftedModel, graft
from fedgraft.common.plan.plan_file import amended, load_plan
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.tasks.classification import cross_entropies


def one_layer(layer: nn.Module, out: int) -> GraftedModel:
    """A model of one trained layer, the mean over its positions, and a frozen classifier."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer, nn.Linear(out, 3).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            if isinstance(layer, nn.Conv2d):
                return self.head(y.flatten(2).mean(2))
            return self.head(y.reshape(len(y), -1, y.shape[-1]).mean(1))

    torch.manual_seed(0)
    return GraftedModel(Net(), method="x", options=None, outputs=3, head_name="head").double()


def looped(model: GraftedModel, x: Tensor, labels: Tensor, norm: float) -> list[Tensor]:
    parameters = list(model.trainable_parameters().values())
    total = [torch.zeros_like(p) for p in parameters]
    for i in range(len(x)):
        grads = torch.autograd.grad(
            F.cross_entropy(model(x[i : i + 1]), labels[i : i + 1]), parameters
        )
        size = float(torch.cat([g.flatten() for g in grads]).norm())
        for sum_, g in zip(total, grads, strict=True):
            sum_ += g * min(1.0, norm / (size + 1e-6))
    return total


def taped(model: GraftedModel, x: Tensor, labels: Tensor, norm: float) -> list[Tensor]:
    engine = OnePass(model, cross_entropies, norm)
    sums = engine.sums(Drawn(x, labels))
    engine.detach()
    return [sums[p] for p in model.trainable_parameters().values()]


def must_agree(model: GraftedModel, x: Tensor, norm: float) -> None:
    assert knows_layers(model)
    labels = torch.arange(len(x)) % 3
    for found, wanted in zip(
        taped(model, x, labels, norm), looped(model, x, labels, norm), strict=True
    ):
        assert found.shape == wanted.shape
        assert float((found - wanted).norm()) <= 1e-10 * float(wanted.norm()) + 1e-16


@settings(max_examples=60, deadline=None)
@given(
    groups=st.sampled_from((1, 2)),
    inputs=st.sampled_from((2, 4, 6)),
    outputs=st.sampled_from((2, 4, 8)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    side=st.integers(5, 7),
    norm=st.sampled_from((1e-3, 1e3)),
    bias=st.booleans(),
)
def test_convolutions(groups, inputs, outputs, kernel, stride, padding, dilation, side, norm, bias):
    """Windows cut from the wrong side, groups mixed up, a flip left out; of every window that a
    network could have.
    """
    layer = nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
    )
    x = torch.randn(
        3, inputs, side, side + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    must_agree(one_layer(layer, outputs), x, norm)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
def test_float32_convolutions_go_another_way(stride, padding):
    """Examples mixed up where each is a group of one convolution; float64 cuts windows instead."""
    model = one_layer(nn.Conv2d(4, 6, 3, stride=stride, padding=padding), 6)
    x, labels = (
        torch.randn(5, 4, 9, 8, generator=torch.Generator().manual_seed(1)),
        torch.arange(5) % 3,
    )
    wanted = taped(model, x.double(), labels, 0.01)
    for found, exact in zip(taped(model.float(), x, labels, 0.01), wanted, strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shape", [(4, 5), (4, 1, 5), (4, 7, 5), (4, 2, 3, 5)])
@pytest.mark.parametrize("outputs", [2, 300])
def test_linear_layers(shape, outputs):
    """Positions that are summed before the norm is taken; both ways to the norm."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    must_agree(one_layer(nn.Linear(5, outputs), outputs), x, 0.1)


def test_both_ways_to_a_norm_agree():
    """‖Σ g xᵀ‖² from the two factors, and from the product."""
    for positions in (1, 3):
        left, right = torch.randn(4, 2, 60, positions), torch.randn(4, 2, 80, positions)
        products = Products(torch.zeros(120, 80), left, right, lambda p: p.reshape(len(p), 120, 80))
        assert isinstance(products.cheapest(), Products)
        rows = Rows(products.parameter, products.rows())
        torch.testing.assert_close(
            products.squared_norms(), rows.squared_norms(), rtol=1e-4, atol=0
        )
        factors = torch.tensor([1.0, 0.5, 0.0, 2.0])
        torch.testing.assert_close(
            products.total(factors), rows.total(factors), rtol=1e-4, atol=1e-4
        )
    many = torch.randn(4, 1, 3, 50)
    assert isinstance(Products(torch.zeros(3, 3), many, many, lambda p: p[:, 0]).cheapest(), Rows)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *[
            (name, method)
            for name in ("cifar-resnet8", "mobilenet_v3_small")
            for method in ("head", "lora", "bottleneck", "scale-shift", "bias")
        ],
        pytest.param("vit_b_16", "lora", marks=pytest.mark.slow),
    ],
)
def test_the_same_sums_as_opacus(name, method, monkeypatch):
    """A rule that differs from Opacus's own on a real network, merged convolutions and grouped ones
    included.
    """
    backbone = load_backbone(name, image_size=32, seed=0)
    targets = "auto" if method == "head" or name.startswith("cifar") else "last-block"
    model = graft(backbone, method=method, classes=3, rank=2, width=3, targets=targets).double()
    generator = torch.Generator().manual_seed(0)
    for p in model.trainable_parameters().values():
        p.data.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64), alpha=0.1)
    x = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])
    steps = []
    for ours in (True, False):
        monkeypatch.setattr(choose_engine, "knows_layers", lambda model, ours=ours: ours)
        each = copy.deepcopy(model)
        before = [p.detach().clone() for p in each.trainable_parameters().values()]
        optimizer = torch.optim.SGD(each.trainable_parameters().values(), lr=1.0)
        training = PrivateTraining(Mechanism(0.0, 1.0, 1, 1.0, 0.01), cross_entropies)
        with make_private(each, optimizer, training, Randomness(b"x")) as private:
            assert isinstance(private.engine, OnePass) == ours
            private.step(x, labels)
        after = each.trainable_parameters().values()
        steps.append(
            torch.cat([(b - a.detach()).flatten() for b, a in zip(before, after, strict=True)])
        )
    assert float((steps[0] - steps[1]).norm()) <= 1e-9 * float(steps[1].norm())


def test_layers_that_are_not_known_are_left_to_opacus():
    """A LayerNorm, a reflected border or a BatchNorm taken for a layer whose rule is known."""
    assert not knows_layers(one_layer(nn.LayerNorm(5), 5))
    assert not knows_layers(one_layer(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), 2))
    assert not knows_layers(one_layer(nn.Conv2d(2, 2, 3, padding="same"), 2))
    assert not knows_layers(one_layer(nn.BatchNorm2d(2), 2))


def test_a_layer_that_is_called_twice_is_refused():
    """The norm of a sum, taken for the sum of two norms."""
    shared = nn.Linear(5, 5)
    model = one_layer(nn.Sequential(shared, shared), 5)
    with pytest.raises(RuntimeError, match="more than once"):
        taped(model, torch.randn(2, 5, dtype=torch.float64), torch.tensor([0, 1]), 1.0)


def test_measuring_between_steps_leaves_nothing_on_the_tape():
    """Memory that grows with every evaluation, or a step that counts an evaluation's layers."""
    model = one_layer(nn.Linear(5, 5), 5)
    x, labels = torch.randn(2, 5, dtype=torch.float64), torch.tensor([0, 1])
    engine = OnePass(model, cross_entropies, 1.0)
    with torch.inference_mode():
        model(x)
    assert not engine._calls
    assert engine.sums(Drawn(x, labels))
    engine.detach()


def test_weighted_and_focal_losses_are_clipped_as_all_are():
    """A weight of 1,000 that multiplies what is already clipped: ε of another sensitivity."""
    three = ["task.classes=[a, b, c]", "task.labels=null"]
    weighted = ["train.loss=focal", "train.class_weights=[1, 1000, 1]"]
    plan = amended(load_plan("digits"), three + weighted)
    losses = losses_of(plan.task, plan.train)
    model = one_layer(nn.Linear(4, 5), 5)
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(6) % 3
    parameters = list(model.trainable_parameters().values())
    wanted = [torch.zeros_like(p) for p in parameters]
    for i in range(6):
        loss = losses(model(x[i : i + 1]), labels[i : i + 1]).sum()
        gradients = torch.autograd.grad(loss, parameters)
        size = float(torch.cat([g.flatten() for g in gradients]).norm())
        for total, gradient in zip(wanted, gradients, strict=True):
            total += gradient * min(1.0, 0.5 / (size + 1e-6))
        engine = OnePass(model, losses, 0.5)
        alone = engine.sums(Drawn(x[i : i + 1], labels[i : i + 1]))
        engine.detach()
        assert float(torch.cat([g.flatten() for g in alone.values()]).norm()) <= 0.5
    engine = OnePass(model, losses, 0.5)
    sums = engine.sums(Drawn(x, labels))
    engine.detach()
    for parameter, total in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(sums[parameter], total)
