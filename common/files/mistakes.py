"""Pydantic's complaints as messages that teach: key, value found, what to write instead, the
nearest name.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fedgraft.common.errors import UserError

KeyPath = tuple[str | int, ...]

# mistakes in one message
MOST_LISTED = 50
# characters of a value
LONGEST_SHOWN = 80


class Contradictions(ValueError):
    """Raised by a model's validator when keys, each right by itself, do not fit together.

        raise Contradictions([("labels", "3 labels for 2 classes", "write one label for each")])

    Args:
        problems: (dotted key relative to that model, what is wrong, what to write instead) for
            each.
    """

    def __init__(self, problems: Sequence[tuple[str, str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{key}: {what}" for key, what, _ in problems))


@dataclass(frozen=True)
class Document:
    """What was read, and what it should have been.

    Attributes:
        model: the model that the data is to describe.
        data: as it was read.
        where: the place of a key, for people.
    """

    model: type[BaseModel]
    data: Any
    where: Callable[[KeyPath], str]


def explain(
    model: type[BaseModel], error: ValidationError, data: Any, where: Callable[[KeyPath], str]
) -> list[UserError]:
    """Return every mistake that pydantic has seen in the data; `where` gives the place of a key."""
    document = Document(model, data, where)
    groups = _group_by_key(error.errors(include_url=False), data)
    errors: list[UserError] = []
    for path, problems in groups.items():
        if len(errors) >= MOST_LISTED:
            errors.append(UserError(f"and {len(groups) - MOST_LISTED} more mistakes"))
            break
        errors += _explain(path, problems, document)
    return errors


# ── words ─────────────────────────────────────────────────────────────────────────────────────────
def nearest(word: str, known: Sequence[str]) -> str | None:
    """Return the known name that a misspelt one was most likely meant to be; None for no such."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    if not close:
        return None
    return by_lower[close[0]]


def dotted(path: KeyPath) -> str:
    """Return `("task", "classes", 0)` as `task.classes[0]`."""
    words = ""
    for step in path:
        if isinstance(step, int):
            words += f"[{step}]"
        else:
            words += f".{_plain(step)}"
    return words.removeprefix(".")


def shown(value: Any) -> str:
    """Return a value as an error quotes it: on one line and short."""
    text = _as_text(value)
    if len(text) > LONGEST_SHOWN:
        return f"{text[: LONGEST_SHOWN - 3]}…"
    return text


def _as_text(value: Any) -> str:
    if value is None or value == {}:
        return "nothing"
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def _plain(word: str) -> str:
    """Return a key as it was written, unless it is very long or would upset a terminal."""
    if word.isprintable() and len(word) <= LONGEST_SHOWN:
        return word
    return shown(word)


# ── pydantic's problems by key ────────────────────────────────────────────────────────────────────
def _group_by_key(problems: Sequence[Any], data: Any) -> dict[KeyPath, list[Any]]:
    """Return pydantic's problems by the key they are about; those of a union's alternatives come
    together.
    """
    groups: dict[KeyPath, list[Any]] = {}
    around: set[KeyPath] = set()
    for problem in problems:
        path = _path_of(problem, data)
        groups.setdefault(path, []).append(problem)
        around.update(path[:length] for length in range(1, len(path)))
    # "a list is not a word" is no news where one item of the list is wrong
    return {path: group for path, group in groups.items() if path not in around}


def _path_of(problem: Any, data: Any) -> KeyPath:
    """Return the path of a problem's key in the data, or of a key that is missing there."""
    steps = problem["loc"]
    absent: KeyPath = ()
    if problem["type"] == "missing":
        absent = steps[-1:]
        steps = steps[:-1]
    path: KeyPath = ()
    value = data
    for step in steps:
        # a step that is not in the data names an alternative of a union
        if _holds(value, step):
            value = value[step]
            path = (*path, step)
    return (*path, *absent)


def _holds(value: Any, step: str | int) -> bool:
    if isinstance(value, dict):
        return step in value
    return isinstance(value, list) and isinstance(step, int) and step < len(value)


# ── one key's problems in words ───────────────────────────────────────────────────────────────────
def _explain(path: KeyPath, problems: Sequence[Any], document: Document) -> list[UserError]:
    """Return the errors to report of one key."""
    cause = _context(problems[0]).get("error")
    if not isinstance(cause, Contradictions):
        what, remedy = _describe(path, problems, document)
        return [UserError(what, where=document.where(path), remedy=remedy)]
    errors: list[UserError] = []
    for name, what, remedy in cause.problems:
        at = (*path, *_steps_of(name))
        errors.append(UserError(f"{dotted(at)}: {what}", where=document.where(at), remedy=remedy))
    return errors


