"""Tags of tokens: where entities lie, and the likeliest tags that follow the rules."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.common.tasks.entity_spans import Entity
from fedgraft.common.tasks.entity_tags import (
    NO_TAG,
    best_tags,
    find_spans,
    follow_rules,
    list_entities,
    tag_tokens,
)

NAMES = ("NAME", "DATE", "DRUG")
TAGS = ("O", "B-NAME", "I-NAME", "B-DATE", "I-DATE", "B-DRUG", "I-DRUG")


def test_the_first_token_begins_and_the_others_go_on() -> None:
    """Pieces of a word are one entity, and tokens around a text are none."""
    #        [CLS] Mr    An    ##na  Smith .     [SEP]
    places = [None, (0, 2), (3, 5), (5, 7), (8, 13), (13, 14), None]
    tags = tag_tokens(places, [Entity(3, 13, 0)])
    assert tags == [NO_TAG, 0, 1, 2, 2, 0, NO_TAG]


def test_entities_side_by_side_are_two() -> None:
    """One that begins where another ends has a beginning of its own, of the same type, too."""
    places = [(0, 4), (5, 9), (9, 10)]
    assert tag_tokens(places, [Entity(0, 4, 1), Entity(5, 9, 1)]) == [3, 3, 0]


def test_a_token_is_of_the_entity_that_it_shares_most_with() -> None:
    """Spans of a tool may begin within a token."""
    assert tag_tokens([(0, 6), (6, 8)], [Entity(0, 2, 0), Entity(2, 8, 1)]) == [3, 4]


def test_spans_have_no_blanks_at_their_ends() -> None:
    """Tokens of GPT-2 and T5 begin with the blank before them."""
    text = "by Anna Smith ."
    places = [(0, 2), (2, 7), (7, 13), (13, 15)]
    (found,) = find_spans([0, 1, 2, 0], places, text)
    assert text[found.start : found.end] == "Anna Smith"


@given(st.lists(st.integers(0, len(TAGS) - 1), max_size=12))
def test_entities_are_those_of_seqeval_in_its_strict_mode(tags: list[int]) -> None:
    """Any other reading would give another F1 than papers have."""
    scheme = pytest.importorskip("seqeval.scheme")
    words = [TAGS[tag] for tag in tags]
    expected = []
    if words:
        entities = scheme.Entities([words], scheme.IOB2, suffix=False)
        for entity in itertools.chain.from_iterable(entities.entities):
            expected.append(Entity(entity.start, entity.end, NAMES.index(entity.tag)))
    assert list_entities(tags) == expected


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_no_sequence_that_follows_the_rules_is_likelier(seed: int, length: int) -> None:
    """Held against every sequence of two types there is."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, length, 5, generator=generator, dtype=torch.float64) * 3
    allowed = follow_rules(5)
    scores = logits.log_softmax(-1)
    for row, found in enumerate(best_tags(logits).tolist()):
        best = -float("inf")
        for tags in itertools.product(range(5), repeat=length):
            steps = zip((0, *tags), tags, strict=False)
            if all(bool(allowed[before, after]) for before, after in steps):
                best = max(best, sum(float(scores[row, n, t]) for n, t in enumerate(tags)))
        steps = list(zip((0, *found), found, strict=False))
        assert all(bool(allowed[before, after]) for before, after in steps)
        told = sum(float(scores[row, n, t]) for n, t in enumerate(found))
        assert told == pytest.approx(best)
