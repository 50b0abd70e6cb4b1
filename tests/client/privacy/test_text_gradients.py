"""Gradients of single texts, clipped and summed, against a loop over them, on every network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedgraft.client.privacy.dp_sgd import PrivateTraining, make_private
from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.privacy.one_pass import knows_layers
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import Refused
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.model.grafted_model import GraftedModel, graft
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.tasks.classification import cross_entropies
from tests.huggingface_folders import ARCHITECTURES, example_texts, write_folder

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")
METHODS = ("head", "lora", "bottleneck", "scale-shift", "bias")
LABELS = torch.tensor([0, 1, 2])


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    base = tmp_path_factory.mktemp("models")
    opened: dict[str, Backbone] = {}
    for name in ARCHITECTURES:
        folder: Path = write_folder(base / name, name)
        opened[name] = load_backbone("huggingface", weights=folder, max_length=16)
    return opened


def lively(backbone: Backbone, method: str) -> GraftedModel:
    """A float64 model whose adapters have left their first values."""
    model = graft(backbone, method=method, classes=3, rank=2, width=3).double()
    generator = torch.Generator().manual_seed(0)
    for p in model.trainable_parameters().values():
        p.data.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64), alpha=0.1)
    return model


def clipped_by_loop(model: GraftedModel, tokens: Tensor, norm: float) -> Tensor:
    """The clipped sum, flat: one text at a time."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for row in range(len(tokens)):
        loss = cross_entropies(model(tokens[row : row + 1]), LABELS[row : row + 1]).sum()
        gradients = torch.autograd.grad(loss, parameters)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        total += flat * min(1.0, norm / (float(flat.norm()) + 1e-6))
    return total


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_clipped_sum_is_that_of_a_loop(
    architecture: str, method: str, mode: str, backbones: dict[str, Backbone]
) -> None:
    """A gradient that is missing in a norm is clipped too little, and ε is another than is said."""
    backbone = backbones[architecture]
    model = lively(backbone, method)
    tokens = backbone.preprocess(example_texts()).only
    norm = 0.05
    mechanism = Mechanism(0.0, 1.0, 1, 1.0, norm, "example", mode)
    training = PrivateTraining(mechanism, cross_entropies)
    with make_private(model, None, training, Randomness(b"none")) as private:
        gradient = private.gradient(tokens, LABELS)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.cat([gradient[p].flatten() for p in parameters])
    expected = clipped_by_loop(model, tokens, norm)
    assert float((ours - expected).norm()) < 1e-6 * float(expected.norm())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_nodes_own_check_passes(
    architecture: str, method: str, backbones: dict[str, Backbone]
) -> None:
    """A node that refuses what works; with our own pass, not Opacus's, which is slower."""
    backbone = backbones[architecture]
    model = graft(backbone, method=method, classes=3, rank=2)
    example = backbone.preprocess(["fever"])
    probes = draw_probes("text", backbone.preprocess, example, 2).only
    check_gradients(model, "hooks", probes, cross_entropies)
    assert knows_layers(model)


def test_a_network_that_is_trained_as_a_whole_is_refused_in_words(
    backbones: dict[str, Backbone],
) -> None:
    """T5's norms are no layer that anybody here knows the gradients of."""
    backbone = backbones["t5"]
    model = graft(backbone, method="full", classes=3)
    probes = draw_probes("text", backbone.preprocess, backbone.preprocess(["a"]), 2).only
    with pytest.raises(Refused, match=r"adapter full[\s\S]*write adapter\.method: lora"):
        check_gradients(model, "hooks", probes, cross_entropies)