def _steps_of(name: str) -> KeyPath:
    """Return the path of a dotted name: `categories.0.column` is a key of a list's first item."""
    return tuple(int(step) if step.isdigit() else step for step in name.split("."))


def _describe(path: KeyPath, problems: Sequence[Any], document: Document) -> tuple[str, str]:
    """Return what is wrong with a key, and what to write instead."""
    problem = problems[0]
    kind = problem["type"]
    key = dotted(path) or "the whole"
    if kind == "extra_forbidden":
        return f"{key}: unknown key", _suggest_key(path, document)
    if kind == "json_invalid":
        # what JSON can hold and we cannot: half a surrogate pair, hundreds of levels
        return f"cannot be taken: {problem['ctx']['error']}", "write it as a page of plain text"
    about = _description_of(path, document)
    if kind == "missing":
        return f"{key}: missing", f"write `{path[-1]}: …` ({about})"
    meaning = ""
    if about:
        meaning = f"`{_last_name(path)}` is: {about}"
    value = _value_at(path, document)
    if kind in ("value_error", "assertion_error"):
        return f"{key}: found {shown(value)}; {_context(problem).get('error')}", meaning
    needed = ", or ".join(dict.fromkeys(map(_needed, problems)))
    return f"{key}: found {shown(value)}; {needed} is needed", _suggest(value, problems) or meaning


def _suggest_key(path: KeyPath, document: Document) -> str:
    known = list(_model_at(document.model, path[:-1]).model_fields)
    listed = f"Known here: {', '.join(known)}"
    guess = nearest(str(path[-1]), known)
    if guess is None:
        return listed
    return f"did you mean `{guess}`? {listed}"


def _suggest(value: Any, problems: Sequence[Any]) -> str:
    """Return the word that was most likely meant; empty where there is none."""
    words: list[str] = []
    for problem in problems:
        words += re.findall(r"'([^']*)'", _context(problem).get("expected", ""))
    if not isinstance(value, str):
        return ""
    guess = nearest(value, words)
    if guess is None:
        return ""
    return f"did you mean `{guess}`?"


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
    "string_pattern_mismatch": "text of another form",
}


def _needed(problem: Any) -> str:
    """Return what pydantic expected, in plain words."""
    kind = problem["type"]
    context = _context(problem)
    if kind in _KINDS:
        return _KINDS[kind]
    if kind == "literal_error":
        return f"{context['expected']}"
    if kind == "too_short":
        return f"a list of at least {context['min_length']}"
    if kind == "too_long":
        return f"a list of at most {context['max_length']}"
    message: str = problem["msg"]
    if kind.startswith(("greater_than", "less_than")):
        return f"a number {message.removeprefix('Input should be ')}"
    return re.sub(r"^(Input|String|Value) should (be|have) ", "", message)


def _context(problem: Any) -> dict[str, Any]:
    return problem.get("ctx", {})


# ── a key in the data and in the model ────────────────────────────────────────────────────────────
def _value_at(path: KeyPath, document: Document) -> Any:
    value = document.data
    for step in path:
        value = value[step]
    return value


def _last_name(path: KeyPath) -> str:
    """Return the last name of a path; the numbers of list items are none."""
    names = [step for step in path if isinstance(step, str)]
    return names[-1] if names else ""


def _description_of(path: KeyPath, document: Document) -> str:
    """Return what the model says of a key; empty where it says nothing."""
    field = _field_at(document.model, path)
    if field is None:
        return ""
    return field.description or ""


def _field_at(model: type[BaseModel], path: KeyPath) -> FieldInfo | None:
    names = [step for step in path if isinstance(step, str)]
    if not names:
        return None
    return _model_at(model, tuple(names[:-1])).model_fields.get(names[-1])


def _model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel]:
    """Return the model whose keys stand at this path."""
    for step in path:
        field = model.model_fields.get(str(step))
        if field is not None:
            model = _model_in(field.annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model in an annotation such as `Pretrain | None`."""
    is_class = isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias)
    if is_class and issubclass(annotation, BaseModel):
        return annotation
    for inner in typing.get_args(annotation):
        model = _model_in(inner)
        if model is not None:
            return model
    return None
