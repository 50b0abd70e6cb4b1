"""Sums over entities: against seqeval, over any deal of the texts, and of hostile nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedgraft.common.errors import Refused
from fedgraft.common.tasks.entity_sums import (
    STEP,
    EntitySums,
    answer_tags,
    sums_of,
    token_losses,
    zero,
)
from fedgraft.common.tasks.entity_sums_from_wire import entity_sums_from_flat

NAMES = ("NAME", "DATE")
TAGS = ("O", "B-NAME", "I-NAME", "B-DATE", "I-DATE")
TOKENS = 9


def draw(seed: int, texts: int = 6) -> tuple[Tensor, Tensor]:
    """Return logits and tags that follow the rules, with places that are none of a text's."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(texts, TOKENS, len(TAGS), generator=generator, dtype=torch.float64)
    lively = 2 * torch.randn(texts, TOKENS, len(TAGS), generator=generator, dtype=torch.float64)
    here = torch.ones(texts, TOKENS, dtype=torch.bool)
    here[:, 0] = False
    for row in range(texts):
        here[row, 3 + row % 6 :] = False
    tags = answer_tags(lively, here)
    # so that something is right
    logits += 3 * F.one_hot(tags, len(TAGS)) * (torch.rand(texts, 1, 1, generator=generator) > 0.4)
    return logits, torch.where(here, tags, -1)


def in_words(tags: Tensor, truth: Tensor) -> list[list[str]]:
    """Return the tags of each text's own tokens as seqeval takes them."""
    rows = []
    for own, stated in zip(tags, truth, strict=True):
        rows.append([TAGS[tag] for tag in own[stated >= 0].tolist()])
    return rows


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_metrics_are_those_of_seqeval(seed: int) -> None:
    """Its strict mode is what papers on named entities report."""
    metrics = pytest.importorskip("seqeval.metrics")
    scheme = pytest.importorskip("seqeval.scheme")
    logits, truth = draw(seed)
    sums = sums_of(logits, truth)
    stated = in_words(truth, truth)
    answered = in_words(answer_tags(logits, truth >= 0), truth)
    options = {"mode": "strict", "scheme": scheme.IOB2, "zero_division": 0}
    told = sums.summary()
    for key, function in (
        ("f1", metrics.f1_score),
        ("precision", metrics.precision_score),
        ("recall", metrics.recall_score),
    ):
        assert (told[key] or 0.0) == pytest.approx(function(stated, answered, **options))
    assert told["token_accuracy"] == pytest.approx(metrics.accuracy_score(stated, answered))
    report = metrics.classification_report(stated, answered, output_dict=True, **options)
    for name, row in zip(NAMES, sums.by_type(), strict=True):
        if name in report:
            assert row["positives"] == report[name]["support"]
            assert (row["f1"] or 0.0) == pytest.approx(report[name]["f1-score"])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(0, 6))
def test_sums_of_two_nodes_are_those_of_their_pooled_texts(seed: int, cut: int) -> None:
    """Or a metric would depend on who holds which text."""
    logits, truth = draw(seed)
    apart = sums_of(logits[:cut], truth[:cut]) + sums_of(logits[cut:], truth[cut:])
    pooled = sums_of(logits, truth)
    same(apart, pooled)
    assert sums_of(logits[:cut], truth[:cut]).within(pooled)
    if cut < 6:
        assert not pooled.within(sums_of(logits[:cut], truth[:cut]))


def same(one: EntitySums, other: EntitySums) -> None:
    """Assert that all exact counts are equal, and losses but for rounding."""
    first, second = one.to_flat(), other.to_flat()
    assert first.pop("loss") == pytest.approx(second.pop("loss"))
    assert first == second


