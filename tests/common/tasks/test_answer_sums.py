"""Sums over answers: against the library's own loss, a slow loop, and what a hostile node sends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedgraft.common.errors import Refused
from fedgraft.common.tasks.answer_sums import (
    BIN,
    LOSS_BINS,
    AnswerSums,
    answer_losses,
    sums_from_flat,
    sums_of,
    zero,
)

TOKENS = 11


def draw(rows: int, places: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits and targets; some places have none, and perhaps whole rows."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, places, TOKENS, generator=generator) * 2
    targets = torch.randint(-4, TOKENS, (rows, places), generator=generator).clamp(min=-1)
    return logits, targets


def by_loop(logits: Tensor, targets: Tensor) -> list[list[float]]:
    """−log p of each target that is there, a list a row."""
    found = []
    for row in range(len(logits)):
        own = []
        for place in range(logits.shape[1]):
            target = int(targets[row, place])
            if target >= 0:
                own.append(-math.log(float(logits[row, place].double().softmax(0)[target])))
        found.append(own)
    return found


@given(st.integers(0, 6), st.integers(1, 7), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_losses_and_sums_are_those_of_a_loop(rows: int, places: int, seed: int) -> None:
    """A prompt or padding that is counted would make any model look better."""
    logits, targets = draw(rows, places, seed)
    expected = by_loop(logits, targets)
    losses = answer_losses(logits, targets)
    for row, own in enumerate(expected):
        assert float(losses[row]) == pytest.approx(np.mean(own) if own else 0.0, abs=1e-5)
    sums = sums_of(logits, targets)
    there = [own for own in expected if own]
    flat = [value for own in there for value in own]
    assert sums.examples == len(there)
    assert sums.tokens == len(flat)
    assert sums.nats == pytest.approx(sum(flat), rel=1e-5)
    assert sums.loss == pytest.approx(sum(np.mean(own) for own in there), rel=1e-5)
    right = (logits.argmax(2) == targets) & (targets >= 0)
    assert sums.right == int(right.sum())
    if there:
        summary = sums.summary()
        assert summary["perplexity"] == pytest.approx(math.exp(np.mean(flat)), rel=1e-5)
        assert summary["loss"] == pytest.approx(np.mean([np.mean(own) for own in there]), rel=1e-5)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_sums_of_two_nodes_are_those_of_their_pooled_answers(
    first: int, second: int, seed: int
) -> None:
    """What the server adds up is what one place with all answers would have measured."""
    logits, targets = draw(first + second, 5, seed)
    one = sums_of(logits[:first], targets[:first])
    other = sums_of(logits[first:], targets[first:])
    pooled = sums_of(logits, targets)
    added = one + other
    assert (added.bins == pooled.bins).all()
    assert (added.examples, added.tokens, added.right) == (
        pooled.examples,
        pooled.tokens,
        pooled.right,
    )
    assert added.nats == pytest.approx(pooled.nats)
    assert one.within(pooled)
    assert other.within(pooled)
    read = sums_from_flat(pooled.to_flat())
    assert read.to_flat() == pooled.to_flat()


def test_a_models_loss_is_the_librarys(tmp_path: Path) -> None:
    """The whole way from a text to its loss: prompt masked, targets shifted, the tied head."""
    transformers = pytest.importorskip("transformers")
    from fedgraft.common.backbones.backbone_files import load_backbone
    from fedgraft.common.model.grafted_model import graft
    from fedgraft.common.model.token_features import TokenChoice
    from fedgraft.common.tasks.answer_tokens import list_targets
    from tests.language_models import write_gpt2

    folder = write_gpt2(tmp_path / "model")
    backbone = load_backbone("huggingface", weights=folder, max_length=48)
    texts = ["What of the skin?\na rash on both hands", "Why?\npain"]
    batch = backbone.preprocess(texts)
    model = graft(
        backbone, method="bias", classes=1, depths=TokenChoice(batch.joined, of_vocabulary=True)
    )
    library = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    rows: list[Tensor] = []
    expected: list[float] = []
    preparation: Any = backbone.preprocess
    for text in texts:
        start = text.index("\n") + 1
        prompt = len(preparation.tokenizer.encode(text[:start]).ids)
        # the token that ends a text is 0
        ids = torch.tensor([[*preparation.tokenizer.encode(text).ids, 0]])
        labels = ids.clone()
        labels[:, :prompt] = -100
        with torch.no_grad():
            expected.append(float(library(input_ids=ids, labels=labels).loss))
        own = list_targets(preparation, text, start)
        rows.append(torch.tensor([*own, *[-1] * (48 - len(own))]))
    with torch.no_grad():
        losses = answer_losses(model(batch), torch.stack(rows))
    assert losses.tolist() == pytest.approx(expected, abs=1e-5)


def test_noisy_counts_tell_the_loss_to_half_a_bin() -> None:
    """Under differential privacy the histogram is all there is."""
    logits, targets = draw(200, 9, 3)
    sums = sums_of(logits, targets)
    told = sums.only_counts(np.zeros(LOSS_BINS))
    assert told.nats == told.loss == told.tokens == 0
    summary = told.summary()
    assert summary["loss"] == pytest.approx(sums.summary()["loss"], abs=BIN / 2)
    assert summary["next_token_accuracy"] is None
    assert sums_from_flat(told.to_flat()).summary() == summary
    noisy = sums.only_counts(np.full(LOSS_BINS, -1e6))
    assert noisy.examples == 0
    assert noisy.summary()["perplexity"] is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("examples", -1),
        ("examples", 10**6),
        ("tokens", 3),
        ("tokens", 2**39),
        ("right", 10**6),
        ("right", True),
        ("nats", float("nan")),
        ("nats", 0.0),
        ("nats", 1e300),
        ("loss", 0.0),
        ("loss", 1e4),
        ("loss", "much"),
        ("bins", [10**9]),
        ("bins-at", [LOSS_BINS]),
    ],
)
def test_sums_that_no_predictions_could_give_are_refused(key: str, value: Any) -> None:
    """A node that reports a perplexity of its choice would choose the round that is kept."""
    flat = sums_of(*draw(20, 9, 5)).to_flat()
    flat[key] = value
    with pytest.raises(ValueError, match=r"."):
        sums_from_flat(flat)
    with pytest.raises(ValueError, match="missing or unknown"):
        sums_from_flat({**zero().to_flat(), "more": 1})


def test_outputs_that_are_not_finite() -> None:
    """A model that diverged is refused in words; a huge logit costs no more than a bound."""
    logits, targets = draw(3, 4, 1)
    with pytest.raises(Refused):
        sums_of(logits * math.nan, targets)
    huge = sums_of(logits * 1e30, targets)
    assert isinstance(huge, AnswerSums)
    sums_from_flat(huge.to_flat())
