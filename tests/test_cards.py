"""Everything that a card computes, walked on `meta`: nothing is forgotten on the host.

With a card at hand `make gpu` compares the numbers (`tests/gpu/`).
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from fedgraft.client.open_on_card import probe_targets, take_private_step, take_step
from fedgraft.common.errors import UserError
from fedgraft.common.inputs import INPUTS
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.model import frozen_precision
from fedgraft.common.model.assembly import plan_backbone, plan_model
from fedgraft.common.model.frozen_precision import run_frozen_in_bfloat16
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import DepthChoice, GraftedModel, graft
from fedgraft.common.plan.plan_file import load_plan
from tests.matrix import CLASSES, METHODS, ONE_ROUND, Opened, make_model, open_network
from tests.no_mixing import CARD, MixedDevices, NoMixing
from tests.task_matrix import QUESTIONS, WAYS, list_overrides, open_folder
from tests.tiny_networks import TINY_NETWORKS

NETWORKS = [
    pytest.param(
        label, marks=pytest.mark.skipif(not tiny.is_installed, reason=f"{tiny.package} is missing")
    )
    for label, tiny in TINY_NETWORKS.items()
]


class Forgetful(nn.Module):
    """Layers that forget a tensor on the host, one in each way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.linear = nn.Linear(4, 4)
        # no buffer: it does not move with the module
        self.forgotten = torch.ones(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        if self.way == "added":
            return y + self.forgotten
        if self.way == "product":
            return y @ self.forgotten
        if self.way == "index":
            return y[torch.tensor([0, 1])]
        if self.way == "table":
            return nn.functional.embedding(torch.tensor([0, 1]), self.linear.weight)
        return y


@pytest.mark.parametrize("way", ["added", "product", "index", "table", "loss"])
def test_the_walk_finds_what_is_forgotten(way: str) -> None:
    """A walk that passes whatever is done in it."""
    layer = Forgetful(way).to(CARD)
    x = torch.randn(4, 4, device=CARD)
    targets = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(MixedDevices), NoMixing():
        nn.functional.cross_entropy(layer(x), targets)


def test_the_walk_finds_it_on_the_way_back_and_in_gradients_of_single_examples() -> None:
    layer = nn.Linear(4, 4).to(CARD)
    parameters: dict[str, torch.Tensor] = dict(layer.named_parameters())
    x = torch.randn(4, 4, device=CARD)

    def loss(values: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        return (torch.func.functional_call(layer, values, (row,)) * torch.ones(4)).sum()

    with pytest.raises(MixedDevices), NoMixing():
        torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)

    class Back(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):  # type: ignore[no-untyped-def]
            return y * 2

        @staticmethod
        def backward(ctx, g):  # type: ignore[no-untyped-def]
            return g * torch.ones(4, 4)

    with pytest.raises(MixedDevices), NoMixing():
        Back.apply(layer(x)).sum().backward()


def walk(model: GraftedModel, opened: Opened) -> None:
    """Take a plain step on the card, with inputs and targets on the host, and read outputs back."""
    targets = torch.arange(len(opened.probes)) % CLASSES
    outputs = model(opened.probes)
    nn.functional.cross_entropy(outputs, targets.to(outputs.device)).backward()
    assert outputs.device == CARD
    for name, parameter in model.trainable_parameters().items():
        assert parameter.device == CARD, name
    assert model.features(Batch({"x": opened.probes})).device.type == "cpu"
    assert {tensor.device.type for tensor in model.adapter_state().values()} == {"cpu"}
    prefix = frozen_prefix(model)
    if prefix is not None:
        prefix.tail(prefix(opened.probes).cpu())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("label", NETWORKS)
def test_every_network_and_method_on_a_card(label: str, method: str) -> None:
    """A table of positions, a mask or a constant that stays on the host: on a card, a traceback."""
    opened = open_network(label)
    try:
        if method == ONE_ROUND:
            choice = DepthChoice("all", "mean", opened.example)
            model = graft(opened.backbone, method="head", classes=CLASSES, depths=choice)
        else:
            model = make_model(opened, method)
    except UserError:
        # docs/matrix.md has no such cell
        return
    with NoMixing():
        walk(model.move_to(CARD), opened)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("label", NETWORKS)
def test_every_network_in_bfloat16_on_a_card(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded weights that stay where the model was before it was moved; in float32, as there is no
    autocast for `meta`.
    """
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(frozen_precision, "ROUNDED_TO", torch.float32)
    opened = open_network(label)
    model = make_model(opened, "head")
    if frozen_prefix(model) is None:
        return
    run_frozen_in_bfloat16(model)
    with NoMixing():
        walk(model.move_to(CARD), opened)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_on_a_card(name: str, way: str) -> None:
    """A question whose loss, weights or targets stay on the host."""
    folder = open_folder(name)
    try:
        plan = load_plan(folder / "plan.yaml", list_overrides(QUESTIONS[name], way))
    except UserError:
        # docs/task-matrix.md has no such cell
        return
    backbone = plan_backbone(plan, folder)
    material = plan.task.material
    example = INPUTS[material].example(backbone.preprocess, plan.backbone, plan.task)
    probes = draw_probes(material, backbone.preprocess, example, 4)
    targets = probe_targets(plan, 4)
    model = plan_model(backbone, plan)
    with NoMixing():
        model.move_to(CARD)
        assert model.features(probes).device.type == "cpu"
        if way == "private steps":
            take_private_step(model, plan, probes, targets)
        elif plan.train.method == "steps":
            take_step(model, plan, probes, targets)
