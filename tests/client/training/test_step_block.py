"""How many examples a card takes at once: chosen once, kept, and without a trace in what is
trained.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedgraft.client.open_on_card import probe_targets
from fedgraft.client.privacy.dp_sgd import PrivateTraining, make_private
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.training.local_steps import LocalTraining, add_gradients
from fedgraft.client.training.step_block import FOLDER, choose_block, keep_block
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import Refused
from fedgraft.common.inputs import INPUTS
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.model.assembly import plan_backbone, plan_model
from fedgraft.common.model.grafted_model import graft
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.tasks import TASKS
from fedgraft.common.tasks.classification import cross_entropies
from tests.task_matrix import QUESTIONS, list_overrides, open_folder


def card_of(room: int, asked: list[int]):  # type: ignore[no-untyped-def]
    """Return a step on a card with room for so many examples."""

    def step(count: int) -> None:
        asked.append(count)
        if count > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return step


@pytest.mark.parametrize(("room", "block"), [(64, 48), (48, 48), (47, 24), (5, 3), (1, 1)])
def test_the_largest_that_fits(room: int, block: int) -> None:
    assert choose_block(48, card_of(room, [])) == block


def test_no_room_at_all_is_told() -> None:
    with pytest.raises(Refused, match="device: cpu"):
        choose_block(32, card_of(0, []))


def test_it_is_chosen_once(tmp_path: Path) -> None:
    """Another block in the next process, since somebody else uses the card: other last bits."""
    asked: list[int] = []
    for room in (8, 64):
        choose = partial(choose_block, 32, card_of(room, asked))
        assert keep_block(tmp_path, "sha256:a", "cuda:0, A100", choose) == 8
    assert asked == [32, 16, 8]
    (file,) = (tmp_path / FOLDER).iterdir()
    assert json.loads(file.read_text())["block"] == 8
    file.write_text("{")
    choose = partial(choose_block, 32, card_of(64, asked))
    assert keep_block(tmp_path, "sha256:a", "cuda:0, A100", choose) == 32
    assert keep_block(tmp_path, "sha256:b", "cuda:0, A100", lambda: 4) == 4
    assert keep_block(tmp_path, "sha256:a", "cuda:0, H100", lambda: 2) == 2


def test_gradients_of_blocks_add_up_to_the_batchs() -> None:
    """A last block that is smaller and weighs as much as the others."""
    model = nn.Linear(6, 3).double()
    x = torch.randn(23, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(23) % 3

    def train(block: int | None) -> tuple[float, Tensor]:
        model.zero_grad()
        training = LocalTraining(1, 23, nn.functional.cross_entropy, block=block)
        loss = add_gradients(_Called(model), Batch({"x": x}), targets, training)
        assert model.weight.grad is not None
        return loss, model.weight.grad.clone()

    whole, expected = train(None)
    for block in (1, 5, 8, 22, 23, 99):
        loss, gradient = train(block)
        assert loss == pytest.approx(whole, rel=1e-12)
        torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-12)


class _Called(nn.Module):
    """A layer that is called with a batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Batch) -> Tensor:
        return self.inner(batch.only)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_clipped_sums_of_blocks_add_up_to_the_lots(mode: str) -> None:
    """Noise once for each block, or an example clipped by another bound."""
    model = graft(load_backbone("mlp", columns=5, hidden=(8, 8), seed=1), method="lora", classes=2)
    x = torch.randn(21, 5, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(21) % 2
    mechanism = Mechanism(1.3, 1.0, 1, 4.0, 0.1, "example", mode)

    def release(block: int | None) -> Tensor:
        training = PrivateTraining(mechanism, cross_entropies, block=block)
        with make_private(model, None, training, Randomness(b"x" * 32)) as private:
            return torch.cat([g.flatten() for g in private.gradient(x, targets).values()])

    for block in (1, 4, 20):
        torch.testing.assert_close(release(block), release(None), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_loss_that_is_taken_in_blocks_is_the_mean_of_its_examples(name: str) -> None:
    """A question whose loss divides by what is in a batch: blocks would weigh it otherwise."""
    folder = open_folder(name)
    plan = load_plan(folder / "plan.yaml", list_overrides(QUESTIONS[name], QUESTIONS[name].steps))
    question = TASKS[plan.task.question]
    backbone = plan_backbone(plan, folder)
    example = INPUTS[plan.task.material].example(backbone.preprocess, plan.backbone, plan.task)
    probes = draw_probes(plan.task.material, backbone.preprocess, example, 6)
    targets = probe_targets(plan, 6)
    outputs = plan_model(backbone, plan)(probes)
    assert question.losses is not None
    mean = question.losses(outputs, targets).mean()
    torch.testing.assert_close(question.loss(outputs, targets), mean, atol=1e-5, rtol=1e-5)
