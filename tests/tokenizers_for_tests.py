"""A tokenizer of a few words, as BERT has one: made here, so that no file is fetched."""

from __future__ import annotations

import json
from typing import Any

WORDS = ("cough", "fever", "rash", "pain", "three", "weeks", "no", "known", "nothing", "found", "a")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def small_tokenizer(**changes: Any) -> bytes:
    """Return the bytes of a `tokenizer.json`; `changes` replace parts of it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = list("abcdefghijklmnopqrstuvwxyz.,0123456789")
    names = [*SPECIAL, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    described = json.loads(tokenizer.to_str())
    return json.dumps(described | changes).encode()


def count_words() -> int:
    """Return how many tokens `small_tokenizer` knows."""
    return len(json.loads(small_tokenizer())["model"]["vocab"])
