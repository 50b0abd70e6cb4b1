"""Thresholds between two classes, out of merged histograms of scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, roc_curve

from fedgraft.common.tasks.classification_sums import sums_of
from fedgraft.common.tasks.operating_point import EVEN, answer_from, choose_point
from fedgraft.common.tasks.score_bins import bins_of


def draw(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of two classes, the second one rare, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) < 0.1).long()
    labels[:2] = torch.tensor([0, 1])
    scores = torch.randn(count, generator=generator) * 2 + 2 * labels - 3
    return torch.stack([torch.zeros(count), scores], 1), labels


@settings(max_examples=50, deadline=None)
@given(count=st.integers(2, 2000), seed=st.integers(0, 2**20), bin_=st.integers(0, 1024))
def test_answers_from_a_bin_are_those_by_hand(count: int, seed: int, bin_: int) -> None:
    """Sensitivity on tests that no answer of the model has."""
    logits, labels = draw(count, seed)
    answers = bins_of(logits[:, 1].double()) >= bin_
    moved = answer_from(sums_of(logits, labels), bin_)
    np.testing.assert_array_equal(
        moved.confusion, confusion_matrix(labels, answers.long(), labels=[0, 1])
    )
    assert moved.summary()["auroc"] == sums_of(logits, labels).summary()["auroc"]
    even = answer_from(sums_of(logits, labels), EVEN)
    np.testing.assert_array_equal(even.confusion, sums_of(logits, labels).confusion)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(20, 2000), seed=st.integers(0, 2**20), level=st.floats(0.05, 0.95))
def test_points_are_as_good_as_scikit_learns(count: int, seed: int, level: float) -> None:
    """A point that misses what was asked for, or a better one that was passed over."""
    logits, labels = draw(count, seed)
    sums = sums_of(logits, labels)
    # scores that are counted as one cannot be parted
    scores = bins_of(logits[:, 1].double())
    false_positives, true_positives, _ = roc_curve(labels, scores, drop_intermediate=False)
    specificities = 1 - false_positives

    youden = choose_point(sums)
    best = (true_positives + specificities).max()
    assert youden.sensitivity + youden.specificity == pytest.approx(best, abs=1e-12)

    sensitive = choose_point(sums, sensitivity=level)
    assert sensitive.sensitivity >= level
    assert sensitive.specificity == pytest.approx(specificities[true_positives >= level].max())
    specific = choose_point(sums, specificity=level)
    assert specific.specificity >= level
    assert specific.sensitivity == pytest.approx(true_positives[specificities >= level].max())


def test_where_nothing_parts_them_it_stays_at_even_odds() -> None:
    """Perfect scores: any threshold between them is as good, and 0.5 is what people expect."""
    logits = torch.tensor([[0.0, -9.0], [0.0, -8.0], [0.0, 9.0]])
    point = choose_point(sums_of(logits, torch.tensor([0, 0, 1])))
    assert point.score_bin == EVEN
    assert point.threshold == 0.5


def test_records_of_one_class_have_no_point() -> None:
    """A threshold that rests on nobody."""
    logits = torch.zeros(5, 2)
    with pytest.raises(ValueError, match="two classes"):
        choose_point(sums_of(logits, torch.zeros(5, dtype=torch.long)))
    with pytest.raises(ValueError, match="two classes"):
        choose_point(sums_of(torch.zeros(3, 3), torch.tensor([0, 1, 2])))
