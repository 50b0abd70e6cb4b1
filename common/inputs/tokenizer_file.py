"""A tokenizer as it travels: the bytes of `tokenizer.json`, data and no code.

The file may come from a server that is not to be trusted, so its parts are those of a list: a
regular expression of a stranger's could take a node an hour for a text of his choice, and a
tokenizer that draws at random gives other tokens each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

INSTALL = "pip install 'fedgraft[huggingface]'"
# bytes
LARGEST_FILE = 64_000_000
# characters of a word that is looked up in parts: the time grows with their square
LONGEST_WORD = 1000
MODELS = ("WordPiece", "BPE", "Unigram", "WordLevel")
PARTS = {
    "normalizer": (
        "Sequence",
        "BertNormalizer",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Nmt",
        "Lowercase",
        "Strip",
        "StripAccents",
        "Prepend",
        "Replace",
        "Precompiled",
    ),
    "pre_tokenizer": (
        "Sequence",
        "BertPreTokenizer",
        "ByteLevel",
        "CharDelimiterSplit",
        "Digits",
        "Metaspace",
        "Punctuation",
        "Split",
        "Whitespace",
        "WhitespaceSplit",
    ),
    "post_processor": (
        "Sequence",
        "BertProcessing",
        "ByteLevel",
        "RobertaProcessing",
        "TemplateProcessing",
    ),
}
# regular expressions that are in published files: T5's, and CLIP's
KNOWN_EXPRESSIONS = (
    " {2,}",
    r"\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    (
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
        r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    ),
)
# of no use for reading texts, or set for each network anew
DROPPED = ("decoder", "padding", "truncation")
_REMEDY = "give the folder of a published model as it was downloaded"


def tensor_of(content: bytes) -> Tensor:
    """Return the bytes of a file as a tensor uint8 `(bytes,)`."""
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


def bytes_of(tensor: Tensor) -> bytes:
    """Return the opposite of `tensor_of`. Raise `UserError` for a tensor that is no file's."""
    if tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise UserError("a tensor that is no file", remedy="save the backbone again")
    return tensor.numpy().tobytes()


@lru_cache(maxsize=4)
def open_tokenizer(content: bytes) -> Tokenizer:
    """Return the tokenizer that a `tokenizer.json` describes, without padding and cutting.

    Raises:
        UserError: the package is not installed, or the file is too large, damaged, or has parts
            that are not taken here.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        what = "texts are read with the package tokenizers, which is not installed"
        raise UserError(what, remedy=INSTALL) from error
    if len(content) > LARGEST_FILE:
        what = f"a tokenizer of {len(content):,} bytes; at most {LARGEST_FILE:,} are taken"
        raise UserError(what, remedy=_REMEDY)
    try:
        described = json.loads(content)
        _check_parts(described)
        _check_model(described["model"])
        for key in DROPPED:
            described[key] = None
        return Tokenizer.from_str(json.dumps(described))
    except UserError:
        raise
    # the package raises Exception itself
    except Exception as error:
        what = f"a tokenizer that cannot be read ({type(error).__name__})"
        raise UserError(what, where="tokenizer.json", remedy=_REMEDY) from error


def count_tokens(tokenizer: Tokenizer) -> int:
    """Return one more than the largest number that a token has."""
    numbers = [*tokenizer.get_vocab(with_added_tokens=True).values()]
    # those that are put around every text need not be in the vocabulary
    numbers += tokenizer.encode("").ids
    return 1 + max(numbers)


def _check_parts(described: Mapping[str, Any]) -> None:
    """Raise `UserError` for a part that is not on the list."""
    for name, known in PARTS.items():
        for part in _list_parts(described.get(name)):
            if "type" in part and part["type"] not in known:
                raise _refuse(f"{name} {str(part['type'])[:40]!r}")
            expression = part.get("Regex")
            if expression is not None and expression not in KNOWN_EXPRESSIONS:
                raise _refuse(f"the regular expression {str(expression)[:40]!r}")


def _check_model(model: Mapping[str, Any]) -> None:
    # older files do not name it
    kind = model.get("type", "BPE" if "merges" in model else "WordPiece")
    if kind not in MODELS:
        raise _refuse(f"the model {str(kind)[:40]!r}")
    if model.get("dropout"):
        raise _refuse("tokens that are dropped at random (dropout)")
    if int(model.get("max_input_chars_per_word") or 0) > LONGEST_WORD:
        raise _refuse(f"words of more than {LONGEST_WORD} characters")


def _list_parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every object inside a part, itself included."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _list_parts(inner)


def _refuse(what: str) -> UserError:
    remedy = "known are the tokenizers of BERT, RoBERTa, DistilBERT, GPT-2, T5 and CLIP"
    return UserError(f"a tokenizer with {what}", where="tokenizer.json", remedy=remedy)
