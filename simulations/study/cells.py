"""The cells of a study: cases × grid × seeds, each a plan of its own, checked before any is run.

study, plan_file, cells = load_study("membership")
cells[0].labels     # {"case": "made to leak", "seed": 7}
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from fedgraft.common.errors import UserError, UserErrors
from fedgraft.common.files.mistakes import KeyPath
from fedgraft.common.files.yaml_file import read_yaml, validate
from fedgraft.common.plan.phases import trains_nothing
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import find_plan, load_plan, plan_hash
from fedgraft.simulations.attacks import ATTACKS, explain_not_applying
from fedgraft.simulations.study.study_file import Study, find_study, write_value

MOST_MISTAKES = 50
# longer values are cut in messages, as `load_plan` cuts them
LONGEST_OVERRIDE = 80

Labels = dict[str, JsonValue]


@dataclass(frozen=True)
class Cell:
    """One plan of a study.

    Attributes:
        folder: its folder's name inside the study's `cells/`.
        labels: what makes it different: `case`, each key of the grid, `seed`.
        overrides: as `load_plan` takes them.
    """

    folder: str
    labels: Mapping[str, JsonValue]
    overrides: tuple[str, ...]
    plan: Plan = field(repr=False)
    plan_hash: str


@dataclass(frozen=True)
class Change:
    """A key of the plan, its value, and where the study's file says so."""

    key: str
    value: JsonValue
    path: KeyPath

    @property
    def override(self) -> str:
        """The change as `load_plan` takes it."""
        return f"{self.key}={write_value(self.value)}"


@dataclass(frozen=True)
class Source:
    """A study's file: its name, and the line of each key."""

    file: str = ""
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def locate(self, path: KeyPath) -> str:
        """Return `study.yaml:12: grid.adapter.rank`."""
        key = ".".join(step for step in path if isinstance(step, str))
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return f"{self.file}:{line}: {key}"
        return f"{self.file}: {key}"


def load_study(path: str | Path) -> tuple[Study, Path, list[Cell]]:
    """Read and check a study, and every plan in it.

    Returns:
        The study, the file of its plan, and its cells in the order of the file, seeds innermost.

    Raises:
        UserErrors: every mistake at once, each with file, line, key, the value found and what to
            write instead.
        UserError: the file cannot be read as YAML at all, or there is no such plan.
    """
    file = find_study(path)
    data, lines = read_yaml(file)
    study = validate(Study, data, lines, str(file))
    plan_file = file.parent / study.plan
    if not plan_file.is_file():
        try:
            plan_file = find_plan(study.plan)
        except UserError as error:
            where = f"{file}:{lines['plan',]}: plan: {study.plan}"
            raise UserError(error.what, where=where, remedy=error.remedy) from None
    return study, plan_file, list_cells(study, plan_file, Source(str(file), lines))


def list_cells(study: Study, plan_file: Path, source: Source) -> list[Cell]:
    """Return every combination as a plan of its own. Raise `UserErrors` naming the lines of the
    study's file.
    """
    cells: list[Cell] = []
    mistakes: dict[str, UserError] = {}
    by_hash: dict[str, Cell] = {}
    for labels, changes in _combine(study):
        try:
            cell = _make_cell(labels, changes, plan_file)
        except UserError as error:
            mistakes |= _locate_mistakes(error, changes, source)
            continue
        twin = by_hash.get(cell.plan_hash)
        if twin is not None:
            mistake = _report_twins(twin, cell, source.file or study.name)
            mistakes[str(mistake)] = mistake
        for mistake in _list_idle_attacks(study, cell, source):
            mistakes[str(mistake)] = mistake
        by_hash[cell.plan_hash] = cell
        cells.append(cell)
    if mistakes:
        raise UserErrors(list(mistakes.values())[:MOST_MISTAKES])
    return cells


def _make_cell(labels: Labels, changes: Sequence[Change], plan_file: Path) -> Cell:
    # of two changes of the same text, one is enough
    overrides = tuple(dict.fromkeys(change.override for change in changes))
    plan = load_plan(plan_file, overrides)
    return Cell(_name_folder(labels, plan), labels, overrides, plan, plan_hash(plan))


