"""A number as an answer: targets, sums against scikit-learn, closed forms against a solver."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from fedgraft.common.errors import Refused, UserError
from fedgraft.common.plan.number_section import NumberSection
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.statistics.gram_sums import Rounding, sum_records
from fedgraft.common.statistics.noisy_sums import sum_units
from fedgraft.common.statistics.ridge import solve_ridge, standardise
from fedgraft.common.tasks import TASKS
from tests.labelled import Source

TASK = TASKS["regression"]
SECTION = TaskSection(
    kind="tabular-regression",
    columns=("x",),
    target="days",
    number=NumberSection(low=0, high=60, unit="days"),
)
BITS = Rounding(bound=64.0, bits=20)


def predictions(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(n, 1, generator=generator, dtype=torch.float64) * 2 - 1
    outputs = truth + torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return outputs, truth


def test_numbers_in_parts_of_their_range() -> None:
    """A number beyond the range that moves sums without a bound; one in another unit."""
    targets = TASK.targets(Source([0, 60, "30.0", "45", 99, -7]), SECTION)
    assert targets.dtype == np.float32
    assert targets[:, 0].tolist() == [-1, 1, 0, 0.5, 1, -1]
    assert TASK.predict(torch.from_numpy(targets), SECTION)[:, 0].tolist() == [0, 60, 30, 45, 60, 0]
    assert TASK.strata(targets, SECTION).tolist() == [0, 3, 2, 3, 3, 0]
    assert TASK.count(targets, SECTION).tolist() == [2, 0, 1, 3]
    assert TASK.counted(SECTION)[0] == "0 to 15"
    assert TASK.describe(SECTION) == "how much days is, from 0 to 60 days"


def test_an_empty_cell_is_no_part_of_the_task() -> None:
    """A missing number that is trained on as the lowest one."""
    targets = TASK.targets(Source([30, "", 60]), SECTION)
    assert np.isnan(targets[1, 0])
    assert TASK.strata(targets, SECTION).tolist() == [2, -1, 3]


@pytest.mark.parametrize("label", ["many", "nan", "inf", "-"])
def test_what_is_no_number(label: str) -> None:
    """A word or a NaN in one cell, and every sum is NaN."""
    with pytest.raises(UserError, match="is no number") as caught:
        TASK.targets(Source([3, label]), SECTION)
    assert caught.value.where.endswith(":3")


@given(n=st.integers(2, 60), cut=st.integers(0, 60), seed=st.integers(0, 999))
def test_metrics_are_those_of_scikit_learn_however_records_are_dealt(
    n: int, cut: int, seed: int
) -> None:
    """Sums of two hospitals that are not those of their pooled records; another formula of R²."""
    outputs, truth = predictions(n, seed)
    parts = [slice(0, cut), slice(cut, None)]
    sums = TASK.zero(SECTION)
    for part in parts:
        own = TASK.sums(outputs[part], truth[part], SECTION)
        assert TASK.read_sums(own.to_flat(), SECTION).to_flat() == own.to_flat()
        sums = sums + own
    days = (truth[:, 0] * 30 + 30).numpy()
    told = TASK.predict(outputs, SECTION)[:, 0].numpy()
    metrics = sums.summary()
    assert metrics["examples"] == n
    assert metrics["mae"] == pytest.approx(mean_absolute_error(days, told), rel=1e-6)
    assert metrics["rmse"] == pytest.approx(root_mean_squared_error(days, told), rel=1e-6)
    if metrics["r2"] is not None:
        assert metrics["r2"] == pytest.approx(r2_score(days, told), rel=1e-4, abs=1e-4)


@given(part=st.integers(0, 12), seed=st.integers(0, 99))
def test_a_part_is_within_the_whole(part: int, seed: int) -> None:
    """A group of people with more in it than all of a node's records; or one refused in vain."""
    outputs, truth = predictions(12, seed)
    some = TASK.sums(outputs[:part], truth[:part], SECTION)
    everybody = TASK.sums(outputs, truth, SECTION)
    assert some.within(everybody)
    assert everybody.within(some) == (part == 12)


