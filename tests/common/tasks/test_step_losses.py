"""Losses that turn to the rare and the hard: against torch, torchvision and slow loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torchvision.ops import sigmoid_focal_loss

from fedgraft.client.training.local_steps import loss_of
from fedgraft.common.errors import UserError
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import amended, load_plan
from fedgraft.common.tasks.step_losses import clipped_losses, inverse_shares

WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 4.0, 3.0])


def plan_of(*changes: str) -> Plan:
    """Digits, five classes."""
    return amended(load_plan("digits"), list(changes))


def draw(seed: int, classes: int = 5, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(40, classes, generator=generator)
    return logits, torch.randint(0, classes, (40,), generator=generator)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), gamma=st.floats(0, 5), scale=st.sampled_from([0.1, 3.0, 30.0]))
def test_two_classes_have_torchvisions_focal_loss(seed: int, gamma: float, scale: float) -> None:
    """Another exponent, or p of the wrong class: easy examples that count most."""
    losses = clipped_losses(*_sections(f"train.focal.gamma={gamma}"))
    assert losses is not None
    logits, labels = draw(seed, classes=2, scale=scale)
    logits = logits.double()
    theirs = sigmoid_focal_loss(logits[:, 1] - logits[:, 0], labels.double(), alpha=-1, gamma=gamma)
    torch.testing.assert_close(losses(logits, labels), theirs, rtol=1e-7, atol=1e-9)


def _sections(*changes: str):
    plan = plan_of("train.loss=focal", *changes)
    return plan.task, plan.train


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_losses_are_those_of_the_formula(gamma: float) -> None:
    """Lin et al. 2017, eq. 5, an example at a time, for five classes."""
    weights = "train.class_weights=[1, 2, 0.5, 4, 3]"
    losses = clipped_losses(*_sections(f"train.focal.gamma={gamma}", weights))
    assert losses is not None
    logits, labels = draw(0)
    found = losses(logits, labels)
    for row, label in enumerate(labels.tolist()):
        p = float(logits[row].double().softmax(0)[label])
        wanted = float(WEIGHTS[label]) / 4 * (1 - p) ** gamma * -np.log(p)
        assert float(found[row]) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_a_model_that_is_sure_has_a_gradient_that_is_finite(gamma: float) -> None:
    """NaN out of 0 · ∞: nothing would leave the node any more."""
    losses = clipped_losses(*_sections(f"train.focal.gamma={gamma}"))
    assert losses is not None
    logits = torch.tensor([[200.0, 0, 0, 0, 0], [-200.0, 0, 0, 0, 0]], requires_grad=True)
    losses(logits, torch.tensor([0, 0])).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_weights_are_torchs(seed: int) -> None:
    """A weight of another class; a mean over weights, that one rare example turns over."""
    plan = plan_of("train.class_weights=[1, 2, 0.5, 4, 3]")
    logits, labels = draw(seed)
    theirs = F.cross_entropy(logits, labels, weight=WEIGHTS, reduction="none")
    private = clipped_losses(plan.task, plan.train)
    assert private is not None
    torch.testing.assert_close(private(logits, labels), theirs / 4)
    torch.testing.assert_close(loss_of(plan, labels)(logits, labels), theirs.mean())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), classes=st.integers(2, 5))
def test_inverse_weights_are_scikit_learns(seed: int, classes: int) -> None:
    """A rare class that counts less than it should, or an absent one that divides by zero."""
    _, labels = draw(seed, classes)
    present = np.unique(labels)
    theirs = compute_class_weight("balanced", classes=present, y=labels.numpy())
    found = inverse_shares(labels, 5)
    np.testing.assert_allclose(found[present], theirs, rtol=1e-6)
    assert float(found[labels].mean()) == pytest.approx(1)
    assert float(found.sum()) == pytest.approx(theirs.sum(), rel=1e-5)
    assert not inverse_shares(torch.empty(0, dtype=torch.int64), 3).any()


def test_a_plain_plan_has_the_loss_that_it_had() -> None:
    """Bits of earlier runs that change for nothing."""
    plan = plan_of()
    logits, labels = draw(1)
    assert loss_of(plan, labels) is F.cross_entropy
    neutral = loss_of(plan_of("train.class_weights=[1, 1, 1, 1, 1]"), labels)
    torch.testing.assert_close(neutral(logits, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["train.class_weights=[1, 2]"], "2 weights for 5 classes"),
        (["train.class_weights=[1, 2, 3, 4, 0]"], "greater than 0"),
        (["train.class_weights=inverse", "train.loss=balanced"], "already"),
        (
            ["train.class_weights=inverse", "privacy={mode: sample, target_epsilon: 1}"],
            "without noise",
        ),
    ],
)
def test_weights_that_cannot_be(changes: list[str], words: str) -> None:
    """Shares of a hospital's classes in every noisy step; weights that nobody uses."""
    with pytest.raises(UserError, match=words):
        plan_of(*changes)


def test_stated_weights_go_with_differential_privacy() -> None:
    """They tell of nobody."""
    private = "privacy={mode: sample, target_epsilon: 1}"
    plan = plan_of("train.class_weights=[1, 1, 1, 1, 9]", "train.loss=focal", private)
    assert plan.train.class_weights == (1, 1, 1, 1, 9)
