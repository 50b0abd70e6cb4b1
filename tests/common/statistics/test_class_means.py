"""Heads of class means: against a slow way, and for as few records as one a class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestCentroid

from fedgraft.common.statistics.class_means import solve_means
from fedgraft.common.statistics.gram_sums import GramSums, Rounding, sum_records

BITS = Rounding(bound=64.0, bits=20)


def draw(n: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Features around class means, and the classes, each of which is there."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n)])
    centres = rng.normal(size=(classes, 12)) * 2
    spread = rng.uniform(0.5, 3, 12)
    return (centres[labels] + rng.normal(size=(len(labels), 12))) * spread, labels


def sums_of(features: np.ndarray, labels: np.ndarray, *, products: bool = False) -> GramSums:
    targets = np.eye(3, dtype=np.int64)[labels]
    return sum_records(BITS.to_integers(features), targets, BITS.bits, products=products)


@given(n=st.integers(60, 200), seed=st.integers(0, 999))
def test_answers_are_those_of_the_nearest_mean_on_scaled_features(n: int, seed: int) -> None:
    """Means of features as they are, of which the widest alone decides."""
    features, labels = draw(n, seed)
    weights, bias = solve_means(sums_of(features, labels), BITS.unit, "equal")
    answers = (features @ weights.T + bias).argmax(1)
    scaled = (features - features.mean(0)) / features.std(0)
    expected = NearestCentroid().fit(scaled, labels).predict(scaled)
    # shrinking and the noise taken out move the middle between two classes a little
    assert (answers == expected).mean() > 0.95


@given(cut=st.integers(1, 39), seed=st.integers(0, 99))
def test_sums_without_products_merge_and_say_the_same(cut: int, seed: int) -> None:
    """A head that depends on who holds which record; one that needs products after all."""
    features, labels = draw(37, seed)
    parts = [sums_of(features[:cut], labels[:cut]), sums_of(features[cut:], labels[cut:])]
    together = parts[0] + parts[1]
    whole = sums_of(features, labels)
    assert np.array_equal(together.gram, whole.gram)
    assert together.gram.shape == (12,)
    ours = solve_means(together, BITS.unit, "shares")
    full = solve_means(sums_of(features, labels, products=True), BITS.unit, "shares")
    for one, other in zip(ours, full, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_record_of_each_class_and_none_of_another() -> None:
    """A division by zero, and a head of NaN at every hospital."""
    features, labels = draw(0, 1)
    weights, bias = solve_means(sums_of(features, labels), BITS.unit, "shares")
    assert np.isfinite(weights).all()
    assert ((features @ weights.T + bias).argmax(1) == labels).all()
    weights, bias = solve_means(sums_of(features[:2], labels[:2]), BITS.unit, "shares")
    assert np.isfinite(weights).all()
    assert not weights[2].any()
    with pytest.raises(ValueError, match="no records"):
        solve_means(sums_of(features[:0], labels[:0]), BITS.unit, "shares")


def test_the_less_is_known_the_nearer_to_even_odds() -> None:
    """Two records that are sure of what they cannot know."""
    rng = np.random.default_rng(2)
    labels = np.arange(400) % 2
    noise = rng.normal(size=(400, 12))
    few = solve_means(sums_of(noise[:6], labels[:6]), BITS.unit, "equal")
    many = solve_means(sums_of(noise, labels), BITS.unit, "equal")
    odds = []
    for weights, bias in (few, many):
        logits = noise @ weights.T + bias
        odds.append(np.abs(logits[:, 1] - logits[:, 0]).mean())
    assert odds[1] < 0.2
