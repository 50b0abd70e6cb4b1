"""Texts as tokens: one length, the tokenizer that travels, and files of a stranger's."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.common.errors import UserError
from fedgraft.common.inputs import INPUTS
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.inputs.text import PADDING, TextPreparation, is_token, read_preparation
from fedgraft.common.inputs.tokenizer_file import bytes_of, open_tokenizer, tensor_of
from tests.tokenizers_for_tests import count_words, small_tokenizer


def prepare(length: int = 8) -> TextPreparation:
    tensors = {"tokenizer": tensor_of(small_tokenizer())}
    return TextPreparation(length, lambda: tensors)


def test_texts_become_the_tokens_of_the_tokenizer_padded_to_one_length() -> None:
    """Other numbers than the network was trained on, or a length that follows the batch."""
    texts = ["Cough, fever", "Three weeks of chest pain and a rash and nothing found"]
    batch = prepare()(texts)
    tokens = batch.only
    assert tokens.shape == (2, 8)
    expected = open_tokenizer(small_tokenizer()).encode(texts[0]).ids
    assert tokens[0].tolist() == expected + [PADDING] * (8 - len(expected))
    # [CLS] and [SEP] stay where a text is cut
    assert tokens[1, 0] == 2
    assert tokens[1, -1] == 3


@given(st.lists(st.text(max_size=60), min_size=1, max_size=6))
def test_no_text_changes_the_tokens_of_another(texts: list[str]) -> None:
    """Privacy by example would be lost; and no text is without a place that counts."""
    preparation = prepare()
    together = preparation(texts).only
    for text, row in zip(texts, together, strict=True):
        assert torch.equal(preparation([text]).only[0], row)
    assert bool((is_token(together).sum(1) >= 1).all())


def test_what_travels_gives_the_same_tokens() -> None:
    """A node that cut texts in another way would train another model."""
    preparation = prepare()
    tensor = tensor_of(small_tokenizer())
    arrived = INPUTS["text"].bind(
        read_preparation(json.loads(json.dumps(preparation.to_json()))),
        lambda: {"tokenizer": tensor},
    )
    texts = ["fever", "no known rash"]
    assert torch.equal(arrived(texts).only, preparation(texts).only)
    assert bytes_of(tensor) == small_tokenizer()


@pytest.mark.parametrize("data", [{}, {"max_length": 0}, {"max_length": True}, {"max_length": "8"}])
def test_a_preparation_that_nobody_wrote_is_refused(data: dict[str, object]) -> None:
    """A server can send anything."""
    with pytest.raises(UserError, match="cannot be"):
        read_preparation(data)


def test_probes_are_tokens_that_the_network_has() -> None:
    """A network that is tried with numbers of another kind fails where it would work."""
    preparation = prepare()
    example = preparation(["fever"])
    probes = draw_probes("text", preparation, example, 5).only
    assert probes.shape == (5, 8)
    assert probes.dtype == torch.int64
    assert int(probes.max()) < count_words()
    assert torch.equal(probes, draw_probes("text", preparation, example, 5).only)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {
                "normalizer": {
                    "type": "Replace",
                    "pattern": {"Regex": "(a+)+$"},
                    "content": "",
                }
            },
            "regular expression",
        ),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Split", "pattern": {"Regex": "(a|a)*b"}, "behavior": "Isolated"}
                    ],
                }
            },
            "the regular expression",
        ),
        ({"model": {"type": "Surprise"}}, "model 'Surprise'"),
        ({"model": {"type": "BPE", "dropout": 0.5}}, "at random"),
        (
            {"model": {"type": "WordPiece", "vocab": {}, "max_input_chars_per_word": 10**9}},
            "characters",
        ),
        ({"model": None}, "cannot be read"),
    ],
)
def test_a_hostile_tokenizer_is_refused(changes: dict[str, object], words: str) -> None:
    """An expression that takes an hour for one text, tokens drawn at random, a word in a square."""
    with pytest.raises(UserError, match=words):
        open_tokenizer(small_tokenizer(**changes))


def test_bytes_that_are_no_tokenizer_are_refused() -> None:
    """A traceback from another package, or memory without bound."""
    for content in (b"", b"{", b"[" * 100_000):
        with pytest.raises(UserError, match="cannot be read"):
            open_tokenizer(content)


def test_a_tokenizer_that_asks_for_padding_of_its_own_gets_none() -> None:
    """Published files often come with the padding and cutting of their makers."""
    padded = {
        "padding": {
            "strategy": {"Fixed": 64},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        }
    }
    tensors = {"tokenizer": tensor_of(small_tokenizer(**padded))}
    preparation = TextPreparation(8, lambda: tensors)
    assert torch.equal(preparation(["fever"]).only, prepare()(["fever"]).only)


def test_anything_but_texts_is_refused_in_words() -> None:
    """One text instead of a list of one would be read letter by letter."""
    with pytest.raises(UserError, match="no list of texts"):
        prepare()("fever")
