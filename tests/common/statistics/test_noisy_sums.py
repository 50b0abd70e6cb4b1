"""What one record, or one patient, moves the sums by is within the sensitivity that noise is scaled
to, whatever a hostile model makes of it.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedgraft.common.statistics.noisy_means import solve_counted, solve_equal
from fedgraft.common.statistics.noisy_products import solve_products
from fedgraft.common.statistics.noisy_sums import (
    COUNT_STEP,
    PRODUCT_SCALE,
    SCALE,
    SENSITIVITY,
    Draw,
    NoisySums,
    count_products,
    find_diagonal,
    round_within,
    sigma_of,
    simplex,
    sum_units,
)

ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)


def draw_from(rng: np.random.Generator) -> Draw:
    """Normal noise, rounded: quicker than exact."""

    def draw(sigma: int, count: int) -> np.ndarray:
        return np.rint(rng.normal(size=count) * sigma).astype(np.int64)

    return draw


def moved(sums: NoisySums) -> float:
    """Return the L2 norm of what a unit adds, exactly as integers."""
    numbers = [*sums.sums.ravel().tolist(), *sums.counts.ravel().tolist()]
    return sum(number * number for number in numbers) ** 0.5


@given(arrays(np.float32, (1, 7), elements=ANY), st.sampled_from(["counted", "equal"]))
def test_a_record_moves_the_sums_by_the_sensitivity_at_most(
    features: np.ndarray, shares: str
) -> None:
    """A feature of 10^38, of no number, or of norm 1 and a last bit."""
    codes = np.eye(3)[[1]] if shares == "counted" else simplex(3)[[1]]
    counted = np.eye(3)[[1]] if shares == "counted" else np.ones((1, 1))
    assert moved(sum_units(features, codes, counted, np.ones(1))) <= SENSITIVITY


def moved_with_products(sums: NoisySums) -> float:
    """Return the norm of what a unit adds, each number in deviations of its noise, times SCALE."""
    own = find_diagonal(len(sums.sums))
    products = np.where(own, sums.products, sums.products * 2**0.5) * (SCALE / PRODUCT_SCALE)
    return (moved(sums) ** 2 + float((products**2).sum())) ** 0.5


@given(arrays(np.float32, (1, 7), elements=ANY))
def test_with_products_a_record_moves_them_by_what_noise_is_scaled_to(features: np.ndarray) -> None:
    """All of the norm in one feature is the worst for the diagonal, spread out for the rest."""
    codes = np.eye(2)[[1]]
    sums = sum_units(features, codes, codes, np.ones(1), products=True)
    assert moved_with_products(sums) <= sigma_of(1.0, products=True)


@given(st.integers(1, 9), st.integers(0, 2**32))
def test_with_products_a_patient_moves_them_no_further(records: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(records, 5)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    codes = np.eye(2)[rng.integers(0, 2, records)]
    shares = np.full(records, 1 / records)
    sums = sum_units(features, codes, codes, shares, products=True)
    assert moved_with_products(sums) <= sigma_of(1.0, products=True)
    alike = sum_units(
        features[[0] * records], codes[[0] * records], codes[[0] * records], shares, products=True
    )
    assert moved_with_products(alike) <= sigma_of(1.0, products=True)


def test_products_are_noised_pair_by_pair() -> None:
    """One draw for each unordered pair, √2 less than on the diagonal; no number without noise."""
    sums = sum_units(np.zeros((4, 60)), np.ones((4, 1)), np.ones((4, 1)), np.ones(4), products=True)
    assert sums.products.shape == (count_products(60),)
    sigma = sigma_of(1.0, products=True)
    noisy = sums.with_noise(sigma, draw_from(np.random.default_rng(0)))
    noise = noisy.products / PRODUCT_SCALE
    own = find_diagonal(60)
    assert noise.all()
    assert noise[own].std() == pytest.approx(sigma / SCALE, rel=0.3)
    assert noise[~own].std() == pytest.approx(sigma / SCALE / 2**0.5, rel=0.1)
    assert noisy.product_deviation == pytest.approx(sigma / SCALE)
    twice = noisy + noisy
    assert twice.product_deviation == pytest.approx(sigma / SCALE * 2**0.5)
    assert (twice.products == 2 * noisy.products).all()


@given(st.integers(1, 9), st.integers(0, 2**32))
def test_a_patient_of_many_records_moves_them_no_further(records: int, seed: int) -> None:
    """Ten X-rays of one person are not ten people."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(records, 5)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    codes = np.eye(2)[rng.integers(0, 2, records)]
    shares = np.full(records, 1 / records)
    assert moved(sum_units(features, codes, codes, shares)) <= SENSITIVITY


