"""What a rare class is judged by: against scikit-learn on the same predictions, merged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, recall_score, roc_curve

from fedgraft.common.tasks import task_line
from fedgraft.common.tasks.classification_sums import METRICS, sums_of, zero
from fedgraft.common.tasks.score_bins import bins_of, log_odds
from fedgraft.common.tasks.score_curves import sensitivities_at, sensitivity_errors

SEEDS = st.integers(0, 2**20)


def draw(
    count: int, seed: int, share: float = 0.05, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of two classes, the second rare, and the labels; at least one of each."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) < share).long()
    labels[:2] = torch.tensor([0, 1])
    scores = scale * (torch.randn(count, generator=generator) + labels - 2)
    return torch.stack([torch.zeros(count), scores], 1), labels


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 3000), seed=SEEDS, scale=st.sampled_from([0.0, 0.01, 1.0, 300.0]))
def test_average_precision_is_scikit_learns(count: int, seed: int, scale: float) -> None:
    """Of scores that are tied in bins to the last digits; of the exact scores within the bound that
    is told: a bound that is too small says more of a rare class than is known.
    """
    logits, labels = draw(count, seed, scale=scale)
    sums = sums_of(logits, labels)
    found = sums.summary()["auprc"]
    binned = bins_of(log_odds(logits.double()))[:, 1]
    assert found == pytest.approx(average_precision_score(labels, binned), abs=1e-12)
    exact = average_precision_score(labels, logits[:, 1])
    assert found is not None
    assert abs(found - exact) <= sums.auprc_resolution() + 1e-12


def test_the_bound_is_small_where_scores_are_spread() -> None:
    """A bound that is right and tells nothing."""
    logits, labels = draw(3000, 1, scale=2.0)
    assert sums_of(logits, labels).auprc_resolution() < 0.05


def test_the_bound_is_reached() -> None:
    """Everything in one bin: the exact order may be the best one, or the worst."""
    labels = torch.tensor([1, 1, 0, 0, 0])
    tied = torch.zeros(5)
    sums = sums_of(torch.stack([tied, tied], 1), labels)
    best = average_precision_score(labels, [5, 5, 1, 2, 3])
    worst = average_precision_score(labels, [1, 2, 3, 4, 5])
    found = sums.summary()["auprc"]
    assert found == pytest.approx(0.4)
    assert sums.auprc_resolution() == pytest.approx(max(best - 0.4, 0.4 - worst))


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 3000), seed=SEEDS, level=st.sampled_from([0.5, 0.9, 0.95]))
def test_sensitivity_at_a_specificity_is_that_of_the_curve(
    count: int, seed: int, level: float
) -> None:
    """A threshold that breaks the specificity that was promised, or a better one passed over."""
    logits, labels = draw(count, seed)
    sums = sums_of(logits, labels)

    def on_curve(scores: torch.Tensor) -> float:
        wrongly, found, _ = roc_curve(labels, scores, drop_intermediate=False)
        return float(found[1 - wrongly >= level].max())

    (_, found) = sensitivities_at(sums.positives, sums.negatives, level)
    (_, error) = sensitivity_errors(sums.positives, sums.negatives, level)
    assert found == pytest.approx(on_curve(bins_of(logits[:, 1].double())), abs=1e-12)
    exact = on_curve(logits[:, 1])
    assert found - 1e-12 <= exact <= found + error + 1e-12


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, classes=st.integers(2, 4), cut=st.integers(0, 200))
def test_answers_are_as_sensitive_as_scikit_learn_says(seed: int, classes: int, cut: int) -> None:
    """Rows and columns of the confusion mixed up; and sums of two nodes that are not the pool's."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(200, classes, generator=generator)
    labels = torch.arange(200) % classes
    parts = [sums_of(logits[:cut], labels[:cut]), sums_of(logits[cut:], labels[cut:])]
    summary = sum(parts, zero(classes)).summary()
    pooled = sums_of(logits, labels).summary()
    for name in ("auprc", "sensitivity", "specificity", "sensitivity_at_90", "sensitivity_at_95"):
        assert summary[name] == pooled[name]

    answers = logits.argmax(1)
    sensitive = []
    specific = []
    for number in range(classes):
        sensitive.append(recall_score(labels == number, answers == number))
        specific.append(recall_score(labels != number, answers != number))
    if classes == 2:
        assert summary["sensitivity"] == pytest.approx(sensitive[1])
        assert summary["specificity"] == pytest.approx(specific[1])
    else:
        assert summary["sensitivity"] == pytest.approx(np.mean(sensitive))
        assert summary["specificity"] == pytest.approx(np.mean(specific))


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_has_no_curve(label: int) -> None:
    """A hospital of sick people only, with an AUPRC of 1 that says nothing."""
    sums = sums_of(torch.randn(5, 2), torch.full((5,), label))
    summary = sums.summary()
    for name in ("auprc", "sensitivity_at_90", "sensitivity_at_95"):
        assert summary[name] is None
    assert sums.auprc_resolution() == 0
    absent = "sensitivity" if label == 0 else "specificity"
    assert summary[absent] is None


def test_noisy_counts_tell_sensitivity_and_nothing_of_scores() -> None:
    """Numbers of histograms that differential privacy did not let out."""
    sums = sums_of(*draw(100, 3)).only_counts(np.zeros(4))
    summary = sums.summary()
    assert summary["specificity"] is not None
    assert summary["auprc"] is None
    assert summary["sensitivity_at_90"] is None


def test_a_plan_can_name_what_sums_tell() -> None:
    """A metric that a plan may name, and that the end of the run does not know."""
    line = task_line("classification")
    assert set(line.metrics) | set(line.asked) == set(METRICS)
