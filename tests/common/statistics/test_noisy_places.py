"""An image's pixels, or a text's tokens, move noisy sums by what one record may, whatever a hostile
model makes of them; and what is left after cutting is their sum.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedgraft.common.statistics.noisy_places import (
    WHOLE,
    Places,
    share_halves,
    sum_places,
)
from fedgraft.common.statistics.noisy_sums import (
    COUNT_STEP,
    PRODUCT_SCALE,
    SCALE,
    SENSITIVITY,
    round_within,
    sigma_of,
    sum_units,
    zero_noisy,
)
from tests.common.statistics.test_noisy_sums import moved, moved_with_products

ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)
CLASSES = 3
ANSWERS = st.integers(-1, CLASSES - 1)


@st.composite
def draw_places(draw: st.DrawFn) -> Places:
    """Features of any size or of none, of classes that may all be one, some places unknown."""
    count = draw(st.integers(1, 12))
    features = draw(arrays(np.float32, (count, 4), elements=ANY))
    if draw(st.booleans()):
        # all alike is the worst: nothing cancels
        features = features[[0] * count]
    answers = draw(arrays(np.int64, (count,), elements=ANSWERS))
    if draw(st.booleans()):
        answers = answers[[0] * count]
    return hold(features, answers)


def hold(features: np.ndarray, answers: np.ndarray) -> Places:
    """Return the places of one record, of which those below 0 are none."""
    codes = np.eye(CLASSES)[np.maximum(answers, 0)]
    return Places(features, codes, codes, share_halves(torch.from_numpy(answers)[None])[0])


@given(draw_places())
def test_a_record_of_places_moves_the_sums_by_the_sensitivity_at_most(places: Places) -> None:
    """Features of no number or of 10^38, one class everywhere, a record without any place."""
    assert moved(sum_places(places, 1.0)) <= SENSITIVITY
    with_products = sum_places(places, 1.0, products=True)
    assert moved_with_products(with_products) <= sigma_of(1.0, products=True)


@given(draw_places(), st.integers(1, 9))
def test_a_patient_of_many_such_records_moves_them_no_further(places: Places, count: int) -> None:
    """The same image ten times is the worst a patient can be."""
    total = zero_noisy(4, CLASSES, CLASSES, 10)
    for _ in range(count):
        total = total + sum_places(places, 1 / count, products=True)
    assert moved(total) <= SENSITIVITY
    assert moved_with_products(total) <= sigma_of(1.0, products=True)


@given(draw_places())
def test_they_are_the_sums_of_a_slow_loop_over_fractions(places: Places) -> None:
    """Nothing is rounded but once, towards zero, when all places of a record are together."""
    found = sum_places(places, 1.0, products=True)
    rounded = round_within(places.features).astype(int).tolist()
    coarse = round_within(places.features, 2**12).astype(int).tolist()
    parts = [Fraction(int(part * WHOLE), WHOLE) for part in places.parts]
    classes = places.codes.argmax(1).tolist()
    for kind in range(CLASSES):
        own = [place for place in range(len(parts)) if classes[place] == kind]
        for feature in range(4):
            exact = sum((parts[place] * rounded[place][feature] for place in own), Fraction(0))
            assert found.sums[feature, kind] == int(exact)
        exact = sum((parts[place] * COUNT_STEP for place in own), Fraction(0))
        assert found.counts[kind] == int(exact)
    pairs = zip(*np.triu_indices(4), strict=True)
    for product, (one, other) in zip(found.products.tolist(), pairs, strict=True):
        exact = Fraction(0)
        for place, part in enumerate(parts):
            exact += part * coarse[place][one] * coarse[place][other]
        assert product == int(exact)


def test_an_image_of_many_pixels_is_not_cut_to_nothing() -> None:
    """Cut pixel by pixel a feature of 65,536 of them would lose a third, or all, of its sum."""
    rng = np.random.default_rng(0)
    count, features = 256 * 256, 40
    values = rng.normal(size=(count, features)) + 0.5
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    answers = (rng.random(count) < 0.2).astype(np.int64)
    sums = sum_places(hold(values, answers), 1.0, products=True)
    for kind in range(2):
        mean = values[answers == kind].mean(0) / 2
        np.testing.assert_allclose(sums.sums[:, kind] / SCALE, mean, atol=2e-5)
    assert sums.counts / COUNT_STEP == pytest.approx([0.5, 0.5, 0], abs=1e-3)
    parts = share_halves(torch.from_numpy(answers)[None])[0]
    whole = ((values * parts[:, None]).T @ values)[np.triu_indices(features)]
    np.testing.assert_allclose(sums.products / PRODUCT_SCALE, whole, atol=1e-3)


def test_a_record_of_one_place_is_a_record_of_one_row() -> None:
    """Two scales for one thing: heads of tokens and of images would be off by a factor."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(1, 5))
    codes = np.eye(CLASSES)[[2]]
    places = sum_places(Places(values, codes, codes, np.ones(1)), 0.5, products=True)
    row = sum_units(values, codes, codes, np.full(1, 0.5), products=True)
    assert np.array_equal(places.counts, row.counts)
    assert np.abs(places.sums - row.sums).max() <= 1
    np.testing.assert_allclose(
        places.products / PRODUCT_SCALE, row.products / PRODUCT_SCALE, atol=1e-3
    )


def test_places_of_the_background_share_half_of_a_record() -> None:
    """The many that are nothing drown the few; padding that has a part tells how long a text is."""
    answers = torch.tensor([[-1, 0, 0, 1, 2, -1], [-1, 0, 0, 0, 0, -1], [-1] * 6])
    shares = share_halves(answers)
    assert shares[0] == pytest.approx([0, 0.25, 0.25, 0.25, 0.25, 0])
    assert shares[1] == pytest.approx([0, 0.125, 0.125, 0.125, 0.125, 0])
    assert not shares[2].any()


@given(arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 300)), elements=ANSWERS))
def test_parts_add_up_to_one_record_at_most(answers: np.ndarray) -> None:
    """A part too many in rounding is a record that counts for more than one."""
    shares = share_halves(torch.from_numpy(answers))
    assert (np.floor(shares * WHOLE).sum(1) <= WHOLE).all()
    assert (shares[answers < 0] == 0).all()
