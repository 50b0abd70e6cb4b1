"""The plan's `simulation`: the hospitals of a simulation on one machine."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fedgraft.common.plan.reading_section import UNDECIDED, ReadingSection
from fedgraft.common.plan.section import Count, Names, Problem, Section, Text, check_together


class PartitionSection(Section):
    """How one data set becomes several hospitals."""

    kind: Literal["iid", "dirichlet", "pathological", "column", "files"] = Field(
        default="iid", description="files: one node a file; column: one node for each value in it"
    )
    alpha: Annotated[float, Field(gt=0)] = Field(
        default=0.5, description="dirichlet: the smaller, the more the nodes' classes differ"
    )
    classes_per_node: Count = Field(default=2, description="pathological: classes that a node has")
    column: Text | None = Field(default=None, description="column: its name")
    min_examples: Count = Field(
        default=10, description="fewest training examples that a node may have"
    )


class SimulationSection(Section):
    """The hospitals of a simulation on one machine."""

    later: ClassVar[tuple[str, ...]] = ("reading", "patient", "shots")

    nodes: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None,
        description="how many; null with partition files and column, where the data say it",
    )
    data: Text | Annotated[Names, Field(min_length=1)] = Field(
        description="a file, or a list of files"
    )
    partition: PartitionSection = Field(
        default=PartitionSection(), description="how the data are dealt out"
    )
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="part kept for tests, where the data have no split of their own"
    )
    shots: Count | None = Field(
        default=None,
        description=(
            "training records of each class that a node keeps, drawn by the seed; null: all. Seeds"
            " are episodes then"
        ),
    )
    patient: Text | None = Field(
        default=None,
        description=(
            "column that says whose each record is, or what it is about: records of one patient, or"
            " of one topic, are all on one side of a split (default: patient, where there is one)"
        ),
    )
    reading: ReadingSection = Field(
        default=UNDECIDED,
        description="what a hospital would write under `data` about data that look odd",
    )

    @property
    def files(self) -> tuple[str, ...]:
        """Return the data as a tuple, one file or several."""
        if isinstance(self.data, str):
            return (self.data,)
        return self.data

    @model_validator(mode="after")
    def _fits_together(self) -> SimulationSection:
        problems: list[Problem] = []
        kind = self.partition.kind
        files = len(self.files)
        if kind == "files" and self.nodes not in (None, files):
            what = f"{self.nodes} nodes for {files} files"
            problems.append(Problem("nodes", what, "leave it out: each file is a node"))
        if kind not in ("files", "column") and self.nodes is None:
            what = f"missing, and partition {kind} needs it"
            problems.append(Problem("nodes", what, "write `nodes: 8`"))
        if kind != "files" and files > 1:
            what = f"{files} files with partition {kind}"
            problems.append(Problem("data", what, "give one file, or write `kind: files`"))
        if kind == "column" and self.partition.column is None:
            what = "missing, and partition column needs it"
            problems.append(Problem("partition.column", what, "write `column: hospital`"))
        return check_together(self, problems)
