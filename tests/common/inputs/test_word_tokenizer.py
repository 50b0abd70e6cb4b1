"""Words as fastai cuts them: its own examples, and texts that would take an hour."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.word_tokenizer import (
    Vocabulary,
    open_vocabulary,
    split_words,
    write_vocabulary,
)

TOKENS = ("xxunk", "xxpad", "xxbos", "xxmaj", "no", "rash", ".", "xxfake", "xxfake")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # of fastai 2.8 with spaCy's tokenizer of English, as printed there
        ("No rash.", "xxbos xxmaj no rash ."),
        ("MRI of A knee", "xxbos xxup mri of a knee"),
        ("cccc", "xxbos xxrep 4 c"),
        ("no no no no fever", "xxbos xxwrep 4 no fever"),
        ("She doesn't and it's", "xxbos xxmaj she does n't and it 's"),
        ("and/or", "xxbos and / or"),
        ("fever&nbsp;and #39;pain", "xxbos fever & and ' pain"),
        ("x-ray (left)", "xxbos x - ray ( left )"),
        ("1,250.5 mg", "xxbos 1,250.5 mg"),
        ("It’s 50%", "xxbos xxmaj it ’s 50 %"),
        ("McDonald", "xxbos mcdonald"),
        ("wait...", "xxbos wait …"),
        ("", "xxbos"),
    ],
)
def test_words_are_fastais(text: str, words: str) -> None:
    """A word that the encoder was not trained on is unknown to it."""
    assert " ".join(split_words(text)) == words


def test_line_breaks_are_words_where_the_vocabulary_has_them() -> None:
    """They would be unknown words in every text of several lines."""
    assert split_words("no<br />rash\n\nno") == ["xxbos", "no", "\n", "rash", "\n\n", "no"]
    without = Vocabulary(TOKENS)
    assert without.number("no\nrash", 9) == [2, 4, 5]
    assert Vocabulary((*TOKENS, "\n")).number("no\nrash", 9) == [2, 4, 9, 5]


def test_a_vocabulary_travels_whole() -> None:
    """Another number for a word is another word; unknown ones are xxunk, fillers are none."""
    again = open_vocabulary(write_vocabulary(TOKENS))
    assert again == Vocabulary(TOKENS)
    assert again.number("No rash xxfake cough.", 99) == [2, 3, 4, 5, 0, 0, 6]
    assert again.number("No rash xxfake cough.", 3) == [2, 3, 4]
    with pytest.raises(UserError, match="cannot be read"):
        open_vocabulary(b"[]")


@given(st.text())
def test_every_text_has_words(text: str) -> None:
    """A record of any letters at all is still a record."""
    words = split_words(text)
    assert words[0] == "xxbos"
    assert all(words)


@pytest.mark.parametrize(
    "text",
    [
        "AB" * 50_000 + "a",
        "a " * 50_000,
        "a b " * 50_000 + "a",
        "Ab" * 50_000,
        "n" * 3 + "x" * 50_000,
        "xn'" * 50_000,
        "word" * 25_000 + "n'",
        "1," * 50_000,
        "\n" * 50_000,
    ],
)
def test_the_time_grows_with_the_length_alone(text: str) -> None:
    """One text of a hundred thousand letters must not hold a round up."""
    began = time.perf_counter()
    split_words(text)
    assert time.perf_counter() - began < 5