def test_the_loss_of_a_text_is_the_mean_over_its_own_tokens() -> None:
    """Padding would else make short texts cheap, and a text without a token a NaN."""
    logits, truth = draw(3)
    truth[5] = -1
    expected = []
    for row in range(5):
        own = truth[row] >= 0
        expected.append(float(F.cross_entropy(logits[row][own], truth[row][own])))
    assert token_losses(logits, truth).tolist() == pytest.approx([*expected, 0.0])


def test_outputs_that_are_not_finite_are_refused() -> None:
    """A diverged model has no metrics."""
    logits, truth = draw(0)
    logits[0, 0, 0] = torch.nan
    with pytest.raises(Refused, match="not finite"):
        sums_of(logits, truth)


# ── under privacy ─────────────────────────────────────────────────────────────────────────────────
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(0, 5))
def test_a_text_moves_the_shares_by_one_at_most(seed: int, left_out: int) -> None:
    """The noise is drawn for that, however many entities a text has."""
    logits, truth = draw(seed)
    others = torch.arange(6) != left_out
    moved = sums_of(logits, truth).shares - sums_of(logits[others], truth[others]).shares
    assert (moved >= 0).all()
    assert 0 < moved.sum() <= STEP


def test_noisy_shares_say_what_texts_say_and_nothing_else() -> None:
    """Without noise a text weighs 1, and no exact count is left in what travels."""
    logits, truth = draw(1)
    sums = sums_of(logits, truth)
    bare = sums.only_counts(np.zeros(sums.cells))
    assert bare.shares.tolist() == sums.shares.tolist()
    assert bare.examples == 6
    assert bare.tokens == bare.right == bare.loss == 0
    assert not any(part.any() for part in (bare.hits, bare.answered, bare.stated))
    told = bare.summary()
    assert told["f1"] is not None
    assert told["loss"] is None
    assert bare.by_type() == []
    noisy = sums.only_counts(np.full(sums.cells, -100.0))
    assert noisy.examples == 0
    assert noisy.summary()["f1"] is None


@given(st.integers(0, 1000), st.floats(0, 50))
def test_noisy_shares_pass_the_server(seed: int, deviation: float) -> None:
    """An honest node under noise must not be taken for a hostile one."""
    noise = deviation * np.random.default_rng(seed).normal(size=7)
    bare = sums_of(*draw(seed % 5)).only_counts(noise)
    same(entity_sums_from_flat(travel(bare), 2), bare)


# ── over the wire ─────────────────────────────────────────────────────────────────────────────────
def travel(sums: EntitySums) -> dict[str, Any]:
    """Return the sums as they come out of JSON."""
    return json.loads(json.dumps(sums.to_flat()))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_sums_of_any_predictions_come_through(seed: int) -> None:
    """Every check on a hostile node must hold for honest ones."""
    sums = sums_of(*draw(seed, texts=1 + seed % 7))
    same(entity_sums_from_flat(travel(sums), 2), sums)


def test_sums_of_nothing_come_through() -> None:
    """A node without tests sends them."""
    same(entity_sums_from_flat(travel(zero(2)), 2), zero(2))


LIES: tuple[Mapping[str, Any], ...] = (
    {"right": 10**6},
    {"tokens": 10**6},
    {"hits": [10**6, 0]},
    {"answered": [0, 0]},
    {"stated": [10**6, 0]},
    {"shares": [STEP] * 7},
    {"shares": [0] * 7},
    {"shares": [1]},
    {"examples": -1},
    {"examples": True},
    {"loss": float("nan")},
    {"loss": -1.0},
    {"hits": "many"},
    {"more": 1},
    {"tokens": 0, "loss": 0.0},
)


@pytest.mark.parametrize("lie", LIES)
def test_what_no_predictions_could_give_is_refused(lie: Mapping[str, Any]) -> None:
    """One hostile node could else make any model look right."""
    flat = travel(sums_of(*draw(2))) | dict(lie)
    words = "disagree|than|keys|count|number|list|without"
    with pytest.raises(ValueError, match=words):
        entity_sums_from_flat(flat, 2)
