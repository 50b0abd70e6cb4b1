"""Survival as sums: against lifelines and slow loops on the pooled people, merged, on the wire, and
malformed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.common.errors import Refused
from fedgraft.common.tasks.hazards import (
    cumulative_hazards,
    hazard_losses,
    median_times,
    survival_curves,
)
from fedgraft.common.tasks.life_table import LifeTable
from fedgraft.common.tasks.survival_from_wire import sums_from_flat
from fedgraft.common.tasks.survival_sums import integrate, sums_of, zero
from fedgraft.common.tasks.survival_times import count_intervals

CUTS = (1.0, 2.5, 4.0, 8.0)
SEEDS = st.integers(0, 2**20)


def draw(seed: int, count: int = 300, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that know something of people's times, and their targets; a third are lost."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=count)
    died = rng.exponential(3 * np.exp(-risk))
    left = rng.exponential(8, size=count)
    targets = count_intervals(np.minimum(died, left), died <= left, CUTS)
    logits = scale * (risk[:, None] + 0.3 * rng.normal(size=(count, len(CUTS)))) - 1
    return torch.from_numpy(logits), torch.from_numpy(targets)


# ── times ─────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("time", "event", "survived", "happened"),
    [
        (0.0, True, 0, 1),
        (1.0, True, 0, 1),
        (1.01, True, 1, 1),
        (8.0, True, 3, 1),
        (8.01, True, 4, 0),
        (99.0, False, 4, 0),
        (0.49, False, 0, 0),
        (0.5, False, 1, 0),
        (1.74, False, 1, 0),
        (1.75, False, 2, 0),
        (6.0, False, 4, 0),
        (0.0, False, 0, 0),
    ],
)
def test_people_are_counted_by_intervals(
    time: float, event: bool, survived: int, happened: int
) -> None:
    """An event at a cut in the next interval; somebody lost early who counts as having survived."""
    found = count_intervals(np.array([time]), np.array([event]), CUTS)
    assert found.tolist() == [[survived, happened]]


# ── the loss ──────────────────────────────────────────────────────────────────────────────────────
def test_the_loss_is_that_of_its_questions() -> None:
    """−log of Π (1 − h) over intervals survived, times h of the one of the event, a loop each."""
    logits, targets = draw(0, 50)
    found = hazard_losses(logits, targets)
    for row, (survived, event) in enumerate(targets.tolist()):
        hazards = logits[row].sigmoid()
        likelihood = 1.0
        for interval in range(survived):
            likelihood *= 1 - float(hazards[interval])
        if event:
            likelihood *= float(hazards[survived])
        assert float(found[row]) == pytest.approx(-math.log(likelihood))


def test_without_features_the_likeliest_curve_is_kaplan_and_meiers() -> None:
    """A loss whose minimum is another curve than that of the people it is of."""
    _, targets = draw(1, 500)
    logits = torch.zeros(len(CUTS), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = hazard_losses(logits.expand(500, -1), targets).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    curve = survival_curves(logits[None].detach())[0].numpy()
    table = sums_of(logits.detach().expand(500, -1), targets, CUTS).table
    np.testing.assert_allclose(curve, table.survival(), atol=1e-5)


def test_gradients_of_sure_models_are_finite() -> None:
    """NaN where a softplus is hidden by an infinite one."""
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4]], requires_grad=True)
    hazard_losses(logits, torch.tensor([[1, 1]])).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_medians_lie_on_the_curve() -> None:
    """A median of another interval, or one that is made up beyond the last cut."""
    curves = torch.tensor(
        [[0.8, 0.6, 0.4, 0.1], [0.5, 0.4, 0.3, 0.2], [0.9, 0.8, 0.7, 0.6], [0.2, 0.1, 0.1, 0.1]]
    )
    found = median_times(curves, torch.tensor(CUTS))
    for row, value in enumerate(found.tolist()):
        if row == 2:
            assert math.isnan(value)
            continue
        whole = np.interp(value, [0, *CUTS], [1, *curves[row].tolist()])
        assert whole == pytest.approx(0.5, abs=1e-6)


# ── against lifelines ─────────────────────────────────────────────────────────────────────────────
def as_times(targets: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """People as lifelines wants them: an event in the middle of its interval, a last sight at the
    cut that was survived.
    """
    survived, event = targets.numpy().T
    return survived + 0.5 * event, event


def test_curves_are_lifelines() -> None:
    """Somebody at risk who was lost, or not at risk who died."""
    lifelines = pytest.importorskip("lifelines")
    _, targets = draw(3)
    times, events = as_times(targets)
    table = sums_of(*draw(3), CUTS).table
    fitter = lifelines.KaplanMeierFitter()
    alive = fitter.fit(times, events).survival_function_at_times(np.arange(1, 5)).to_numpy()
    np.testing.assert_allclose(table.survival(), alive)
    # who leaves does so behind the events of the interval before
    lost = (1 - events).astype(bool) & (times < len(CUTS))
    watched = fitter.fit(times, lost).survival_function_at_times(np.arange(0, 4)).to_numpy()
    np.testing.assert_allclose(table.watched(), watched)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, scale=st.sampled_from([0.01, 1.0, 30.0]))
def test_with_proportional_hazards_concordance_is_harrells(seed: int, scale: float) -> None:
    """Pairs that cannot be told apart, counted; or a risk that is turned round."""
    utils = pytest.importorskip("lifelines.utils")
    logits, targets = draw(seed)
    # the same order at every cut
    logits = scale * logits[:, :1] + torch.tensor([0.0, 0.5, -0.5, 0.2])
    sums = sums_of(logits, targets, CUTS)
    times, events = as_times(targets)
    exact = utils.concordance_index(times, -logits[:, 0].numpy(), events)
    found = sums.summary()["concordance"]
    assert found is not None
    assert abs(found - exact) <= sums.concordance_resolution() + 1e-12
    if scale == 1.0:
        assert sums.concordance_resolution() < 0.02


def test_concordance_is_that_of_a_slow_loop() -> None:
    """Antolini et al. 2005, eq. 7: curves that cross, compared where the event is."""
    logits, targets = draw(5, 120)
    risks = cumulative_hazards(logits)
    people = targets.tolist()
    right = pairs = 0.0
    for first, (survived, event) in enumerate(people):
        if not event:
            continue
        for second, (longer, _) in enumerate(people):
            if longer > survived:
                pairs += 1
                more = float(risks[first, survived] - risks[second, survived])
                right += 1.0 if more > 0 else 0.5 * (more == 0)
    sums = sums_of(logits, targets, CUTS)
    assert sums.summary()["concordance"] == pytest.approx(
        right / pairs, abs=sums.concordance_resolution()
    )


def test_brier_scores_are_those_of_a_slow_loop() -> None:
    """Graf et al. 1999: each person by one over the probability of having been watched."""
    logits, targets = draw(6, 200)
    sums = sums_of(logits, targets, CUTS)
    curves = survival_curves(logits).numpy()
    watched = sums.table.watched()
    for cut, score in enumerate(sums.brier_scores()):
        total = 0.0
        for row, (survived, event) in enumerate(targets.tolist()):
            if survived > cut:
                total += (1 - curves[row, cut]) ** 2 / watched[cut]
            elif event:
                total += curves[row, cut] ** 2 / watched[survived]
        assert score == pytest.approx(total / 200)
    assert sums.summary()["brier"] == integrate(sums.brier_scores(), CUTS)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, count=st.integers(5, 300))
def test_weights_stand_for_everybody(seed: int, count: int) -> None:
    """Weights of those who were watched that do not add up to all: a score that drifts with who
    leaves. All squares are 1 where survival is taken for certain and for impossible at once.
    """
    table = LifeTable(sums_of(*draw(seed, count), CUTS).outcomes)
    watched = table.watched()
    for cut in range(len(CUTS)):
        if watched[cut] == 0:
            continue
        dead = table.events[: cut + 1] / watched[: cut + 1]
        assert dead.sum() + table.reached[cut + 1] / watched[cut] == pytest.approx(count)


def test_observed_and_predicted_survival_are_of_the_same_people() -> None:
    """A model that is right on average, and a table that says that it is not."""
    _, targets = draw(9, 400)
    table = sums_of(torch.zeros(400, 4), targets, CUTS).table
    average = torch.logit(torch.from_numpy(table.hazards())).expand(400, -1)
    summary = sums_of(average, targets, CUTS).summary()
    assert summary["observed_survival"] == pytest.approx(table.survival()[-1])
    assert summary["predicted_survival"] == pytest.approx(table.survival()[-1])


def test_knowing_more_gives_a_lower_score() -> None:
    """A Brier score that likes the average better than the truth."""
    logits, targets = draw(7, 1000)
    table = sums_of(logits, targets, CUTS).table
    hazards = torch.from_numpy(table.hazards())
    average = torch.logit(hazards).expand(1000, -1)
    known = sums_of(logits, targets, CUTS).summary()
    unknown = sums_of(average, targets, CUTS).summary()
    assert unknown["concordance"] == 0.5
    assert known["brier"] is not None
    assert unknown["brier"] is not None
    assert known["brier"] < unknown["brier"]


# ── merging and travelling ────────────────────────────────────────────────────────────────────────
@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, cut=st.integers(0, 60))
def test_merged_sums_equal_pooled_sums(seed: int, cut: int) -> None:
    """Weights of one hospital's losses in another's score."""
    logits, targets = draw(seed, 60)
    parts = [sums_of(logits[:cut], targets[:cut], CUTS), sums_of(logits[cut:], targets[cut:], CUTS)]
    total = sum(parts, zero(CUTS))
    pooled = sums_of(logits, targets, CUTS)
    for name in ("outcomes", "cases", "controls"):
        np.testing.assert_array_equal(getattr(total, name), getattr(pooled, name))
    np.testing.assert_allclose(total.dead, pooled.dead)
    for name, value in pooled.summary().items():
        assert total.summary()[name] == pytest.approx(value)
    assert sums_from_flat(total.to_flat(), CUTS).to_flat() == total.to_flat()
    for part in parts:
        assert part.within(pooled)


def test_flat_sums_pass_through_flowers_record() -> None:
    """Flower's MetricRecord takes ints, floats and lists of one of them."""
    from flwr.app import MetricRecord

    for sums in (zero(CUTS), sums_of(*draw(0), CUTS)):
        record = MetricRecord(sums.to_flat())
        assert sums_from_flat(dict(record), CUTS).to_flat() == sums.to_flat()


