"""A study's file: a question, a plan, and which keys of the plan change. Frozen and checked at this
door.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator

from fedgraft.common.files.mistakes import nearest
from fedgraft.common.files.yaml_file import dump_yaml
from fedgraft.common.plan.ready_files import find_file, ready_names
from fedgraft.common.plan.section import Problem, Section, Seed, Text, check_together, unique
from fedgraft.simulations.attacks import ATTACKS
from fedgraft.simulations.baselines import BASELINES

READY_STUDIES = Path(__file__).parent / "ready"
MOST_CELLS = 10_000


def write_value(value: Any) -> str:
    """Return a value as the YAML of one line."""
    return json.dumps(value, ensure_ascii=False)


def _check_distinct(values: tuple[JsonValue, ...]) -> tuple[JsonValue, ...]:
    unique(tuple(map(write_value, values)))
    return values


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Key = Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z_]+)*$")]
Changes = dict[Key, JsonValue]
Cases = Annotated[dict[Text, Changes], Field(max_length=1000)]
Values = Annotated[tuple[JsonValue, ...], Field(min_length=1), AfterValidator(_check_distinct)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000), AfterValidator(unique)]
Baseline = Literal["one-round", "alone", "pooled", "head", "full", "random-backbone"]
Baselines = Annotated[tuple[Baseline, ...], AfterValidator(unique)]
Attacks = Annotated[tuple[Text, ...], AfterValidator(unique)]
Columns = Annotated[tuple[Text, ...], Field(min_length=1, max_length=4), AfterValidator(unique)]


class Show(Section):
    """What the page's picture shows; the names are columns of the table."""

    x: Text = Field(
        default="epsilon",
        description="the column along the axis: epsilon, case, bytes, a key of the grid",
    )
    y: Columns = Field(
        default=("accuracy", "auroc"),
        description="columns to show against it, a picture each",
    )
    by: Text | None = Field(
        default=None,
        description="one line for each value of this column",
    )
    log_x: bool = Field(
        default=False,
        description="whether the axis is logarithmic",
    )


class Study(Section):
    """A question put to a plan; see the ready studies beside this file.

    name: few-hospitals
    question: How many hospitals does it take before joining is worth it?
    plan: pneumonia
    grid: {simulation.nodes: [2, 4, 8]}
    """

    name: Name = Field(
        description="letters, digits, dots and dashes; its folder is named after it",
    )
    question: Text = Field(
        description="what the study is to answer, in a sentence",
    )
    plan: Text = Field(
        description="a plan's file, or the name of a ready plan",
    )
    set: Changes = Field(
        default={},
        description="keys of the plan that are changed in every cell",
    )
    cases: Cases = Field(
        default={},
        description="named alternatives, each with the keys of the plan that it changes together",
    )
    grid: dict[Key, Values] = Field(
        default={},
        description="keys of the plan and the values that each takes; every combination is run",
    )
    seeds: Seeds = Field(
        default=(7, 8, 9),
        description="each combination is run with every one of these",
    )
    baselines: Baselines = Field(
        default=(),
        description=f"what each cell is measured against: {', '.join(BASELINES)}",
    )
    attacks: Attacks = Field(
        default=(),
        description=f"run against every cell: {', '.join(ATTACKS)}",
    )
    show: Show = Field(
        default=Show(),
        description="the page's picture",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Study:
        problems = [*_check_attacks(self), *_check_seed(self), *_check_size(self)]
        return check_together(self, problems)


def _check_attacks(study: Study) -> list[Problem]:
    known = ", ".join(ATTACKS)
    problems = []
    for number, name in enumerate(study.attacks):
        if name not in ATTACKS:
            guess = nearest(name, list(ATTACKS))
            hint = f"did you mean `{guess}`? " if guess else ""
            what = f"{name!r} is no attack"
            problems.append(Problem(f"attacks.{number}", what, f"{hint}Known: {known}"))
    return problems


def _check_seed(study: Study) -> list[Problem]:
    keys = {*study.set, *study.grid}
    for changes in study.cases.values():
        keys |= set(changes)
    if "seed" not in keys:
        return []
    what = "the plan's seed is set in another place, too"
    return [Problem("seeds", what, "write seeds here only")]


def _check_size(study: Study) -> list[Problem]:
    cells = max(1, len(study.cases)) * len(study.seeds)
    for values in study.grid.values():
        cells *= len(values)
    if cells <= MOST_CELLS:
        return []
    return [Problem("grid", f"{cells:,} cells", f"ask for at most {MOST_CELLS:,}")]


def list_ready_studies() -> list[str]:
    """Return the bare names under which studies come with fedgraft."""
    return ready_names(READY_STUDIES)


def find_study(name: str | Path) -> Path:
    """Return the file of a study: a path, or the name of a ready study. Raise `UserError` where
    there is neither.
    """
    return find_file(name, "study", READY_STUDIES)


def write_study(study: Study) -> str:
    """Return the study as YAML with every default written out."""
    return dump_yaml(study.model_dump(mode="json"))