# ── combinations ──────────────────────────────────────────────────────────────────────────────────
def _combine(study: Study) -> Iterator[tuple[Labels, list[Change]]]:
    """Yield labels and changes of each cell."""
    in_every_cell = [Change(key, value, ("set", key)) for key, value in study.set.items()]
    for case, changes_of_case in (study.cases or {"": {}}).items():
        labels_of_case: Labels = {"case": case} if study.cases else {}
        changes = list(in_every_cell)
        for key, value in changes_of_case.items():
            changes.append(Change(key, value, ("cases", case, key)))
        for chosen in _walk_grid(study):
            labels = labels_of_case | {change.key: change.value for change in chosen}
            for seed in study.seeds:
                of_seed = Change("seed", seed, ("seeds",))
                yield labels | {"seed": seed}, [*changes, *chosen, of_seed]


def _walk_grid(study: Study) -> Iterator[tuple[Change, ...]]:
    """Yield every combination of the grid's values."""
    axes = []
    for key, values in study.grid.items():
        axes.append([Change(key, value, ("grid", key, n)) for n, value in enumerate(values)])
    yield from itertools.product(*axes)


def _list_idle_attacks(study: Study, cell: Cell, source: Source) -> Iterator[UserError]:
    """Give each attack that says nothing of a cell's question."""
    question = cell.plan.task.question
    if study.attacks and trains_nothing(cell.plan.train):
        what = "there, and nothing was trained: no record entered a model that was made of texts"
        where = source.locate(("attacks",))
        yield UserError(what, where=where, remedy="leave them out, or write `method: steps`")
        return
    applying = [name for name in ATTACKS if not explain_not_applying(name, question)]
    for number, name in enumerate(study.attacks):
        why = explain_not_applying(name, question)
        if why:
            where = source.locate(("attacks", number))
            remedy = f"leave it out; of {question} there are {', '.join(applying)}"
            yield UserError(why, where=where, remedy=remedy)


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────
def _locate_mistakes(
    error: UserError, changes: Sequence[Change], source: Source
) -> dict[str, UserError]:
    """Return the mistakes by their text, each where the study's file has it."""
    paths = {f"--set {_shorten(change.override)}": change.path for change in changes}
    mistakes = {}
    for each in error.errors if isinstance(error, UserErrors) else (error,):
        where = each.where
        if where in paths:
            where = source.locate(paths[where])
        mistake = UserError(each.what, where=where, remedy=each.remedy)
        mistakes[str(mistake)] = mistake
    return mistakes


def _shorten(override: str) -> str:
    if len(override) <= LONGEST_OVERRIDE:
        return override
    return override[: LONGEST_OVERRIDE - 3] + "…"


def _report_twins(twin: Cell, cell: Cell, where: str) -> UserError:
    what = f"the cells {_describe(twin.labels)} and {_describe(cell.labels)} are the same plan"
    return UserError(what, where=where, remedy="take one of them out")


def _describe(labels: Mapping[str, JsonValue]) -> str:
    return ", ".join(f"{key} {value}" for key, value in labels.items())


# ── folders ───────────────────────────────────────────────────────────────────────────────────────
def _name_folder(labels: Labels, plan: Plan) -> str:
    """Return a name that a person can read and that is the plan's own:
    `eps-8_head_seed-7_1f0c2b9a`.
    """
    words = []
    for key, value in labels.items():
        word = f"seed-{value}" if key == "seed" else _slug(value)
        if word:
            words.append(word)
    digest = hashlib.sha256(plan_hash(plan).encode()).hexdigest()
    words.append(digest[:8])
    return "_".join(words)[-120:]


def _slug(value: JsonValue) -> str:
    text = value if isinstance(value, str) else write_value(value)
    plain = re.sub(r"[^A-Za-z0-9.+]+", "-", text.replace("ε", "eps"))
    return plain.strip("-.")[:40]
