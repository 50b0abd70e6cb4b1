"""Grades in an order: sums against scikit-learn, and closed forms against a slow way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, cohen_kappa_score, mean_absolute_error

from fedgraft.common.errors import Refused
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.statistics.gram_sums import Rounding, sum_records
from fedgraft.common.statistics.noisy_sums import sum_units
from fedgraft.common.statistics.ridge import solve_ridge, standardise
from fedgraft.common.tasks import TASKS

TASK = TASKS["ordinal"]
GRADES = ("none", "mild", "moderate", "severe")
SECTION = TaskSection(kind="image-ordinal", classes=GRADES)
BITS = Rounding(bound=64.0, bits=20)


def predictions(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 4, (n,), generator=generator)
    above = (truth[:, None] > torch.arange(3)).double()
    noise = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return 4 * above - 2 + 1.5 * noise, truth


@given(n=st.integers(2, 60), cut=st.integers(0, 60), seed=st.integers(0, 999))
def test_metrics_are_those_of_scikit_learn_however_records_are_dealt(
    n: int, cut: int, seed: int
) -> None:
    outputs, truth = predictions(n, seed)
    sums = TASK.zero(SECTION)
    for part in (slice(0, cut), slice(cut, None)):
        own = TASK.sums(outputs[part], truth[part], SECTION)
        assert TASK.read_sums(own.to_flat(), SECTION).to_flat() == own.to_flat()
        assert own.within(TASK.sums(outputs, truth, SECTION))
        sums = sums + own
    assert TASK.answer is not None
    named = TASK.answer(TASK.predict(outputs, SECTION), SECTION, None)
    answers = [GRADES.index(name) for name in named]
    metrics = sums.summary()
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, answers))
    assert metrics["grades_off"] == pytest.approx(mean_absolute_error(truth, answers))
    if metrics["kappa"] is not None and len(set(truth.tolist()) | set(answers)) > 1:
        expected = cohen_kappa_score(truth, answers, weights="quadratic", labels=range(4))
        assert metrics["kappa"] == pytest.approx(expected)
    assert sum(map(sum, sums.counts())) == n


@given(seed=st.integers(0, 999))
def test_probabilities_add_up_whatever_the_outputs(seed: int) -> None:
    """Thresholds out of order, and a grade of a probability below zero."""
    generator = torch.Generator().manual_seed(seed)
    told = TASK.predict(torch.randn(9, 3, generator=generator) * 5, SECTION)
    assert (told >= 0).all()
    torch.testing.assert_close(told.sum(1), torch.ones(9))


def test_the_loss_is_that_of_its_thresholds() -> None:
    outputs, truth = predictions(5, 1)
    assert TASK.losses is not None
    losses = TASK.losses(outputs, truth)
    for row in range(5):
        expected = 0.0
        for threshold in range(3):
            p = 1 / (1 + np.exp(-float(outputs[row, threshold])))
            expected -= np.log(p if int(truth[row]) > threshold else 1 - p)
        assert float(losses[row]) == pytest.approx(expected)


def test_a_record_of_another_site_counts_the_same() -> None:
    flat = TASK.sums(*predictions(9, 1), SECTION).to_flat()
    for change in ({"examples": 3}, {"loss": float("inf")}, {"confusion-at": [99]}, {"more": 1}):
        with pytest.raises(ValueError, match=r"."):
            TASK.read_sums(flat | change, SECTION)
    with pytest.raises(Refused):
        TASK.sums(torch.full((1, 3), float("nan")), torch.tensor([0]), SECTION)


def graded(n: int) -> tuple[np.ndarray, torch.Tensor]:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(n, 6))
    hidden = features @ rng.normal(size=6) + rng.logistic(size=n)
    return features, torch.from_numpy(np.digitize(hidden, [-2, 0, 2]))


def test_each_threshold_is_solved_as_the_two_sides_of_it() -> None:
    """Grades that lose their order in one round."""
    features, truth = graded(3000)
    closed = TASK.closed_form
    assert closed is not None
    targets = closed.targets(truth, SECTION)
    sums = sum_records(BITS.to_integers(features), targets, BITS.bits)
    closed.check(sums, SECTION)
    weights, bias = closed.head(solve_ridge(standardise(sums, BITS.unit)), SECTION, "shares")
    two = TASKS["classification"].closed_form
    assert two is not None
    sides = TaskSection(kind="image-classification", classes=("below", "above"))
    for threshold in range(3):
        above = two.targets((truth > threshold).long(), sides)
        own_sums = sum_records(BITS.to_integers(features), above, BITS.bits)
        own, shift = two.head(solve_ridge(standardise(own_sums, BITS.unit)), sides, "shares")
        np.testing.assert_allclose(weights[threshold], own[1] - own[0], rtol=1e-6)
        assert bias[threshold] == pytest.approx(shift[1] - shift[0], rel=1e-6)
    with pytest.raises(ValueError, match="no records have"):
        closed.check(sums.times(-1), SECTION)


def test_noisy_sums_without_noise_grade_nearly_as_well() -> None:
    features, truth = graded(4000)
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    closed = TASK.closed_form
    assert closed is not None
    assert closed.noisy is not None
    codes = closed.noisy.codes(truth, SECTION, "counted")
    sums = sum_units(features, codes, codes, np.ones(len(codes)))
    weights, bias = closed.noisy.head(sums, SECTION, "counted", "shares")
    outputs = torch.from_numpy(features @ weights.T + bias)
    assert TASK.sums(outputs, truth, SECTION).summary()["kappa"] > 0.4