def test_counts_alone_tell_the_mean_error_to_a_bin() -> None:
    """Anything beside counts released without noise; a mean that the bins do not give."""
    outputs, truth = predictions(5000, 1)
    sums = TASK.sums(outputs, truth, SECTION)
    bare = sums.only_counts(np.zeros(sums.cells))
    assert (bare.loss, bare.off, bare.squares, bare.total_squares) == (0, 0, 0, 0)
    width = 60 / sums.cells
    assert bare.summary()["mae"] == pytest.approx(sums.summary()["mae"], abs=width / 2)
    assert bare.summary()["r2"] is None
    assert TASK.read_sums(bare.to_flat(), SECTION).to_flat() == bare.to_flat()
    noisy = sums.only_counts(np.full(sums.cells, -1e6))
    assert noisy.examples == 0


BAD: dict[str, dict[str, Any]] = {
    "a key too many": {"more": 1},
    "no count": {"examples": -1},
    "errors beyond the range": {"off": 1e9},
    "squares that errors do not have": {"squares": 0.0},
    "numbers beyond the range": {"total": -1e9},
    "NaN": {"loss": float("nan")},
    "bins of others": {"bins": [1], "bins-at": [0]},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_sums_that_no_predictions_give(change: dict[str, Any]) -> None:
    """A hostile node that makes the merged error what it likes."""
    outputs, truth = predictions(20, 2)
    flat = TASK.sums(outputs, truth, SECTION).to_flat() | change
    with pytest.raises(ValueError, match=r"."):
        TASK.read_sums(flat, SECTION)


def test_outputs_that_are_not_finite_are_refused() -> None:
    """A model that diverged, reported with a mean error of the range."""
    with pytest.raises(Refused):
        TASK.sums(torch.tensor([[float("nan")]]), torch.tensor([[0.0]]), SECTION)


def features_and_numbers(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, 5)) * [1, 2, 3, 4, 5] + 7
    numbers = (features @ [0.1, -0.1, 0.05, 0.02, 0.01]) / 4 + 0.1 * rng.normal(size=n)
    return features, numbers.clip(-1, 1).astype(np.float32)[:, None]


def test_the_closed_form_is_ridge_regression() -> None:
    """A head in steps of the integers, or with another intercept."""
    features, numbers = features_and_numbers(400)
    closed = TASK.closed_form
    assert closed is not None
    targets = closed.targets(torch.from_numpy(numbers), SECTION)
    sums = sum_records(BITS.to_integers(features), targets, BITS.bits)
    closed.check(sums, SECTION)
    solution = solve_ridge(standardise(sums, BITS.unit))
    weights, bias = closed.head(solution, SECTION, "shares")
    scaled = (features - features.mean(0)) / features.std(0)
    expected = Ridge(alpha=solution.ridge).fit(scaled, numbers[:, 0])
    told = features @ weights[0] + bias[0]
    np.testing.assert_allclose(told, expected.predict(scaled), atol=2e-4)
    with pytest.raises(ValueError, match="out of their range"):
        closed.check(sums.times(-1), SECTION)


def test_noisy_sums_without_noise_predict_nearly_as_well() -> None:
    """A private head on another scale than the numbers, or off by their mean."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(4000, 20))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    numbers = (0.3 + 2 * features[:, :1] + 0.05 * rng.normal(size=(4000, 1))).clip(-1, 1)
    closed = TASK.closed_form
    assert closed is not None
    assert closed.noisy is not None
    targets = torch.from_numpy(numbers.astype(np.float32))
    codes = closed.noisy.codes(targets, SECTION, "counted")
    counted = closed.noisy.counted(targets, SECTION, "counted")
    # a record's share of the sums is bounded
    assert (np.linalg.norm(codes, axis=1) <= 1 + 1e-12).all()
    assert (np.linalg.norm(counted, axis=1) <= 1 + 1e-12).all()
    # without products how features spread is not known: the slope is taken too small, not too large
    for products, least in ((False, 0.3), (True, 0.9)):
        sums = sum_units(features, codes, counted, np.ones(4000), products=products)
        weights, bias = closed.noisy.head(sums, SECTION, "counted", "shares")
        told = features @ weights[0] + bias[0]
        assert r2_score(numbers[:, 0], told) > least
        assert abs(float((told - numbers[:, 0]).mean())) < 0.02
