"""Every key of a plan in words: what `fedgraft validate --keys` and the documentation show."""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.section import OneOf

WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true | false",
    type(None): "null",
    Path: "path",
}


class Key(NamedTuple):
    """One key of a plan: dotted name, what it may hold, default as YAML ("" where it is required),
    meaning.
    """

    key: str
    type: str
    default: str
    description: str


def describe_keys(model: type[BaseModel] = Plan, prefix: str = "") -> list[Key]:
    """Return every key of a plan, in the order of the file, groups before the keys in them."""
    rows: list[Key] = []
    for name, field in model.model_fields.items():
        default = _default(field.default)
        kind, group = _kind(field.annotation)
        kind = _names_of(field) or kind
        if group is not None and group.model_fields and default != "null":
            # the keys inside have their own
            default = ""
        rows.append(Key(prefix + name, kind, default, field.description or ""))
        if group is not None:
            rows += describe_keys(group, f"{prefix}{name}.")
    return rows


def _names_of(field: FieldInfo) -> str:
    """Return the names that a key may hold, where a table has them; else nothing."""
    for rule in field.metadata:
        check = getattr(rule, "func", None)
        if isinstance(check, OneOf):
            return " | ".join(check.names())
    return ""


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return ""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, tuple):
        value = list(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _kind(annotation: Any) -> tuple[str, type[BaseModel] | None]:
    """Return what a key may hold, in words, and the model if it is a group of keys."""
    origin = typing.get_origin(annotation)
    inner = typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(inner[0])
    if origin is typing.Literal:
        return " | ".join(inner), None
    if origin is tuple:
        element, _ = _kind(inner[0])
        return f"list of {element}", None
    if origin is dict:
        element, _ = _kind(inner[1])
        return f"mapping of text to {element}", None
    if origin in (typing.Union, types.UnionType):
        kinds = [_kind(part) for part in inner]
        words = " | ".join(kind for kind, _ in kinds)
        groups = [group for _, group in kinds if group is not None]
        return words, next(iter(groups), None)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "group", annotation
    return WORDS.get(annotation, str(annotation)), None
