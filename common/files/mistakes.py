"""Pydantic's complaints as messages that teach: key, value found, what to write instead, the
nearest name.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fedgraft.common.errors import UserError

KeyPath = tuple[str | int, ...]

MOST_TOLD = 50  # mistakes in one message


class Contradictions(ValueError):
    """Raised by a model's validator when keys, each right by itself, do not fit together.

    Args:
        found: (dotted key relative to that model, what is wrong, what to write instead) for each.
    """

    def __init__(self, found: Sequence[tuple[str, str, str]]) -> None:
        self.found = tuple(found)
        super().__init__("; ".join(f"{key}: {what}" for key, what, _ in found))


def explain(
    model_cls: type[BaseModel], error: ValidationError, data: Any, where: Callable[[KeyPath], str]
) -> list[UserError]:
    """Every mistake that pydantic found in the data; `where` tells the place of a key."""
    groups = _by_place(error.errors(include_url=False), data)
    told: list[UserError] = []
    for path, group in groups.items():
        if len(told) >= MOST_TOLD:
            told.append(UserError(f"and {len(groups) - MOST_TOLD} more mistakes"))
            break
        told += _explain(model_cls, path, group, data, where)
    return told


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known name that a misspelt one was most likely meant to be."""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(lower), n=1, cutoff=0.5)
    return lower[close[0]] if close else None


def dotted(path: KeyPath) -> str:
    """`("task", "classes", 0)` as `task.classes[0]`."""
    words = (f"[{part}]" if isinstance(part, int) else f".{_plain(part)}" for part in path)
    return "".join(words).removeprefix(".")


def _steps(name: str) -> KeyPath:
    """The path of a dotted name: `categories.0.column` is a key of a list's first item."""
    return tuple(int(step) if step.isdigit() else step for step in name.split("."))


def shown(value: Any) -> str:
    """A value as an error quotes it: on one line and short."""
    if isinstance(value, dict):
        return "keys and values" if value else "nothing"
    text = (
        "nothing"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else repr(value)
    )
    return text if len(text) <= 80 else f"{text[:77]}…"


def _plain(word: str) -> str:
    """A key as it was written, unless it is very long or would upset a terminal."""
    return word if word.isprintable() and len(word) <= 80 else shown(word)


def _by_place(problems: Sequence[Any], data: Any) -> dict[KeyPath, list[Any]]:
    """Pydantic's problems by the key they are about; those of a union's alternatives come
    together.
    """
    groups: dict[KeyPath, list[Any]] = {}
    around: set[KeyPath] = set()
    for problem in problems:
        absent = problem["loc"][-1:] if problem["type"] == "missing" else ()
        value, path = data, ()
        for step in problem["loc"][: len(problem["loc"]) - len(absent)]:
            inside = isinstance(value, dict) and step in value
            if inside or (isinstance(value, list) and isinstance(step, int) and step < len(value)):
                value, path = value[step], (*path, step)
            # a step that is not in the data names an alternative of a union
        path = (*path, *absent)
        groups.setdefault(path, []).append(problem)
        around.update(path[:length] for length in range(1, len(path)))
    # "a list is not a word" is no news where one item of the list is wrong
    return {path: group for path, group in groups.items() if path not in around}


def _explain(
    model_cls: type[BaseModel], path: KeyPath, group: Sequence[Any], data: Any, where: Any
) -> list[UserError]:
    """The errors to tell about one key."""
    problem = group[0]
    kind, key = problem["type"], dotted(path) or "the whole"
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, Contradictions):
        inner = [(tuple(path) + _steps(name), what, remedy) for name, what, remedy in cause.found]
        return [
            UserError(f"{dotted(at)}: {what}", where=where(at), remedy=remedy)
            for at, what, remedy in inner
        ]
    field = _field_at(model_cls, path)
    about = field.description if field is not None and field.description else ""
    if kind == "extra_forbidden":
        known = list(_model_at(model_cls, path[:-1]).model_fields)
        guess = nearest(str(path[-1]), known)
        remedy = f"did you mean `{guess}`? " if guess else ""
        return [
            UserError(
                f"{key}: unknown key",
                where=where(path),
                remedy=f"{remedy}Known here: {', '.join(known)}",
            )
        ]
    if (
        kind == "json_invalid"
    ):  # what JSON can hold and we cannot: half a surrogate pair, hundreds of levels
        what = f"cannot be taken: {problem['ctx']['error']}"
        return [UserError(what, where=where(path), remedy="write it as a page of plain text")]
    if kind == "missing":
        return [
            UserError(
                f"{key}: missing", where=where(path), remedy=f"write `{path[-1]}: …` ({about})"
            )
        ]
    value = _look(data, path)
    name = next((step for step in reversed(path) if isinstance(step, str)), "")
    meaning = f"`{name}` is: {about}" if about else ""
    if kind in ("value_error", "assertion_error"):
        return [
            UserError(f"{key}: found {shown(value)}; {cause}", where=where(path), remedy=meaning)
        ]
    wanted = ", or ".join(dict.fromkeys(_wanted(problem) for problem in group))
    words = [
        word
        for problem in group
        for word in re.findall(r"'([^']*)'", problem.get("ctx", {}).get("expected", ""))
    ]
    guess = nearest(value, words) if isinstance(value, str) and words else None
    remedy = f"did you mean `{guess}`?" if guess else meaning
    return [
        UserError(
            f"{key}: found {shown(value)}; {wanted} is needed", where=where(path), remedy=remedy
        )
    ]


_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text (numbers in quotes)",
    "bool_type": "true or false",
    "tuple_type": "a list such as [a, b]",
    "list_type": "a list such as [a, b]",
    "model_type": "a group of keys",
    "dict_type": "a group of keys",
    "path_type": "a path",
}


def _wanted(problem: Any) -> str:
    """What pydantic expected, in plain words."""
    kind, ctx = problem["type"], problem.get("ctx", {})
    if kind in _KINDS:
        return _KINDS[kind]
    if kind == "literal_error":
        return f"{ctx['expected']}"
    if kind == "too_short":
        return f"a list of at least {ctx['min_length']}"
    if kind == "too_long":
        return f"a list of at most {ctx['max_length']}"
    if kind == "string_pattern_mismatch":
        return "text of another form"
    if kind.startswith(("greater_than", "less_than")):
        return f"a number {problem['msg'].removeprefix('Input should be ')}"
    return re.sub(r"^(Input|String|Value) should (be|have) ", "", problem["msg"])


def _look(data: Any, path: KeyPath) -> Any:
    for step in path:
        data = data[step]
    return data


def _model_at(model_cls: type[BaseModel], path: KeyPath) -> type[BaseModel]:
    """The model whose keys stand at this path."""
    for step in path:
        field = model_cls.model_fields.get(str(step))
        if field is not None:
            model_cls = _model_in(field.annotation) or model_cls
    return model_cls


def _field_at(model_cls: type[BaseModel], path: KeyPath) -> FieldInfo | None:
    names = [step for step in path if isinstance(step, str)]
    return _model_at(model_cls, tuple(names[:-1])).model_fields.get(names[-1]) if names else None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `Pretrain | None`."""
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, BaseModel)
    ):
        return annotation
    return next(
        (model for inner in typing.get_args(annotation) if (model := _model_in(inner))), None
    )
