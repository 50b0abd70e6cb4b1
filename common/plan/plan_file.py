"""A plan's way in and out: file or ready plan, with `--set` options → Plan → canonical form,
identity, YAML.
"""

from __future__ import annotations

import hashlib
import json
import os
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from fedgraft.common.errors import UserError, UserErrors
from fedgraft.common.files.mistakes import KeyPath, shown
from fedgraft.common.files.yaml_file import LARGEST_FILE, dump_yaml, parse_yaml, read_yaml, validate
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.ready_files import find, ready

READY_PLANS = Path(__file__).parent / "ready"
SHARED_DATA = "../shared/data/"


# In


def ready_plans() -> list[str]:
    """The bare names under which plans come with fedgraft."""
    return ready(READY_PLANS)


def find_plan(name: str | Path) -> Path:
    """The file of a plan: a path, or the bare name of a ready plan. Raises `UserError` where there
    is neither.
    """
    return find(name, "plan", READY_PLANS)


def load_plan(path: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Read and check a plan.

    Args:
        path: a file, or a ready plan's bare name such as `pneumonia`.
        overrides: such as "train.rounds=3" or "simulation=null"; the value is YAML, and lists are
            replaced whole.

    Raises:
        UserErrors: every mistake at once, each with file, line, key, the value found and what to
            write instead.
        UserError: the file cannot be read as YAML at all.
    """
    file = find_plan(path)
    data, lines = read_yaml(file)
    origins = _override(data, overrides)
    return validate(Plan, data, lines, str(file), origins=origins)


def amended(plan: Plan, overrides: Sequence[str]) -> Plan:
    """The plan with some keys changed, checked anew. Raises UserErrors like `load_plan`."""
    data = plan.model_dump(mode="json")
    origins = _override(data, overrides)
    return validate(Plan, data, {}, f"plan {plan.name}", origins=origins)


def plan_from_json(text: str) -> Plan:
    """The plan in a text that `canonical` wrote, perhaps on another machine. Raises UserError or
    UserErrors.
    """
    try:
        if len(text) > LARGEST_FILE:
            raise ValueError(f"{len(text):,} characters")
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        remedy = "it must be the text that fedgraft made of a plan"
        raise UserError(f"not a plan in JSON: {error}", where="plan", remedy=remedy) from None
    return validate(Plan, data, {}, "plan")


def _override(data: dict[str, Any], overrides: Sequence[str]) -> dict[KeyPath, str]:
    """Write the overrides into the data; where each value came from, for the messages."""
    origins: dict[KeyPath, str] = {}
    errors: list[UserError] = []
    for text in overrides:
        try:
            _set(data, text, origins)
        except UserError as error:
            errors.append(error)
    if errors:
        raise UserErrors(errors)
    return origins


def _set(data: dict[str, Any], text: str, origins: dict[KeyPath, str]) -> None:
    where = f"--set {text if len(text) <= 80 else text[:77] + '…'}"
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or "" in path:
        raise UserError(
            "not of the form key=value",
            where=where,
            remedy="write for example `--set train.rounds=3`",
        )
    if len(path) > 10 or len(text) > 10_000:
        raise UserError("far too long", where=where, remedy="write it into the plan's file")
    group = data
    for depth, step in enumerate(path[:-1]):
        if group.get(step) is None:
            group[step] = {}
        group = group[step]
        if not isinstance(group, dict):
            name = ".".join(path[: depth + 1])
            what = f"`{name}` is {shown(group)} and has no keys of its own"
            raise UserError(what, where=where, remedy=f"set it as a whole: `--set {name}=…`")
    try:
        group[path[-1]] = parse_yaml(value, where)[0]
    except UserError as error:
        raise UserError(
            error.what, where=where, remedy="the value is YAML: 3, 1e-3, text, [a, b] or null"
        ) from None
    origins[tuple(path)] = where


# Out


def canonical(plan: Plan) -> str:
    """The plan as JSON that is the same for the same plan: keys sorted, defaults written out, no
    spaces.
    """
    data = _positive_zero(plan.model_dump(mode="json"))
    return json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def plan_hash(plan: Plan) -> str:
    """The plan's identity: "sha256:" and the hash of its canonical form in UTF-8."""
    return f"sha256:{hashlib.sha256(canonical(plan).encode()).hexdigest()}"


def plan_yaml(plan: Plan) -> str:
    """The plan as YAML with every default written out; reading it gives the same plan."""
    return dump_yaml(plan.model_dump(mode="json"))


def _positive_zero(data: Any) -> Any:
    """-0.0 equals 0.0 and must not give another hash."""
    if isinstance(data, dict):
        return {key: _positive_zero(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_positive_zero(value) for value in data]
    return 0.0 if isinstance(data, float) and data == 0 else data


# The files that a plan names


def resolve(path: str, base: Path | None, *, remedy: str = "") -> Path:
    """The file that a plan means: absolute; beside the plan; in this folder; in `$FEDGRAFT_DATA`.

    Args:
        path: as the plan has it. `sklearn:…` names a data set of scikit-learn and passes through.
        base: the folder of the plan's file.
        remedy: what to do if it is nowhere, such as the command that makes it.

    Raises:
        UserError: it is nowhere; says where it was looked for.
    """
    if path.startswith("sklearn:"):
        return Path(path)
    shared = Path(os.environ.get("FEDGRAFT_DATA") or Path.cwd().parent / "shared" / "data")
    tried = (
        [Path(path)]
        if Path(path).is_absolute()
        else [*([base / path] if base else []), Path.cwd() / path]
    )
    if not Path(path).is_absolute():
        tried.append(shared / path.removeprefix(SHARED_DATA))
    tried = list(dict.fromkeys(Path(os.path.abspath(place)) for place in tried))
    for place in tried:
        if os.path.exists(place):
            return place
    default = (
        "write its absolute path into the plan, or set FEDGRAFT_DATA to the folder that holds the"
        " data"
    )
    looked = ", ".join(str(place) for place in tried)
    raise UserError(f"no such file; looked for {looked}", where=path, remedy=remedy or default)


# For people


class Key(NamedTuple):
    """One key of a plan: dotted name, what it may hold, default as YAML ("" where it is required),
    meaning.
    """

    key: str
    type: str
    default: str
    description: str


def describe_keys(model: type[BaseModel] = Plan, prefix: str = "") -> list[Key]:
    """Every key of a plan, in the order of the file, groups before the keys in them."""
    rows: list[Key] = []
    for name, field in model.model_fields.items():
        default = "" if field.default is PydanticUndefined else _default(field.default)
        kind, group = _kind(field.annotation)
        if group is not None and group.model_fields and default not in ("", "null"):
            default = ""  # the keys inside have their own
        rows.append(Key(prefix + name, kind, default, field.description or ""))
        if group is not None:
            rows += describe_keys(group, f"{prefix}{name}.")
    return rows


def _default(value: Any) -> str:
    value = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    value = list(value) if isinstance(value, tuple) else value
    return json.dumps(value, ensure_ascii=False, default=str)


def _kind(annotation: Any) -> tuple[str, type[BaseModel] | None]:
    """What a key may hold, in words, and the model if it is a group of keys."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(inner[0])
    if origin is typing.Literal:
        return " | ".join(inner), None
    if origin is tuple:
        return f"list of {_kind(inner[0])[0]}", None
    if origin in (typing.Union, types.UnionType):
        kinds = [_kind(part) for part in inner]
        return " | ".join(kind for kind, _ in kinds), next(
            (group for _, group in kinds if group), None
        )
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "group", annotation
    words = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true | false",
        type(None): "null",
        Path: "path",
    }
    return words.get(annotation, str(annotation)), None
