"""A study's file: a question, a plan, and which keys of the plan change. Frozen and checked at this
door.

study.yaml → Study → cells: cases × grid × seeds, each a plan of its own, checked before any is run
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator

from fedgraft.common.errors import UserError, UserErrors
from fedgraft.common.files.mistakes import KeyPath, nearest
from fedgraft.common.files.yaml_file import dump_yaml, read_yaml, validate
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import find_plan, load_plan, plan_hash
from fedgraft.common.plan.section import Section, Seed, Text, checked, unique
from fedgraft.simulations.attacks import ATTACKS
from fedgraft.simulations.baselines import BASELINES

READY_STUDIES = Path(__file__).parent / "ready"
MOST_CELLS = 10_000
Key = Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z_]+)*$")]
Changes = dict[Key, JsonValue]


def _values(values: tuple[JsonValue, ...]) -> tuple[JsonValue, ...]:
    unique(tuple(_text(value) for value in values))
    return values


class Show(Section):
    """What the page's picture shows; the names are columns of the table."""

    x: Text = Field(
        default="epsilon",
        description="the column along the axis: epsilon, case, bytes, a key of the grid",
    )
    y: Annotated[tuple[Text, ...], Field(min_length=1, max_length=4), AfterValidator(unique)] = (
        Field(
            default=("accuracy", "auroc"), description="columns to show against it, a picture each"
        )
    )
    by: Text | None = Field(default=None, description="one line for each value of this column")
    log_x: bool = Field(default=False, description="whether the axis is logarithmic")


