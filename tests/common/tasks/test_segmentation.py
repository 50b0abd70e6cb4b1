"""Masks as a question: losses against MONAI, cuts of a closed form against trying every cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.statistics.gram_sums import Rounding, sum_records
from fedgraft.common.statistics.ridge import solve_ridge, standardise
from fedgraft.common.tasks.class_head import one_hot
from fedgraft.common.tasks.mask_closed_form import choose_cuts, soft_dice, solve_masks
from fedgraft.common.tasks.segmentation import highest_class, mask_losses, tell_shares

TASK = TaskSection(kind="image-segmentation", classes=("background", "one", "two"))


def test_the_loss_is_monais_and_parts_by_image() -> None:
    """A Dice over the whole batch would let one image change another's gradient."""
    losses = pytest.importorskip("monai.losses")
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 3, 9, 7, generator=generator)
    masks = torch.randint(0, 3, (4, 9, 7), generator=generator).to(torch.uint8)
    reference = losses.DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0
    )
    found = mask_losses(logits, masks)
    for number in range(4):
        one = slice(number, number + 1)
        target = masks[one, None].long()
        # its cross-entropy counts the background, as here; its Dice does not
        entropy = torch.nn.functional.cross_entropy(logits[one], masks[one].long())
        dice = reference.dice(logits[one], target)
        assert float(found[number]) == pytest.approx(float(entropy + dice), abs=1e-5)
        assert float(mask_losses(logits[one], masks[one])) == pytest.approx(float(found[number]))


def draw_places(n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Features of places, one in each of forty bins of what they show, and a class that is rare:
    ridge scores are the class's share in a bin.
    """
    rng = np.random.default_rng(3)
    answers = (rng.random(n) < 0.15).astype(np.int64)
    shown = rng.normal(size=n) + 2.5 * answers
    bins = np.clip((shown + 3) * 5, 0, 39).astype(int)
    return np.eye(40)[bins], answers


def test_the_cut_of_a_closed_form_has_nearly_the_best_dice_of_all_cuts() -> None:
    """Chosen from training sums alone: at even odds of a rare class half of it would be missed."""
    features, answers = draw_places()
    task = TaskSection(kind="image-segmentation", classes=("background", "one"))
    rounding = Rounding(16.0, 16)
    targets = one_hot(torch.from_numpy(answers), task)
    sums = sum_records(rounding.to_integers(features), targets, rounding.bits)
    solution = solve_ridge(standardise(sums, rounding.unit))
    weights, bias = solution.head()
    scores = features @ weights[1] + bias[1]

    def dice_from(cut: float) -> float:
        predicted = scores > cut
        return float(2 * (predicted & (answers == 1)).sum() / (predicted.sum() + answers.sum()))

    # the soft Dice that sums tell is that of the scores themselves
    soft = 2 * (scores * answers).sum() / (scores.sum() + answers.sum())
    assert soft_dice(solution)[1] == pytest.approx(soft, abs=1e-3)
    cut = float(choose_cuts(solution)[1])
    best = max(dice_from(each) for each in np.arange(0.05, 0.95, 0.01))
    assert dice_from(cut) > best - 0.02
    assert dice_from(cut) >= dice_from(0.5)

    # the head answers by this cut
    head, shift = solve_masks(solution, task, "shares")
    logits = features @ head.T + shift
    assert np.array_equal(logits.argmax(1), (scores > cut).astype(np.int64))


def test_a_class_that_no_place_has_is_never_answered() -> None:
    features, answers = draw_places(2000)
    rounding = Rounding(16.0, 16)
    targets = one_hot(torch.from_numpy(answers), TASK)
    sums = sum_records(rounding.to_integers(features), targets, rounding.bits)
    head, shift = solve_masks(solve_ridge(standardise(sums, rounding.unit)), TASK, "shares")
    assert np.isfinite(head).all()
    assert 2 not in (features @ head.T + shift).argmax(1)


def test_shares_and_strata() -> None:
    """What is told of an image, and by what images are dealt."""
    logits = torch.zeros(2, 3, 2, 2)
    logits[0, 2, 0, 0] = 1.0
    assert tell_shares(logits, TASK).tolist() == [[0.75, 0.0, 0.25], [1.0, 0.0, 0.0]]
    present = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]])
    assert highest_class(present, TASK).tolist() == [0, 1, 2, 2]
