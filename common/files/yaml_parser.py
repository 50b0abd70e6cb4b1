"""YAML's events as values, and the line of every key.

Stricter than YAML: its version 1.2's scalars (`no` and `on` are words, `1e-3` is a number), no
aliases or anchors (with them a few lines unfold into gigabytes), no tags, no key twice, no NaN or
infinity, bounded depth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from fedgraft.common.errors import UserError
from fedgraft.common.files.mistakes import KeyPath, dotted

# nested mappings and lists
DEEPEST = 20
# digits
LONGEST_NUMBER = 300

Scalar = bool | int | float | str | None

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def read_scalar(text: str) -> Scalar:
    """Return an unquoted scalar by YAML 1.2's core schema (§10.3.2), decimal only.

    Raises:
        ValueError: a number that is not finite, or far too long.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    if not _FLOAT.fullmatch(text):
        return text
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"found a number of {len(text)} characters")
    if _INTEGER.fullmatch(text):
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large to be a number")
    return number


class YamlParser:
    """One YAML text, read once.

        parser = YamlParser("train: {rounds: 3}", "plan.yaml")
        parser.read()  # {"train": {"rounds": 3}}
        parser.lines[("train", "rounds")]  # 1

    Args:
        file: named in errors.
    """

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.lines: dict[KeyPath, int] = {}
        self._events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)

    def read(self) -> Any:
        """Return the value of the text, of any kind; None where it is empty.

        Raises:
            UserError: it breaks a rule of this module.
            yaml.YAMLError: it is no YAML.
        """
        value: Any = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    what = "a second document begins here"
                    raise self._error(event, what, "keep one, without `---`")
            elif isinstance(event, yaml.NodeEvent):
                value = self._read_value(event, ())
        return value

    def _read_value(self, event: yaml.NodeEvent, path: KeyPath) -> Any:
        """Return the value that begins with this event; take the events that belong to it."""
        self.lines.setdefault(path, event.start_mark.line + 1)
        self._check(event, path)
        if isinstance(event, yaml.ScalarEvent):
            return self._read_scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._read_list(path)
        return self._read_mapping(path)

    def _check(self, event: yaml.NodeEvent, path: KeyPath) -> None:
        """Raise `UserError` for aliases, tags and depths that no file of ours has."""
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            what = "aliases and anchors (`*x`, `&x`) are not allowed"
            raise self._error(event, what, "write the value out, or in quotes")
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise self._error(event, f"the tag {tag} is not allowed", "write the plain value")
        if len(path) > DEEPEST:
            what = f"nested more than {DEEPEST} deep"
            raise self._error(event, what, "no key lies that deep; check the brackets")

    def _read_scalar(self, event: yaml.ScalarEvent) -> Scalar:
        # quoted: it is text, whatever it looks like
        if event.style:
            return event.value
        try:
            return read_scalar(event.value)
        except ValueError as error:
            remedy = "write a finite number, or put text in quotes"
            raise self._error(event, str(error), remedy) from None

    def _read_list(self, path: KeyPath) -> list[Any]:
        items: list[Any] = []
        while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
            items.append(self._read_value(item, (*path, len(items))))
        return items

    def _read_mapping(self, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(key := next(self._events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent) or key.anchor is not None:
                raise self._error(key, "a key must be a plain word", "write `key: value`")
            inner = (*path, key.value)
            if key.value in mapping:
                what = f"`{dotted(inner)}` is given twice, first on line {self.lines[inner]}"
                raise self._error(key, what, "keep one of the two")
            self.lines[inner] = key.start_mark.line + 1
            mapping[key.value] = self._read_value(next(self._events), inner)
        return mapping

    def _error(self, event: yaml.Event, what: str, remedy: str) -> UserError:
        line = event.start_mark.line + 1
        return UserError(what, where=f"{self.file}:{line}", remedy=remedy)
