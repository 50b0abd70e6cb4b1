"""Several labels a record: targets, sums against scikit-learn, closed forms with missing labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from fedgraft.common.errors import Refused, UserError
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.statistics.gram_sums import Rounding, sum_records
from fedgraft.common.statistics.noisy_sums import sum_units
from fedgraft.common.statistics.ridge import solve_ridge, standardise
from fedgraft.common.tasks import TASKS
from fedgraft.common.tasks.multilabel_sums import EVEN
from fedgraft.common.tasks.score_bins import bins_of
from tests.labelled import Source

TASK = TASKS["multilabel"]
CLASSES = ("edema", "mass", "effusion")
SECTION = TaskSection(kind="image-multilabel", classes=CLASSES)
COLUMNS = TaskSection(kind="image-multilabel", classes=CLASSES, targets=CLASSES)
BITS = Rounding(bound=64.0, bits=20)


def predictions(n: int, seed: int, missing: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 2, (n, 3), generator=generator)
    outputs = 2 * truth - 1 + torch.randn(n, 3, generator=generator, dtype=torch.float64)
    truth[torch.rand(n, 3, generator=generator) < missing] = -1
    # one label of each record is known
    truth[:, 0] = truth[:, 0].clamp(min=0)
    return outputs, truth


def test_labels_by_name_by_column_and_by_array() -> None:
    """A finding read as another; an empty cell taken for a healthy record."""
    named = TASK.targets(Source(["edema|mass", "none", "effusion", "No Finding"]), SECTION)
    assert named.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]]
    cells = TASK.targets(Source(["1||0", "1.0|0.0|-1", "||", "yes|no|?"]), COLUMNS)
    assert cells.tolist() == [[1, -1, 0], [1, 0, -1], [-1, -1, -1], [1, 0, -1]]
    assert TASK.targets(Source(["0|1|1"]), SECTION).tolist() == [[0, 1, 1]]
    assert TASK.count(cells, COLUMNS).tolist() == [3, 0, 0]
    # by the rarest that a record has; a record of which nothing is known is none of the task
    assert TASK.strata(named, SECTION).tolist() == [1, 0, 3, 0]
    assert TASK.strata(cells, COLUMNS)[2] == -1
    assert TASK.answer is not None
    told = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.1, 0.1]])
    assert TASK.answer(told, SECTION, None) == ["edema|effusion", "none"]


@pytest.mark.parametrize(
    ("label", "section", "words"),
    [
        ("edema|fracture", SECTION, "label 'fracture' is none of the plan's"),
        ("1|2|0", COLUMNS, "'2' among the columns of labels"),
    ],
)
def test_what_is_no_label(label: str, section: TaskSection, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        TASK.targets(Source([label]), section)
    assert caught.value.where
    assert caught.value.remedy


@given(n=st.integers(4, 80), cut=st.integers(0, 80), seed=st.integers(0, 999))
def test_metrics_are_those_of_scikit_learn_however_records_are_dealt(
    n: int, cut: int, seed: int
) -> None:
    """An unknown label counted as absent; areas that do not merge."""
    outputs, truth = predictions(n, seed)
    sums = TASK.zero(SECTION)
    for part in (slice(0, cut), slice(cut, None)):
        own = TASK.sums(outputs[part], truth[part], SECTION)
        assert TASK.read_sums(own.to_flat(), SECTION).to_flat() == own.to_flat()
        sums = sums + own
    areas = []
    precisions = []
    f1s = []
    for label in range(3):
        known = truth[:, label] >= 0
        true = truth[known, label].numpy()
        # two scores in one bin are equal
        scores = bins_of(outputs[known, label]).numpy()
        if 0 < true.sum() < len(true):
            areas.append(roc_auc_score(true, scores))
            precisions.append(average_precision_score(true, scores))
        if true.any() or (scores >= EVEN).any():
            f1s.append(f1_score(true, scores >= EVEN))
    metrics = sums.summary()
    for key, expected in (("auroc", areas), ("auprc", precisions), ("f1", f1s)):
        if expected:
            assert metrics[key] == pytest.approx(np.mean(expected), rel=1e-9)
        else:
            assert metrics[key] is None
    assert TASK.losses is not None
    assert metrics["loss"] == pytest.approx(float(TASK.losses(outputs, truth).mean()), rel=1e-9)


def test_an_unknown_label_has_no_gradient() -> None:
    """A label that nobody looked for, trained as if it were absent."""
    outputs = torch.zeros(1, 3, requires_grad=True)
    TASK.loss(outputs, torch.tensor([[1, -1, 0]])).backward()
    assert outputs.grad is not None
    assert outputs.grad[0].tolist() == [-0.25, 0.0, 0.25]


def test_counts_alone_with_noise() -> None:
    """Scores released beside counts; noise below what k labels of a record need."""
    sums = TASK.sums(*predictions(50, 1), SECTION)
    bare = sums.only_counts(np.zeros(sums.cells))
    assert bare.summary()["f1"] == pytest.approx(sums.summary()["f1"])
    assert bare.summary()["auroc"] is None
    assert bare.loss == 0
    # a record of three labels moves the counts by √3: so far is the noise from what was drawn
    moved = sums.only_counts(np.full(sums.cells, 100.0)).counts_by_label() - sums.counts_by_label()
    assert set(moved.flatten().tolist()) == {173}
    assert TASK.read_sums(bare.to_flat(), SECTION).to_flat() == bare.to_flat()


BAD: dict[str, dict[str, Any]] = {
    "a key too many": {"more": 1},
    "fewer records than labels": {"examples": 1},
    "a loss below zero": {"loss": -1.0},
    "positions out of order": {"positives-at": [2, 1], "positives": [1, 1]},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_sums_that_no_predictions_give(change: dict[str, Any]) -> None:
    flat = TASK.sums(*predictions(20, 2), SECTION).to_flat() | change
    with pytest.raises(ValueError, match=r"."):
        TASK.read_sums(flat, SECTION)


def test_outputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(Refused):
        TASK.sums(torch.full((1, 3), float("inf")), torch.zeros(1, 3), SECTION)


def records(n: int, missing: float) -> tuple[np.ndarray, torch.Tensor]:
    """Features, and labels that follow from them, some of them not known."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(n, 8))
    scores = features @ rng.normal(size=(8, 3)) - [0, 1, 2]
    truth = (rng.random((n, 3)) < 1 / (1 + np.exp(-scores))).astype(np.int64)
    truth[rng.random((n, 3)) < missing] = -1
    return features, torch.from_numpy(truth)


