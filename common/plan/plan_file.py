"""A plan's way in and out: file or ready plan, with `--set` options → Plan → canonical form,
identity, YAML.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedgraft.common.errors import UserError, UserErrors
from fedgraft.common.files.mistakes import KeyPath, shown
from fedgraft.common.files.yaml_file import LARGEST_FILE, dump_yaml, parse_yaml, read_yaml, validate
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.plan.extension_section import load_extensions
from fedgraft.common.plan.plan import Plan, agreement_of
from fedgraft.common.plan.ready_files import find_file, ready_names

READY_PLANS = Path(__file__).parent / "ready"
# characters
LONGEST_OVERRIDE = 10_000
# groups
DEEPEST_OVERRIDE = 10
# characters of an override in a message
SHOWN = 80


# ── in ────────────────────────────────────────────────────────────────────────────────────────────
def ready_plans() -> list[str]:
    """Return the bare names under which plans come with fedgraft."""
    return ready_names(READY_PLANS)


def find_plan(name: str | Path) -> Path:
    """Return the file of a plan, by path or bare name. Raise `UserError` where there is none."""
    return find_file(name, "plan", READY_PLANS)


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
    place = f"{file}:{lines[('extensions',)]}" if ("extensions",) in lines else str(file)
    return validate(Plan, load_extensions(data, place), lines, str(file), origins=origins)


def amended(plan: Plan, overrides: Sequence[str]) -> Plan:
    """Return the plan with some keys changed, checked anew. Raise `UserErrors` as `load_plan`."""
    data = plan.model_dump(mode="json")
    origins = _override(data, overrides)
    where = f"plan {plan.name}"
    return validate(Plan, load_extensions(data, where), {}, where, origins=origins)


def plan_from_json(text: str) -> Plan:
    """Return the plan in a text that `canonical` wrote. Raise `UserError` where it is none."""
    return validate(Plan, load_extensions(_json_of(text), "plan"), {}, "plan")


def agreement_from_json(text: str) -> Agreement:
    """Return the agreement in a text that `canonical` wrote, perhaps on another machine.

    Raises:
        UserError, UserErrors: it is none.
    """
    return validate(Agreement, load_extensions(_json_of(text), "plan"), {}, "plan")


def _json_of(text: str) -> Any:
    try:
        if len(text) > LARGEST_FILE:
            raise ValueError(f"{len(text):,} characters")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        remedy = "it must be the text that fedgraft made of a plan"
        what = f"not a plan in JSON: {error}"
        raise UserError(what, where="plan", remedy=remedy) from None


def _override(data: dict[str, Any], overrides: Sequence[str]) -> dict[KeyPath, str]:
    """Write the overrides into the data; return where each value came from, for the messages."""
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
    """Write one override into the data. Raise `UserError` where it cannot be."""
    shortened = text
    if len(text) > SHOWN:
        shortened = text[: SHOWN - 3] + "…"
    where = f"--set {shortened}"
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or "" in path:
        remedy = "write for example `--set train.rounds=3`"
        raise UserError("not of the form key=value", where=where, remedy=remedy)
    if len(path) > DEEPEST_OVERRIDE or len(text) > LONGEST_OVERRIDE:
        raise UserError("far too long", where=where, remedy="write it into the plan's file")
    group = _group_of(data, path, where)
    try:
        group[path[-1]], _ = parse_yaml(value, where)
    except UserError as error:
        remedy = "the value is YAML: 3, 1e-3, text, [a, b] or null"
        raise UserError(error.what, where=where, remedy=remedy) from None
    origins[tuple(path)] = where


def _group_of(data: dict[str, Any], path: Sequence[str], where: str) -> dict[str, Any]:
    """Return the group of keys that the last step of a path lies in; make what is missing."""
    group = data
    for depth, step in enumerate(path[:-1], start=1):
        if group.get(step) is None:
            group[step] = {}
        group = group[step]
        if not isinstance(group, dict):
            name = ".".join(path[:depth])
            what = f"`{name}` is {shown(group)} and has no keys of its own"
            raise UserError(what, where=where, remedy=f"set it as a whole: `--set {name}=…`")
    return group


# ── out ───────────────────────────────────────────────────────────────────────────────────────────
def canonical(plan: Agreement) -> str:
    """Return a plan or an agreement as JSON that is the same for the same content: keys sorted,
    defaults written out, no spaces.
    """
    data = _with_positive_zeros(plan.model_dump(mode="json"))
    return json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def plan_hash(plan: Plan) -> str:
    """Return the whole plan's identity, for results: "sha256:" and the hash of `canonical`."""
    return _hash_of(canonical(plan))


def agreement_hash(plan: Agreement) -> str:
    """Return the identity of what a hospital approves of a plan: the same, whatever the researcher
    changes in `simulation`, `pretrain`, `train.threads` and `backbone.weights`.
    """
    return _hash_of(canonical(agreement_of(plan)))


def plan_yaml(plan: Plan) -> str:
    """Return the plan as YAML with every default written out; reading it gives the same plan."""
    return dump_yaml(plan.model_dump(mode="json"))


def _hash_of(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _with_positive_zeros(data: Any) -> Any:
    """Return the data with 0.0 for -0.0, which equals it and must not give another hash."""
    if isinstance(data, dict):
        return {key: _with_positive_zeros(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_with_positive_zeros(value) for value in data]
    if isinstance(data, float) and data == 0:
        return 0.0
    return data
