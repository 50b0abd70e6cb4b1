"""YAML read with the line of every key, so that each mistake is shown with its place in the file.

The files are small and written by people, so the reader is strict: `yaml_parser.py` has the rules.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fedgraft.common.errors import UserError, UserErrors
from fedgraft.common.files.mistakes import KeyPath, explain, shown
from fedgraft.common.files.yaml_parser import YamlParser, read_scalar

# bytes
LARGEST_FILE = 1_000_000

Lines = Mapping[KeyPath, int]
Model = TypeVar("Model", bound=BaseModel)


# ── reading ───────────────────────────────────────────────────────────────────────────────────────
def read_yaml(path: str | Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Return the mapping in a YAML file, and the line (from 1) of each key and item by its path:
    `("train", "rounds")`.

    Raises:
        UserError: the file cannot be read, is not UTF-8 or YAML, or breaks a rule of
            `yaml_parser.py`.
    """
    path = Path(path)
    data, lines = parse_yaml(_read_text(path), str(path))
    if not isinstance(data, dict):
        raise UserError(
            f"found {shown(data)}, but the file must hold keys and values",
            where=f"{path}:{lines.get((), 1)}",
            remedy="write lines such as `name: pneumonia`",
        )
    return data, lines


def _read_text(path: Path) -> str:
    raw = _read_bytes(path)
    if len(raw) > LARGEST_FILE:
        what = f"the file is larger than {LARGEST_FILE:,} bytes"
        remedy = "a plan or a node file is a page of text; is this the right file?"
        raise UserError(what, where=str(path), remedy=remedy)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        remedy = "save the file as UTF-8"
        raise UserError("not UTF-8 text", where=f"{path}:{line}", remedy=remedy) from None


def _read_bytes(path: Path) -> bytes:
    """Return the file's bytes, or one more than may be in it."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            remedy = "give the path of a YAML file"
            raise UserError("this is not a file", where=str(path), remedy=remedy)
        with path.open("rb") as file:
            return file.read(LARGEST_FILE + 1)
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        remedy = "check the path and its permissions"
        raise UserError(what, where=str(path), remedy=remedy) from None


def parse_yaml(text: str, file: str) -> tuple[Any, dict[KeyPath, int]]:
    """Return the value of a YAML text, of any kind, and the line of each key.

    Args:
        file: named in errors.

    Raises:
        UserError: it is no YAML, or breaks a rule of `yaml_parser.py`.
    """
    try:
        parser = YamlParser(text, file)
        return parser.read(), parser.lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = file
        if mark is not None:
            where = f"{file}:{mark.line + 1}"
        what = f"not valid YAML: {error.problem or error.context}"
        remedy = "check the indentation, the quotes and the brackets here and on the line before"
        raise UserError(what, where=where, remedy=remedy) from None
    except (yaml.YAMLError, UnicodeError) as error:
        reason = getattr(error, "reason", None) or "it holds characters that no text has"
        remedy = "save the file as plain text in UTF-8"
        raise UserError(f"not valid YAML: {reason}", where=file, remedy=remedy) from None


# ── writing ───────────────────────────────────────────────────────────────────────────────────────
class _Dumper(yaml.SafeDumper):
    """Quotes every text that the parser would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None
    if not _is_plain(text):
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _is_plain(text: str) -> bool:
    """Whether a text is read as itself without quotes."""
    try:
        return isinstance(read_scalar(text), str) and text.isprintable()
    except ValueError:
        return False


_Dumper.add_representer(str, _represent_text)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Return YAML in the order of the keys; `parse_yaml` reads the same values back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


# ── validating ────────────────────────────────────────────────────────────────────────────────────
def validate(
    model_cls: type[Model],
    data: Any,
    lines: Lines,
    file: str,
    *,
    origins: Mapping[KeyPath, str] | None = None,
) -> Model:
    """Return the model that the data describes. Types are taken strictly: "3" is no number and true
    is no 1.

    Args:
        lines: the line of each key, as `read_yaml` gives it (may be empty).
        file: named in errors.
        origins: where values that do not stand in the file come from, such as `--set
            train.rounds=0`.

    Raises:
        UserErrors: every mistake at once, each with file, line, key, value found and what to write
            instead.
    """

    def where(path: KeyPath) -> str:
        return _option_of(path, lines, origins or {}) or _line_of(path, lines, file)

    try:
        # by way of JSON: strict, and yet a list becomes a tuple and a text a path
        return model_cls.model_validate_json(json.dumps(data), strict=True)
    except RecursionError:
        raise UserError("nested far too deep", where=file, remedy="no key lies that deep") from None
    except ValidationError as error:
        errors = explain(model_cls, error, data, where)
    raise UserErrors(errors) from None


def _option_of(path: KeyPath, lines: Lines, origins: Mapping[KeyPath, str]) -> str | None:
    """Return the option that set a key, the group around it, or what is in it where the file has
    no such key.
    """
    if not path:
        return None
    for origin, option in origins.items():
        is_within = path[: len(origin)] == origin
        is_around = path not in lines and origin[: len(path)] == path
        if is_within or is_around:
            return option
    return None


def _line_of(path: KeyPath, lines: Lines, file: str) -> str:
    """Return `file:line` of a key, or of the nearest group around it that has one."""
    for length in range(len(path), -1, -1):
        line = lines.get(path[:length])
        if line is not None:
            return f"{file}:{line}"
    return file