def test_other_intervals_do_not_add_up() -> None:
    """Sums of other cuts that have the same shape."""
    with pytest.raises(ValueError, match="do not add up"):
        _ = zero(CUTS) + zero((1.0, 2.0, 3.0, 4.0))


def test_nothing_measured_is_none_everywhere() -> None:
    """An empty test split that divides by zero."""
    summary = zero(CUTS).summary()
    assert summary.pop("examples") == 0
    assert set(summary.values()) == {None}
    counted = sums_of(*draw(1), CUTS).only_counts(np.zeros(9))
    assert counted.summary()["concordance"] is None
    assert counted.summary()["predicted_survival"] is None
    assert counted.summary()["observed_survival"] is not None
    assert sums_from_flat(counted.to_flat(), CUTS).examples == 300


def test_a_diverged_model_is_refused_in_words() -> None:
    """NaN that lands in a bin."""
    with pytest.raises(Refused, match="not finite"):
        sums_of(torch.full((1, 4), math.nan), torch.tensor([[0, 1]]), CUTS)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("loss", lambda v: math.nan),
        ("loss", lambda v: -1.0),
        ("outcomes", lambda v: [v[0], v[1], v[2] + 1, *v[3:]]),
        ("outcomes", lambda v: [v[0], v[1] + 1, *v[2:]]),
        ("outcomes", lambda v: [*v[:-1], -1]),
        ("outcomes", lambda v: v[1:]),
        ("cases", lambda v: [v[0] + 1, *v[1:]]),
        ("controls", lambda v: [v[0] + 1, *v[1:]]),
        ("cases-at", lambda v: [*v[:-1], 4 * 1024]),
        ("dead", lambda v: [v[0] + 1000.0, *v[1:]]),
        ("dead", lambda v: [v[0], v[0] + 1.0, *v[2:]]),
        ("dead", lambda v: [*v[:4], 1.0, *v[5:]]),
        ("dead", lambda v: [math.nan, *v[1:]]),
        ("dead", lambda v: [-1.0, *v[1:]]),
        ("dead", lambda v: v[1:]),
        ("alive", lambda v: [1000.0, *v[1:]]),
        ("predicted", lambda v: [301.0, *v[1:]]),
        ("predicted", lambda v: [v[0], v[0] + 1.0, *v[2:]]),
        ("predicted", lambda v: [*v[:-1], math.nan]),
        ("alive", lambda v: [1, *v[1:]]),
        ("extra", lambda v: 1),
    ],
)
def test_malformed_sums_are_refused(key: str, change: Any) -> None:
    """One node's forged metrics in everybody's."""
    bad = sums_of(*draw(2), CUTS).to_flat()
    bad[key] = change(bad.get(key))
    with pytest.raises(ValueError, match=r"\w"):
        sums_from_flat(bad, CUTS)


def test_curves_are_products_of_one_minus_hazards() -> None:
    """A sum of logarithms that is of something else."""
    logits, _ = draw(4, 20)
    slow = (1 - logits.sigmoid()).cumprod(1)
    torch.testing.assert_close(survival_curves(logits), slow)
    torch.testing.assert_close(F.softplus(logits).cumsum(1), cumulative_hazards(logits))