class Study(Section):
    """A question put to a plan."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        description="letters, digits, dots and dashes; its folder is named after it"
    )
    question: Text = Field(description="what the study is to answer, in a sentence")
    plan: Text = Field(description="a plan's file, or the name of a ready plan")
    set: Changes = Field(default={}, description="keys of the plan that are changed in every cell")
    cases: Annotated[dict[Text, Changes], Field(max_length=1000)] = Field(
        default={},
        description="named alternatives, each with the keys of the plan that it changes together",
    )
    grid: dict[
        Key, Annotated[tuple[JsonValue, ...], Field(min_length=1), AfterValidator(_values)]
    ] = Field(
        default={},
        description="keys of the plan and the values that each takes; every combination is run",
    )
    seeds: Annotated[
        tuple[Seed, ...], Field(min_length=1, max_length=1000), AfterValidator(unique)
    ] = Field(default=(7, 8, 9), description="each combination is run with every one of these")
    baselines: Annotated[
        tuple[Literal["alone", "pooled", "head", "full", "random-backbone"], ...],
        AfterValidator(unique),
    ] = Field(default=(), description=f"what each cell is measured against: {', '.join(BASELINES)}")
    attacks: Annotated[tuple[Text, ...], AfterValidator(unique)] = Field(
        default=(), description=f"run against every cell: {', '.join(ATTACKS)}"
    )
    show: Show = Field(default=Show(), description="the page's picture")

    @model_validator(mode="after")
    def _fits_together(self) -> Study:
        found = []
        for number, name in enumerate(self.attacks):
            if name not in ATTACKS:
                guess = nearest(name, list(ATTACKS))
                hint = f"did you mean `{guess}`? " if guess else ""
                found.append(
                    (
                        f"attacks.{number}",
                        f"{name!r} is no attack",
                        f"{hint}Known: {', '.join(ATTACKS)}",
                    )
                )
        if "seed" in {
            *self.set,
            *self.grid,
            *(key for case in self.cases.values() for key in case),
        }:
            found.append(
                ("seeds", "the plan's seed is set in another place, too", "write seeds here only")
            )
        cells = max(1, len(self.cases)) * len(self.seeds)
        for values in self.grid.values():
            cells *= len(values)
        if cells > MOST_CELLS:
            found.append(("grid", f"{cells:,} cells", f"ask for at most {MOST_CELLS:,}"))
        return checked(self, found)


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


def ready_studies() -> list[str]:
    """The bare names under which studies come with fedgraft."""
    return ready(READY_STUDIES)


def find_study(name: str | Path) -> Path:
    """The file of a study: a path, or the name of a ready study. Raises `UserError` where there is
    neither.
    """
    return find(name, "study", READY_STUDIES)


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
    beside = file.parent / study.plan
    try:
        plan_file = beside if beside.is_file() else find_plan(study.plan)
    except UserError as error:
        raise UserError(
            error.what, where=f"{file}:{lines['plan',]}: plan: {study.plan}", remedy=error.remedy
        ) from None
    return study, plan_file, cells_of(study, plan_file, lines, str(file))


def study_yaml(study: Study) -> str:
    """The study as YAML with every default written out."""
    return dump_yaml(study.model_dump(mode="json"))


def cells_of(
    study: Study, plan_file: Path, lines: Mapping[KeyPath, int] | None = None, file: str = ""
) -> list[Cell]:
    """Every combination as a plan of its own. Raises `UserErrors` naming the lines of the study's
    file.
    """
    cells: list[Cell] = []
    mistakes: dict[str, UserError] = {}
    twins: dict[str, Cell] = {}
    for labels, changes in _combinations(study):
        texts = {f"{key}={_text(value)}": path for key, value, path in changes}
        places = {
            f"--set {text if len(text) <= 80 else text[:77] + '…'}": path
            for text, path in texts.items()
        }
        try:
            plan = load_plan(plan_file, list(texts))
        except UserError as error:
            for each in error.errors if isinstance(error, UserErrors) else (error,):
                where = _place(places.get(each.where), lines or {}, file) or each.where
                told = UserError(each.what, where=where, remedy=each.remedy)
                mistakes[str(told)] = told
            continue
        cell = Cell(_folder(labels, plan), labels, tuple(texts), plan, plan_hash(plan))
        if cell.plan_hash in twins:
            what = (
                f"the cells {_named(twins[cell.plan_hash].labels)} and {_named(labels)} are the"
                " same plan"
            )
            told = UserError(what, where=file or study.name, remedy="take one of them out")
            mistakes[str(told)] = told
        twins[cell.plan_hash] = cell
        cells.append(cell)
    if mistakes:
        raise UserErrors(list(mistakes.values())[:50])
    return cells


def _combinations(
    study: Study,
) -> Iterator[tuple[dict[str, JsonValue], list[tuple[str, JsonValue, KeyPath]]]]:
    """Labels and changes of each cell; a change is a key, its value, and its path in the study's
    file.
    """
    for case, alternatives in (study.cases or {"": {}}).items():
        for values in itertools.product(*(enumerate(values) for values in study.grid.values())):
            for seed in study.seeds:
                labels: dict[str, JsonValue] = {"case": case} if study.cases else {}
                changes: list[tuple[str, JsonValue, KeyPath]] = [
                    (key, value, ("set", key)) for key, value in study.set.items()
                ]
                changes += [
                    (key, value, ("cases", case, key)) for key, value in alternatives.items()
                ]
                for key, (number, value) in zip(study.grid, values, strict=True):
                    labels[key] = value
                    changes.append((key, value, ("grid", key, number)))
                yield labels | {"seed": seed}, [*changes, ("seed", seed, ("seeds",))]


def _place(path: KeyPath | None, lines: Mapping[KeyPath, int], file: str) -> str:
    if path is None:
        return ""
    known = next(
        (path[:length] for length in range(len(path), 0, -1) if path[:length] in lines), ()
    )
    line = f":{lines[known]}" if known else ""
    return f"{file}{line}: {'.'.join(str(step) for step in path if isinstance(step, str))}"


def _text(value: Any) -> str:
    """A value as the YAML of one line."""
    return json.dumps(value, ensure_ascii=False)


def _named(labels: Mapping[str, JsonValue]) -> str:
    return ", ".join(f"{key} {value}" for key, value in labels.items())


def _folder(labels: Mapping[str, JsonValue], plan: Plan) -> str:
    """A name that a person can read and that is the plan's own: `eps-8_head_seed-7_1f0c2b9a`."""
    words = [f"seed-{value}" if key == "seed" else _slug(value) for key, value in labels.items()]
    digest = hashlib.sha256(plan_hash(plan).encode()).hexdigest()[:8]
    return "_".join([*(word for word in words if word), digest])[-120:]


def _slug(value: JsonValue) -> str:
    text = value if isinstance(value, str) else _text(value)
    return re.sub(r"[^A-Za-z0-9.+]+", "-", text.replace("ε", "eps")).strip("-.")[:40]