def solve(features: np.ndarray, truth: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    closed = TASK.closed_form
    assert closed is not None
    targets = closed.targets(truth, SECTION)
    sums = sum_records(BITS.to_integers(features), targets, BITS.bits)
    closed.check(sums, SECTION)
    return closed.head(solve_ridge(standardise(sums, BITS.unit)), SECTION, "shares")


def test_each_label_is_solved_as_if_it_were_alone() -> None:
    """Labels that spoil one another's head, or probabilities that are none."""
    features, truth = records(3000, 0.0)
    weights, bias = solve(features, truth)
    two = TASKS["classification"].closed_form
    assert two is not None
    alone = TaskSection(kind="image-classification", classes=("no", "yes"))
    for label in range(3):
        targets = two.targets(truth[:, label], alone)
        sums = sum_records(BITS.to_integers(features), targets, BITS.bits)
        own, shift = two.head(solve_ridge(standardise(sums, BITS.unit)), alone, "shares")
        np.testing.assert_allclose(weights[label], own[1] - own[0], rtol=1e-6)
        assert bias[label] == pytest.approx(shift[1] - shift[0], rel=1e-6)
        told = 1 / (1 + np.exp(-(features @ weights[label] + bias[label])))
        assert told.mean() == pytest.approx(float(truth[:, label].double().mean()), abs=0.02)


def test_missing_labels_change_little_and_a_label_without_records_nothing() -> None:
    """Unknown taken for absent: probabilities fall by the share that is missing."""
    features, truth = records(6000, 0.0)
    whole, _ = solve(features, truth)
    _, thinned = records(6000, 0.5)
    weights, bias = solve(features, thinned)
    for label in range(3):
        cosine = whole[label] @ weights[label]
        cosine /= np.linalg.norm(whole[label]) * np.linalg.norm(weights[label])
        assert cosine > 0.99
        told = 1 / (1 + np.exp(-(features @ weights[label] + bias[label])))
        assert told.mean() == pytest.approx(float(truth[:, label].double().mean()), abs=0.03)
    thinned[:, 2] = -1
    weights, bias = solve(features, thinned)
    assert not weights[2].any()
    assert bias[2] == 0
    thinned[:, 1] = 0
    weights, bias = solve(features, thinned)
    assert not weights[1].any()
    assert bias[1] < -10


def test_noisy_sums_without_noise_order_records_as_well() -> None:
    features, truth = records(4000, 0.2)
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    closed = TASK.closed_form
    assert closed is not None
    assert closed.noisy is not None
    codes = closed.noisy.codes(truth, SECTION, "counted")
    assert (np.linalg.norm(codes, axis=1) <= 1 + 1e-12).all()
    sums = sum_units(features, codes, codes, np.ones(len(codes)))
    weights, bias = closed.noisy.head(sums, SECTION, "counted", "shares")
    metrics = TASK.sums(torch.from_numpy(features @ weights.T + bias), truth, SECTION).summary()
    exact, shift = solve(features, truth)
    best = TASK.sums(torch.from_numpy(features @ exact.T + shift), truth, SECTION).summary()
    assert metrics["auroc"] > best["auroc"] - 0.02
