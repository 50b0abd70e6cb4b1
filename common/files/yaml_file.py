"""YAML read with the line of every key, so that each mistake can be told with its place in the
file.

The files are small and written by people, so the reader is strict: YAML 1.2's scalars (`no` and
`on` are words, `1e-3` is a number), no aliases or anchors (with them a few lines unfold into
gigabytes), no tags, no key twice, no NaN or infinity, bounded size and depth.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fedgraft.common.errors import UserError, UserErrors
from fedgraft.common.files.mistakes import KeyPath, dotted, explain, shown

LARGEST_FILE = 1_000_000  # bytes
DEEPEST = 20  # nested mappings and lists
LONGEST_NUMBER = 300  # digits

Lines = Mapping[KeyPath, int]
Model = TypeVar("Model", bound=BaseModel)

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


# Reading


def read_yaml(path: str | Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The mapping in a YAML file, and the line (from 1) of each key and item by its path:
    `("train", "rounds")`.

    Raises:
        UserError: the file cannot be read, is not UTF-8 or YAML, or breaks a rule of this module.
    """
    path = Path(path)
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(
                "this is not a file", where=str(path), remedy="give the path of a YAML file"
            )
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot be read: {reason}",
            where=str(path),
            remedy="check the path and its permissions",
        ) from None
    if len(raw) > LARGEST_FILE:
        raise UserError(
            f"the file is larger than {LARGEST_FILE:,} bytes",
            where=str(path),
            remedy="a plan or a node file is a page of text; is this the right file?",
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            "not UTF-8 text", where=f"{path}:{line}", remedy="save the file as UTF-8"
        ) from None
    data, lines = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise UserError(
            f"found {shown(data)}, but the file must hold keys and values",
            where=f"{path}:{lines.get((), 1)}",
            remedy="write lines such as `name: pneumonia`",
        )
    return data, lines


def parse_yaml(text: str, file: str) -> tuple[Any, dict[KeyPath, int]]:
    """What a YAML text says (any kind of value), and the line of each key. `file` is only named in
    errors.
    """
    lines: dict[KeyPath, int] = {}
    events: Iterator[yaml.Event] = yaml.parse(text, Loader=_LOADER)
    value: Any = None
    try:
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise UserError(
                        "a second document begins here",
                        where=_at(file, event),
                        remedy="keep one, without `---`",
                    )
            elif isinstance(event, yaml.NodeEvent):
                value = _value(event, events, (), lines, file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        remedy = "check the indentation, the quotes and the brackets here and on the line before"
        raise UserError(
            f"not valid YAML: {error.problem or error.context}", where=where, remedy=remedy
        ) from None
    except (yaml.YAMLError, UnicodeError) as error:
        what = (
            "not valid YAML:"
            f" {getattr(error, 'reason', None) or 'it holds characters that no text has'}"
        )
        raise UserError(what, where=file, remedy="save the file as plain text in UTF-8") from None
    return value, lines


def _check_event(event: yaml.NodeEvent, path: KeyPath, here: str) -> None:
    """Raise `UserError` for aliases, tags and depths that no file of ours has."""
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise UserError(
            "aliases and anchors (`*x`, `&x`) are not allowed",
            where=here,
            remedy="write the value out, or in quotes",
        )
    tag = getattr(event, "tag", None)
    if tag is not None and tag != "!":
        raise UserError(f"the tag {tag} is not allowed", where=here, remedy="write the plain value")
    if len(path) > DEEPEST:
        raise UserError(
            f"nested more than {DEEPEST} deep",
            where=here,
            remedy="no key lies that deep; check the brackets",
        )


def _value(
    event: yaml.NodeEvent,
    events: Iterator[yaml.Event],
    path: KeyPath,
    lines: dict[KeyPath, int],
    file: str,
) -> Any:
    """The value that begins with this event; takes the events that belong to it."""
    here = _at(file, event)
    lines.setdefault(path, event.start_mark.line + 1)
    _check_event(event, path, here)
    if isinstance(event, yaml.ScalarEvent):
        if event.style:  # quoted: it is text, whatever it looks like
            return event.value
        try:
            return _scalar(event.value)
        except ValueError as error:
            raise UserError(
                str(error), where=here, remedy="write a finite number, or put text in quotes"
            ) from None
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_value(item, events, (*path, len(items)), lines, file))  # type: ignore[arg-type]
        return items
    mapping: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent) or key.anchor is not None:
            raise UserError(
                "a key must be a plain word", where=_at(file, key), remedy="write `key: value`"
            )
        inner = (*path, key.value)
        if key.value in mapping:
            raise UserError(
                f"`{dotted(inner)}` is given twice, first on line {lines[inner]}",
                where=_at(file, key),
                remedy="keep one of the two",
            )
        lines[inner] = key.start_mark.line + 1
        mapping[key.value] = _value(next(events), events, inner, lines, file)  # type: ignore[arg-type]
    return mapping


def _scalar(text: str) -> bool | int | float | str | None:
    """An unquoted scalar by YAML 1.2's core schema (§10.3.2), decimal only; ValueError if not
    finite.
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


def _at(file: str, event: yaml.Event) -> str:
    return f"{file}:{event.start_mark.line + 1}"


# Writing


class _Dumper(yaml.SafeDumper):
    """Quotes every text that the reader above would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        plain = isinstance(_scalar(text), str) and text.isprintable()
    except ValueError:
        plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """YAML in the order of the keys; `parse_yaml` reads the same values back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


# Validating


def validate(
    model_cls: type[Model],
    data: Any,
    lines: Lines,
    file: str,
    *,
    origins: Mapping[KeyPath, str] | None = None,
) -> Model:
    """The model that the data describes. Types are taken strictly: "3" is no number and true is no
    1.

    Args:
        lines: the line of each key, as `read_yaml` gives it (may be empty).
        file: named in errors.
        origins: where values that do not stand in the file come from, such as `--set
            train.rounds=0`.

    Raises:
        UserErrors: every mistake at once, each with file, line, key, value found and what to write
            instead.
    """
    try:
        # By way of JSON: strict, and yet a list becomes a tuple and a text a path.
        return model_cls.model_validate_json(json.dumps(data), strict=True)
    except RecursionError:
        raise UserError("nested far too deep", where=file, remedy="no key lies that deep") from None
    except ValidationError as error:
        told = explain(
            model_cls, error, data, lambda path: _where(path, lines, file, origins or {})
        )
    raise UserErrors(told) from None


def _where(path: KeyPath, lines: Lines, file: str, origins: Mapping[KeyPath, str]) -> str:
    """`file:line` of a key, or of the nearest group around it that has one; or the option that set
    it.
    """
    for origin, text in origins.items():
        if path and (
            path[: len(origin)] == origin or (path not in lines and origin[: len(path)] == path)
        ):
            return text
    for length in range(len(path), -1, -1):
        if path[:length] in lines:
            return f"{file}:{lines[path[:length]]}"
    return file
