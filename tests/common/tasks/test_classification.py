"""The question of classes: losses, shares, targets out of a hospital's labels, and words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.common.errors import UserError
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks import TASKS
from fedgraft.common.tasks.labels import Label
from tests.labelled import Source

TASK = TASKS["classification"]


def section(**changes: object) -> TaskSection:
    """Two classes of images, with some of it replaced."""
    return TaskSection.model_validate(
        {"kind": "image-classification", "classes": ("healthy", "sick"), **changes}
    )


@given(seed=st.integers(0, 999), n=st.integers(1, 9), classes=st.integers(2, 6))
def test_the_loss_is_the_mean_of_the_examples_losses(seed: int, n: int, classes: int) -> None:
    """Two losses that part ways: what is trained and what a private step clips."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (n,), generator=generator)
    assert TASK.losses is not None
    losses = TASK.losses(logits, labels)
    by_hand = [-float(logits[i].log_softmax(0)[labels[i]]) for i in range(n)]
    np.testing.assert_allclose(losses, by_hand, rtol=1e-12)
    assert torch.isclose(TASK.loss(logits, labels), losses.mean())


def test_the_shares_of_a_nodes_own_classes() -> None:
    """Shares of another order or length, added to the wrong outputs."""
    three = section(classes=("a", "b", "c"))
    assert TASK.balance is not None
    shares = TASK.balance(torch.tensor([0, 0, 0, 1]), three).exp()
    assert shares.tolist() == pytest.approx([0.75, 0.25, 0.0])
    # a node without records: no share of anything, and no division by zero
    assert TASK.balance(torch.tensor([], dtype=torch.int64), three).tolist() == [-np.inf] * 3


@pytest.mark.parametrize(
    ("labels", "given_labels", "targets"),
    [
        (None, [0, 1, 1], [0, 1, 1]),
        (None, ["sick", 0, "healthy"], [1, 0, 0]),
        ((7, "ill"), [7, "ill", 3, "7.5"], [0, 1, -1, -1]),
        (("1", 0), [0, 1], [1, 0]),
        (("0.0", 1), [0, 1], [0, 1]),
    ],
)
def test_targets(
    labels: tuple[Label, ...] | None, given_labels: list[Label], targets: list[int]
) -> None:
    """A label taken for another class; a record of none of the plan's labels that is trained on."""
    numbers = TASK.targets(Source(given_labels), section(labels=labels))
    assert numbers.dtype == np.int64
    assert numbers.tolist() == targets
    assert TASK.strata(numbers, section(labels=labels)).tolist() == targets


def test_a_label_that_is_none_is_shown_with_its_place() -> None:
    """A third class in one hospital's file, trained as class 0 or met with a traceback."""
    with pytest.raises(UserError) as caught:
        TASK.targets(Source([0, 1, 9, *range(20, 40)]), section())
    assert caught.value.where == "north.csv:4"
    assert caught.value.what == "label 9 is not one of the plan's 2 classes"
    assert "labels 0, 1, 9, 20" in caught.value.remedy
    assert "…" in caught.value.remedy
    assert "classes healthy, sick" in caught.value.remedy


def test_outputs_and_predictions_belong_together() -> None:
    """Probabilities that do not add up, or columns in another order than the head's outputs."""
    task = section()
    assert TASK.outputs(task) == len(TASK.columns(task)) == 2
    assert TASK.columns(task) == ("p_healthy", "p_sick")
    assert TASK.counted(task) == ("healthy", "sick")
    assert TASK.describe(task) == "to tell apart: healthy, sick"
    told = TASK.predict(torch.tensor([[0.0, 3.0], [1.0, 1.0]]), task)
    torch.testing.assert_close(told.sum(dim=1), torch.ones(2))
    assert told[0, 1] > 0.9
    assert TASK.answer is not None
    assert TASK.answer(told, task, None) == ["sick", "healthy"]
    assert TASK.answer(told, task, 0.5) == ["sick", "sick"]


def test_sums_come_back_from_the_wire_by_the_plans_classes() -> None:
    """Sums of a batch, of nothing, and of another plan's classes."""
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
    sums = TASK.zero(section()) + TASK.sums(logits, torch.tensor([0, 1, 1]), section())
    assert sums.examples == 3
    back = TASK.read_sums(sums.to_flat(), section())
    assert back.to_flat() == sums.to_flat()
    assert back.summary()["accuracy"] == pytest.approx(2 / 3)
    three = section(classes=("a", "b", "c"))
    with pytest.raises(ValueError, match="disagree"):
        TASK.read_sums(sums.to_flat(), three)


@given(
    seed=st.integers(0, 999),
    part=st.integers(0, 12),
    classes=st.integers(2, 4),
)
def test_a_part_is_within_the_whole(seed: int, part: int, classes: int) -> None:
    """A group of people with more in it than all of a node's records; or one refused in vain."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(12, classes, generator=generator)
    labels = torch.randint(0, classes, (12,), generator=generator)
    task = section(classes=tuple("abcd"[:classes]))
    some = TASK.sums(logits[:part], labels[:part], task)
    everybody = TASK.sums(logits, labels, task)
    assert some.within(everybody)
    assert everybody.within(some) == (part == 12)


def test_counts_alone_with_noise() -> None:
    """Counts below zero, or anything beside the counts, released without noise."""
    sums = TASK.sums(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), section())
    assert sums.cells == 4
    noisy = sums.only_counts(np.array([0.4, 2.6, -7.0, -0.6]))
    assert noisy.confusion.tolist() == [[1, 3], [0, 0]]
    assert noisy.examples == 4
    assert noisy.loss == 0
    assert not noisy.positives.any()
    assert not noisy.calibration.any()
    assert noisy.summary()["auroc"] is None
    # and they pass the check of what came over the wire
    assert TASK.read_sums(noisy.to_flat(), section()).examples == 4
