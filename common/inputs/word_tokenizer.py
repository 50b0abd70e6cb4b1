"""Texts → words, as fastai prepares them for ULMFiT; and a vocabulary as it travels.

fastai's rules, in its order: leftovers of HTML are mended, `xxrep 4 c` stands for cccc and
`xxwrep 3 w` for a word that is said three times, spaces go around / and #, `xxup` stands before a
word in capitals and `xxmaj` before one that begins with one, all is in lower case, and `xxbos`
begins the text.

Then fastai hands the text to spaCy, and here one expression does it: numbers, words, `n't` and `'s`
and their kin, and every other sign by itself. spaCy's lists of exceptions (`e.g.`, `U.K.`, smileys,
addresses) are not known: their parts are words of their own.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from fedgraft.common.errors import UserError

# the rule that is written above; another one would be another name
RULE = "fastai"
UNKNOWN = "xxunk"
BEGIN = "xxbos"
# what fastai fills a vocabulary up with
FILLER = "xxfake"
# bytes, and tokens
LARGEST_FILE = 64_000_000
MOST_TOKENS = 1_000_000
LEFTOVERS = (
    ("#39;", "'"),
    ("amp;", "&"),
    ("#146;", "'"),
    ("nbsp;", " "),
    ("#36;", "$"),
    ("\\n", "\n"),
    ("quot;", "'"),
    ("<br />", "\n"),
    ('\\"', '"'),
    ("<unk>", UNKNOWN),
    (" @.@ ", "."),
    (" @-@ ", "-"),
    ("...", " …"),
)
_SAME_LETTER = re.compile(r"(\S)(\1{2,})")
_SAME_WORD = re.compile(r"(?:\s|^)(\w+)\s+((?:\1\s+)+)\1(\s|\W|$)")
_SIGN = re.compile(r"([/#\\])")
_SPACES = re.compile(" {2,}")
# no text has two ways to match these: the time grows with its length alone
_CAPITALS = re.compile(r"(\s|^)([A-Z][^a-z\s]*)(?=\s|$)")
_CAPITAL = re.compile(r"(\s|^)([A-Z][^A-Z\s]*)(?=\s|$)")
_WORD = re.compile(
    r"\n+"
    r"|\d+(?:[.,]\d+)*"
    r"|\w+?(?=n['’]t\b)|n['’]t\b|['’](?:s|re|ve|ll|d|m)\b"
    r"|\w+"
    r"|[^\w\s]"
)


@dataclass(frozen=True)
class Vocabulary:
    """The words that a network knows.

        vocabulary = open_vocabulary(content)
        vocabulary.number("A cough.", most=96)  # [2, 5, 11, 40, 9]

    Attributes:
        tokens: every word, by its number.
    """

    tokens: tuple[str, ...]

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """The number of each word."""
        return {token: at for at, token in enumerate(self.tokens) if token != FILLER}

    def number(self, text: str, most: int) -> list[int]:
        """Return the numbers of a text's first words; those that are not known are `xxunk`."""
        numbers = self.numbers
        unknown = numbers[UNKNOWN]
        found: list[int] = []
        for word in split_words(text):
            # a line break is a word where the vocabulary has it
            if word.startswith("\n") and word not in numbers:
                continue
            found.append(numbers.get(word, unknown))
        return found[:most]


def split_words(text: str) -> list[str]:
    """Return the words of a text, `xxbos` before them."""
    for leftover, meant in LEFTOVERS:
        text = text.replace(leftover, meant)
    text = html.unescape(text)
    text = _SAME_LETTER.sub(_count_letters, text)
    text = _SAME_WORD.sub(_count_words, text)
    text = _SIGN.sub(r" \1 ", text)
    text = _SPACES.sub(" ", text)
    text = _CAPITALS.sub(lambda found: _mark(found, "xxup"), text)
    text = _CAPITAL.sub(lambda found: _mark(found, "xxmaj"), text)
    return [BEGIN, *_WORD.findall(text.lower().strip())]


def _count_letters(found: re.Match[str]) -> str:
    letter, others = found.groups()
    return f" xxrep {len(others) + 1} {letter} "


def _count_words(found: re.Match[str]) -> str:
    word, others, end = found.groups()
    return f" xxwrep {len(others.split()) + 2} {word} {end}"


def _mark(found: re.Match[str], mark: str) -> str:
    """Return a word in lower case behind its mark; a single letter has none."""
    before, word = found.groups()
    if len(word) == 1:
        return before + word.lower()
    return f"{before}{mark} {word.lower()}"


# ── as it travels ─────────────────────────────────────────────────────────────────────────────────
def write_vocabulary(tokens: Sequence[str]) -> bytes:
    """Return a vocabulary as it is among a backbone's tensors."""
    return json.dumps({"rule": RULE, "tokens": list(tokens)}).encode()


@lru_cache(maxsize=4)
def open_vocabulary(content: bytes) -> Vocabulary:
    """Return the opposite of `write_vocabulary`. Raise `UserError` for anything else."""
    remedy = "save the backbone again"
    try:
        if len(content) > LARGEST_FILE:
            raise ValueError(f"{len(content):,} bytes")
        described = json.loads(content)
        rule = described["rule"]
        tokens = described["tokens"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"a vocabulary that cannot be read ({type(error).__name__})"
        raise UserError(what, where="vocabulary", remedy=remedy) from error
    if rule != RULE:
        what = f"texts are cut by the rule {str(rule)[:40]!r}, and {RULE!r} alone is known here"
        raise UserError(what, where="vocabulary", remedy=remedy)
    return Vocabulary(check_tokens(tokens, "vocabulary"))


def check_tokens(tokens: object, where: str) -> tuple[str, ...]:
    """Return a vocabulary's tokens. Raise `UserError` where they are no list of fastai's."""
    remedy = "write fastai's own, a JSON list: json.dump(list(dls.vocab[0]), file)"
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise UserError("no list of tokens", where=where, remedy=remedy)
    if len(tokens) > MOST_TOKENS:
        what = f"{len(tokens):,} tokens; at most {MOST_TOKENS:,} are taken"
        raise UserError(what, where=where, remedy="give another model")
    for special in (UNKNOWN, BEGIN):
        if special not in tokens:
            what = f"a vocabulary without {special}, which fastai's have"
            raise UserError(what, where=where, remedy=remedy)
    return tuple(tokens)