def test_rounding_never_lengthens() -> None:
    """float32 of norm 1 is longer by a last bit half of the time."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2000, 352)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    squares = (round_within(features) ** 2).sum(1)
    assert squares.max() <= SCALE**2
    assert squares.min() > 0.999 * SCALE**2


def test_more_noise_is_added_than_is_counted() -> None:
    """Rounded down, it would be less."""
    for multiplier in (0.3, 1.0, 17.123):
        assert sigma_of(multiplier) >= multiplier * SENSITIVITY


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_codes_of_equal_classes_are_a_simplex(classes: int) -> None:
    """Norm 1, equally far apart, adding up to nothing: what `solve_equal` takes for granted."""
    codes = simplex(classes)
    assert codes.shape == (classes, classes - 1)
    products = codes @ codes.T
    expected = np.full((classes, classes), -1 / (classes - 1))
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(products, expected, atol=1e-12)
    np.testing.assert_allclose(codes.sum(0), 0, atol=1e-12)


@pytest.mark.parametrize("shares", ["counted", "equal"])
@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_the_head_tells_classes_apart(shares: str, sigma: float) -> None:
    """A sign, a scale or a threshold that is wrong shows here; with noise, how sure it is, too."""
    rng = np.random.default_rng(1)
    classes, features = 3, 40
    centres = rng.normal(size=(classes, features)) * 0.5
    centres -= centres.mean(0)

    def draw(records: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(records) % classes
        x = centres[labels] + rng.normal(size=(records, features))
        return x / np.linalg.norm(x, axis=1, keepdims=True), labels

    x, y = draw(3000)
    codes = np.eye(classes)[y] if shares == "counted" else simplex(classes)[y]
    counted = np.eye(classes)[y] if shares == "counted" else np.ones((len(y), 1))
    sums = sum_units(x, codes, counted, np.ones(len(y)))
    if sigma:
        sums = sums.with_noise(sigma_of(sigma), draw_from(rng))
    if shares == "counted":
        weights, bias = solve_counted(sums, "shares")
    else:
        weights, bias = solve_equal(sums, classes)
    tests, truth = draw(3000)
    logits = tests @ weights.T + bias
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    right = (logits.argmax(1) == truth).mean()
    assert right > 0.85
    # scatter is alike in all directions here, which it is taken not to be: less sure, never more
    assert chances.max(1).mean() < right


def test_counts_are_in_steps_of_their_weight() -> None:
    """What noise is scaled to and what is counted must be the same number."""
    sums = sum_units(np.zeros((5, 2)), np.ones((5, 1)), np.ones((5, 1)), np.ones(5))
    assert sums.counts.tolist() == [5 * COUNT_STEP]


@pytest.mark.parametrize("sigma", [0.0, 1.0, 200.0])
def test_products_tell_classes_apart_where_features_go_together(sigma: float) -> None:
    """Twenty copies of a feature that says little drown class means; a scatter that is known does
    not let them. Where all is noise the head is finite.
    """
    rng = np.random.default_rng(2)

    def draw(records: int) -> tuple[np.ndarray, np.ndarray]:
        labels = (rng.random(records) < 0.3).astype(int)
        shared = rng.normal(size=(records, 1)) * np.ones((records, 20))
        own = rng.normal(size=(records, 4)) * 0.5
        own[:, 0] += 0.8 * labels
        x = np.concatenate([shared + 0.5 * labels[:, None], own], axis=1)
        return x / np.linalg.norm(x, axis=1, keepdims=True), labels

    x, y = draw(4000)
    sums = sum_units(x, np.eye(2)[y], np.eye(2)[y], np.ones(len(y)), products=True)
    if sigma:
        sums = sums.with_noise(sigma_of(sigma, products=True), draw_from(rng))
    tests, truth = draw(3000)
    right = []
    for weights, bias in (solve_products(sums, "shares"), solve_counted(sums, "shares")):
        logits = tests @ weights.T + bias
        assert np.isfinite(logits).all()
        right.append((logits.argmax(1) == truth).mean())
    if sigma < 100:
        assert right[0] > right[1] + 0.02
