"""Gradients of single answers, clipped and summed, against a loop over them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedgraft.client.privacy.dp_sgd import PrivateTraining, make_private
from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.model.grafted_model import graft
from fedgraft.common.model.token_features import TokenChoice
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.tasks.answer_sums import answer_losses
from fedgraft.common.tasks.generation import GENERATION
from tests.language_models import write_gpt2

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")
TASK = TaskSection(kind="text-generation", text=("question", "answer"), target="answer")
NORM = 0.05


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder: Path = write_gpt2(tmp_path_factory.mktemp("models") / "gpt2")
    return load_backbone("huggingface", weights=folder, max_length=24)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("method", ["lora", "bottleneck", "scale-shift", "bias"])
def test_the_clipped_sum_is_that_of_a_loop(method: str, mode: str, backbone: Backbone) -> None:
    """An answer's gradient is that of the mean over its tokens: one clip an answer, however many
    tokens it has, or ε would be that of a token.
    """
    tokens = backbone.preprocess(["Why?\nbecause", "What of the skin?\na rash", "No\nno"]).only
    choice = TokenChoice(tokens[:1], of_vocabulary=True)
    model = graft(backbone, method=method, classes=1, depths=choice, rank=2, width=3).double()
    generator = torch.Generator().manual_seed(0)
    for p in model.trainable_parameters().values():
        p.data.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64), alpha=0.1)
    targets = torch.where(tokens > 0, tokens, -1).roll(-1, 1)
    # of the last nothing is asked
    targets[2] = -1

    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for row in range(len(tokens)):
        loss = answer_losses(model(tokens[row : row + 1]), targets[row : row + 1]).sum()
        gradients = torch.autograd.grad(loss, parameters)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        expected += flat * min(1.0, NORM / (float(flat.norm()) + 1e-6))

    noiseless = Mechanism(0.0, 1.0, 1, 1.0, NORM, "example", mode)
    training = PrivateTraining(noiseless, answer_losses)
    with make_private(model, None, training, Randomness(b"seed")) as private:
        gradient = private.gradient(tokens, targets)
        found = torch.cat([gradient[p].flatten() for p in parameters])
    assert float((found - expected).norm()) < 1e-9


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_the_check_before_any_record_passes(mode: str, backbone: Backbone) -> None:
    """What a node tries before it trains, by the question's own probes."""
    example = backbone.preprocess(["a"])
    choice = TokenChoice(example.joined, of_vocabulary=True)
    model = graft(backbone, method="lora", classes=1, depths=choice, rank=2)
    probes = draw_probes("text", backbone.preprocess, example, 2).joined
    check_gradients(
        model, mode, probes, GENERATION.losses or answer_losses, GENERATION.probes(TASK)
    )


def test_nothing_of_the_head_is_trained_or_travels(backbone: Backbone) -> None:
    """The table of tokens is the backbone's: its fingerprint is that of the frozen part."""
    choice = TokenChoice(backbone.preprocess(["a"]).joined, of_vocabulary=True)
    model = graft(backbone, method="lora", classes=1, depths=choice, rank=2)
    assert model.frozen_fingerprint() == backbone.fingerprint
    assert not any("classifier" in name for name in model.adapter_state())
    merged = model.merge()
    tokens = backbone.preprocess(["Why?\nbecause"]).only
    assert torch.allclose(merged(tokens), model(tokens), atol=1e-5)
