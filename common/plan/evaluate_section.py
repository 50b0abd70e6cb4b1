"""The plan's `evaluate`: what is measured, and of whom."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, model_validator

from fedgraft.common.plan.section import (
    Count,
    Names,
    OneOf,
    Problem,
    Section,
    Text,
    check_together,
    unique,
)
from fedgraft.common.tasks import OF_CLASSES, list_metrics

Metric = Annotated[str, AfterValidator(OneOf(list_metrics))]


class SubgroupsSection(Section):
    """A column of the data that parts people into groups; each is measured by itself, after the
    last round.

        SubgroupsSection(column="age", edges=(50, 65)).groups
    """

    column: Text = Field(
        description="its name at every node; at a node without it nothing is told of its groups"
    )
    values: Annotated[tuple[int | Text, ...], Field(max_length=100), AfterValidator(unique)] = (
        Field(
            default=(),
            description="the values that are a group each; records with any other are in none",
        )
    )
    edges: Annotated[tuple[float, ...], Field(max_length=100)] = Field(
        default=(),
        description="or, for numbers, where one group ends and the next begins, such as [50, 65]",
    )
    names: Names = Field(
        default=(), description="what the groups are called in results (default: as they are given)"
    )

    @property
    def groups(self) -> tuple[str, ...]:
        """Return what the groups are called, in their order."""
        if self.names:
            return self.names
        if self.values:
            return tuple(map(str, self.values))
        between = [f"{low:g} to below {high:g}" for low, high in pairwise(self.edges)]
        return (f"below {self.edges[0]:g}", *between, f"{self.edges[-1]:g} and above")

    @model_validator(mode="after")
    def _fits_together(self) -> SubgroupsSection:
        return check_together(self, self._problems())

    def _problems(self) -> list[Problem]:
        if bool(self.values) == bool(self.edges):
            how_many = "neither"
            if self.values:
                how_many = "both"
            remedy = "write `values: [f, m]`, or for numbers `edges: [50, 65]`"
            return [Problem("values", f"{how_many} values and edges", remedy)]
        if not all(low < high for low, high in pairwise(self.edges)):
            remedy = "write them from the lowest to the highest, each once"
            return [Problem("edges", "they do not rise", remedy)]
        count = len(self.values) or len(self.edges) + 1
        if self.names and len(self.names) != count:
            what = f"{len(self.names)} names for {count} groups"
            return [Problem("names", what, "write one for each, in their order")]
        return []


class EvaluateSection(Section):
    """What is measured, and when."""

    later: ClassVar[tuple[str, ...]] = ("validation_fraction",)

    every: Count = Field(default=1, description="rounds from one measurement to the next")
    metrics: Annotated[
        tuple[Metric, ...],
        Field(min_length=1),
        AfterValidator(unique),
    ] = Field(
        default=OF_CLASSES,
        description=(
            "what is reported (default: what the question is measured by). For rare classes: auprc,"
            " the area under precision and recall; sensitivity and specificity of the answers (of"
            " the second class, with two); sensitivity_at_90, the highest with a specificity of"
            " 0.90, and sensitivity_at_95"
        ),
    )
    subgroups: Annotated[tuple[SubgroupsSection, ...], Field(max_length=20)] = Field(
        default=(),
        description=(
            "groups of people to measure by themselves, such as {column: sex, values: [f, m]}; a"
            " node tells of those that its policy's min_subgroup allows, and of none under"
            " differential privacy"
        ),
    )

    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description=(
            "share of a node's training records that is kept out of training, by patient, where its"
            " data has no validation records of its own; above 0, the shared model is measured on"
            " validation records, too"
        ),
    )

    @model_validator(mode="after")
    def _fits_together(self) -> EvaluateSection:
        problems: list[Problem] = []
        seen: set[str] = set()
        for number, subgroups in enumerate(self.subgroups):
            name = subgroups.column
            if name in seen:
                key = f"subgroups.{number}.column"
                what = f"{name!r} is there twice"
                problems.append(Problem(key, what, "give all its groups once"))
            seen.add(name)
        return check_together(self, problems)
