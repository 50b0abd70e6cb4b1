"""The plan's `task`: what is predicted from what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from fedgraft.common.inputs import INPUTS, input_line
from fedgraft.common.inputs.input_positions import count_inputs
from fedgraft.common.plan.box_section import BoxSection
from fedgraft.common.plan.finding_section import FindingSection
from fedgraft.common.plan.mask_section import MaskSection
from fedgraft.common.plan.number_section import Bound, NumberSection
from fedgraft.common.plan.prompts import Prompts, list_texts
from fedgraft.common.plan.section import (
    Labels,
    Names,
    OneOf,
    Problem,
    Section,
    Text,
    as_names,
    check_together,
    unique,
)
from fedgraft.common.plan.survival_section import SurvivalSection
from fedgraft.common.tasks import TASKS, task_line


def kinds() -> tuple[str, ...]:
    """Return every raw material and question, in one word: "image-classification"."""
    return tuple(f"{material}-{question}" for question in TASKS for material in INPUTS)


Kind = Annotated[str, AfterValidator(OneOf(kinds))]


Values = Annotated[
    tuple[int | Text, ...], Field(min_length=1, max_length=1000), AfterValidator(unique)
]
# parts of a task that are one question's own, and what to write where one is missing
OWN = {
    "number": "write `number: {low: 0, high: 60, unit: days}`, by what is known of it anywhere",
    "survival": "write `survival: {cuts: [365, 730, 1095], unit: days}`",
    "mask": "write `mask: {stride: 4, width: 32}`",
    "boxes": "write `boxes: {strides: [8, 16], width: 64, most: 100}`",
}
Columns = Annotated[Names, BeforeValidator(as_names)]
# ends of a range that are nearer to one another than this part of them are one float32
NARROWEST = 1e-6


class CategorySection(Section):
    """A column of words or codes, and all its values: every node encodes them alike."""

    column: Text = Field(description="one of the feature columns")
    values: Values = Field(
        description="its values, one input each; an empty cell or any other value is missing"
    )


class RangeSection(Section):
    """Between which values columns of numbers lie, by what everybody knows, not by the data."""

    columns: Annotated[Names, Field(min_length=1)] = Field(description="columns of numbers")
    low: Bound = Field(description="smaller values are taken for it")
    high: Bound = Field(description="larger values are taken for it")

    @model_validator(mode="after")
    def _is_a_range(self) -> RangeSection:
        width = self.high - self.low
        if width > NARROWEST * max(abs(self.low), abs(self.high)):
            return self
        what = f"{self.high:g}, and the range begins at {self.low:g}"
        remedy = "write the smaller end as `low`, the larger as `high`"
        return check_together(self, [Problem("high", what, remedy)])


class TaskSection(Section):
    """What is to be told apart."""

    later: ClassVar[tuple[str, ...]] = (
        "ranges",
        "text",
        "targets",
        "number",
        "findings",
        "survival",
        "mask",
        "boxes",
        "prompts",
    )

    kind: Kind = Field(description="what the data are")
    classes: Names = Field(
        default=(),
        description="names of the classes, grades or labels, in the order of outputs",
    )
    columns: Names = Field(
        default=(),
        description="tables, alone or beside images: the feature columns, in the order of inputs",
    )
    categories: tuple[CategorySection, ...] = Field(
        default=(),
        description=(
            "of tables: the columns that hold categories, such as {column: sex, values: [f, m]}"
        ),
    )
    ranges: tuple[RangeSection, ...] = Field(
        default=(),
        description=(
            "tables whose backbone brings no scales of its own: between which values numbers lie,"
            " by public knowledge, such as {columns: [age], low: 20, high: 90}. An mlp without"
            " weights needs them; of columns see train.closed_form.constants"
        ),
    )
    text: Columns = Field(
        default=(),
        description=(
            "texts only: the column that holds the text; of several, the cells of a record are put"
            " together in this order, a line each, empty ones left out"
        ),
    )
    target: Text = Field(
        default="target", description="tables, texts and series: the column that holds the label"
    )
    targets: Names = Field(
        default=(),
        description=(
            "instead of `target`, where the answer is in several columns; multilabel: a column of"
            " 0, 1 or nothing for each of the classes, in their order; survival: two, the time and"
            " whether the event happened then, 1, or the person was last seen, 0"
        ),
    )
    findings: tuple[FindingSection, ...] = Field(
        default=(),
        description=(
            "multilabel only, instead of classes and targets: labels by a rule, such as {name:"
            " acidosis, column: ph_min, below: 7.3}; an empty cell is not known"
        ),
    )
    number: NumberSection | None = Field(
        default=None,
        description=(
            "regression only: between which values the number lies, by public knowledge, such as"
            " {low: 0, high: 60, unit: days}"
        ),
    )
    survival: SurvivalSection | None = Field(
        default=None,
        description=(
            "survival only: where time is cut into intervals, such as {cuts: [365, 730, 1095],"
            " unit: days}"
        ),
    )
    mask: MaskSection | None = Field(
        default=None,
        description=(
            "segmentation only: how masks are learnt, such as {stride: 4, width: 32}; null: so"
        ),
    )
    boxes: BoxSection | None = Field(
        default=None,
        description=(
            "detection only: how boxes are learnt, such as {strides: [8, 16], width: 64, most:"
            " 100}; null: so"
        ),
    )
    prompts: Prompts | None = Field(
        default=None,
        description=(
            "with `train.start: prompts` or `method: zero-shot`: what a class is in words, such as"
            ' "a chest X-ray of {}.", the class\'s name in the place of {}; or by class, such as'
            ' {normal: healthy lungs}; of several texts the mean is taken. null: "a photo of a'
            ' {}."'
        ),
    )
    labels: Labels | None = Field(
        default=None,
        description=(
            "value in the data for each class, in order (default 0, 1, …); rows with others are"
            " left out"
        ),
    )

    @property
    def material(self) -> str:
        """Return the name of the raw material: a member of `common.inputs.INPUTS`."""
        return self.kind.removesuffix(f"-{self.question}")

    @property
    def question(self) -> str:
        """Return the name of the question: a member of `common.tasks.TASKS`."""
        # a raw material may have dashes, too: image-and-table
        for question in TASKS:
            material = self.kind.removesuffix(f"-{question}")
            if material != self.kind and material in INPUTS:
                return question
        raise ValueError(f"{self.kind} is no kind of task")

    @property
    def answers(self) -> tuple[str, ...]:
        """Return the columns that hold a record's answer."""
        return self.targets or (self.target,)

    @property
    def prompt(self) -> tuple[str, ...]:
        """Return the columns of a text that are there before its answer: all, where that is none of
        them.
        """
        return tuple(name for name in self.text if name != self.target)

    @property
    def mask_section(self) -> MaskSection:
        """Return how masks are learnt."""
        return self.mask or MaskSection()

    @property
    def texts(self) -> list[tuple[str, ...]]:
        """Return the texts of each class. Raise ValueError where no head is made of texts."""
        if self.prompts is None:
            raise ValueError("the plan has no texts of its classes")
        return list_texts(self.prompts, self.classes)

    @property
    def stride(self) -> int:
        """Return of which part of a record's places sums are taken: of masks every so many-th."""
        if task_line(self.question).has_masks:
            return self.mask_section.stride
        return 1

    @property
    def box_section(self) -> BoxSection:
        """Return how boxes are learnt."""
        return self.boxes or BoxSection()

    @property
    def encoding(self) -> Mapping[str, tuple[int | str, ...]]:
        """Return the values of each column of categories, by its name."""
        return {category.column: category.values for category in self.categories}

    @property
    def inputs(self) -> int:
        """Return how many inputs a table's row has: one a column, or one for each category."""
        return count_inputs(self.category_sizes)

    @property
    def category_sizes(self) -> tuple[int, ...]:
        """Return how many categories each column has; 0: it holds numbers."""
        return tuple(len(self.encoding.get(name, ())) for name in self.columns)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Return the columns that hold numbers, in their order."""
        return tuple(name for name in self.columns if name not in self.encoding)

    @property
    def declared(self) -> Mapping[str, tuple[float, float]]:
        """Return the range of each column that has one, by its name."""
        bounds: dict[str, tuple[float, float]] = {}
        for section in self.ranges:
            bounds |= dict.fromkeys(section.columns, (section.low, section.high))
        return bounds

    @property
    def undeclared(self) -> tuple[str, ...]:
        """Return the columns of numbers that have no range."""
        return tuple(name for name in self.numbers if name not in self.declared)

    @model_validator(mode="after")
    def _fits_together(self) -> TaskSection:
        self._fill_findings()
        problems = [
            *self._check_columns(),
            *self._check_text(),
            *self._check_categories(),
            *self._check_ranges(),
            *self._check_findings(),
            *self._check_classes(),
            *self._check_targets(),
            *self._check_own(),
        ]
        if self.labels is not None and len(self.labels) != len(self.classes):
            what = f"{len(self.labels)} labels for {len(self.classes)} classes"
            remedy = "write one label for each class, in the same order"
            problems.append(Problem("labels", what, remedy))
        return check_together(self, problems)

    def _fill_findings(self) -> None:
        """Write the names and columns of findings into the task, where it says nothing of them."""
        if self.findings and not self.classes and not self.targets:
            names = tuple(finding.name for finding in self.findings)
            columns = tuple(finding.column for finding in self.findings)
            object.__setattr__(self, "classes", names)
            object.__setattr__(self, "targets", columns)

    def _check_findings(self) -> list[Problem]:
        if not self.findings:
            return []
        if self.question != "multilabel":
            what = f"there, and {self.kind} does not read them"
            return [Problem("findings", what, f"write `kind: {self.material}-multilabel`")]
        problems: list[Problem] = []
        seen: set[str] = set()
        for number, finding in enumerate(self.findings):
            for key in ("name", "column"):
                value = getattr(finding, key)
                if f"{key} {value}" in seen:
                    what = f"{value!r} is there twice"
                    problems.append(Problem(f"findings.{number}.{key}", what, "write it once"))
                seen.add(f"{key} {value}")
        names = tuple(finding.name for finding in self.findings)
        columns = tuple(finding.column for finding in self.findings)
        if self.classes != names or self.targets != columns:
            what = "other classes or targets than those of the findings"
            problems.append(Problem("classes", what, "leave classes and targets out"))
        return problems

    def _check_classes(self) -> list[Problem]:
        least = task_line(self.question).least_classes
        if not least:
            if self.classes or self.labels:
                what = f"there, and the answer of {self.kind} is no class"
                return [Problem("classes", what, "leave classes and labels out")]
            return []
        if len(self.classes) >= least:
            return []
        what = f"{len(self.classes)} of them, and {self.kind} needs at least {least}"
        remedy = "write their names, in the order of outputs: `classes: [normal, sick]`"
        return [Problem("classes", what, remedy)]

    def _check_targets(self) -> list[Problem]:
        fewest, most = task_line(self.question).columns
        if not self.targets:
            if fewest == 1:
                return []
            what = f"missing, and the answer of {self.kind} is in {fewest} columns"
            return [Problem("targets", what, f"write {fewest} of them, see docs/tasks.md")]
        if not fewest <= len(self.targets) <= most or most == 1:
            what = f"{len(self.targets)} columns, and the answer of {self.kind} is in one"
            remedy = "write `target: COLUMN` instead"
            if most > 1:
                several = f"{fewest}" if fewest == most else f"{fewest} to {most}"
                what = f"{len(self.targets)} columns, and {self.kind} has {several}"
                remedy = "write as many as that"
            return [Problem("targets", what, remedy)]
        if task_line(self.question).least_classes and len(self.targets) != len(self.classes):
            what = f"{len(self.targets)} columns for {len(self.classes)} classes"
            return [Problem("targets", what, "write one for each class, in the same order")]
        return []

    def _check_own(self) -> list[Problem]:
        """Return the problem of a part that is another question's, or is missing."""
        needed = task_line(self.question).section
        problems: list[Problem] = []
        for key, example in OWN.items():
            given = getattr(self, key)
            if key == needed and given is None and task_line(self.question).needs_section:
                problems.append(Problem(key, f"missing, and {self.kind} needs it", example))
            if key != needed and given is not None:
                what = f"there, and {self.kind} does not read it"
                problems.append(Problem(key, what, "leave it out"))
        line = task_line(self.question)
        if line.materials and self.material not in line.materials:
            what = f"{self.kind}: {self.question} is for {' and '.join(line.materials)}"
            remedy = f"write `kind: {line.materials[0]}-{self.question}`"
            problems.append(Problem("kind", what, remedy))
        return problems

    def _check_columns(self) -> list[Problem]:
        line = input_line(self.material)
        if line.has_columns and not self.columns:
            what = "missing, and tables need them"
            return [Problem("columns", what, "write `columns: [age, sex, …]`")]
        if self.columns and line.has_text:
            what = "there, and texts are named by `text`"
            return [Problem("columns", what, "write `text: COLUMN` instead")]
        if self.columns and not line.has_columns:
            remedy = "leave it out, or write `kind: tabular-classification`"
            what = "volumes have no columns" if line.has_volumes else "images have no columns"
            if line.has_signals:
                what = "there, and channels of series are named by `backbone.signal`"
                remedy = "write `signal: {channels: […]}` under backbone: instead"
            return [Problem("columns", what, remedy)]
        for name in self.answers:
            if name not in self.columns:
                continue
            what = f"the label column {name!r} is among the features"
            remedy = "leave it out of `columns`, or name another `target`"
            return [Problem("columns", what, remedy)]
        return []

    def _check_text(self) -> list[Problem]:
        has_text = input_line(self.material).has_text
        if has_text and not self.text:
            what = "missing, and texts need it"
            return [Problem("text", what, "write `text: COLUMN`, the column that holds the text")]
        if self.text and not has_text:
            what = f"there, and {self.kind} reads no texts"
            return [Problem("text", what, "leave it out, or write `kind: text-classification`")]
        if task_line(self.question).writes:
            return self._check_prompt()
        for name in self.answers:
            if name not in self.text:
                continue
            what = f"the label column {name!r} is among the texts"
            remedy = "leave it out of `text`, or name another `target`"
            return [Problem("text", what, remedy)]
        return []

    def _check_prompt(self) -> list[Problem]:
        """Return the problem of texts whose last part is not the answer that is learnt."""
        if len(self.text) > 1 and self.text[-1] == self.target:
            return []
        named = ", ".join(self.text) or "nothing"
        what = f"{named}, and the answer to learn is {self.target!r}"
        remedy = "write the prompt's columns, and the answer last: `text: [question, answer]`"
        return [Problem("text", what, f"{remedy}, `target: answer`")]

    def _check_categories(self) -> list[Problem]:
        problems: list[Problem] = []
        seen: set[str] = set()
        for number, category in enumerate(self.categories):
            name = category.column
            key = f"categories.{number}.column"
            if name not in self.columns:
                what = f"{name!r} is not among the columns"
                problems.append(Problem(key, what, "add it to `columns`"))
            if name in seen:
                what = f"{name!r} is there twice"
                problems.append(Problem(key, what, "give all its values once"))
            seen.add(name)
        return problems

    def _check_ranges(self) -> list[Problem]:
        if self.ranges and not input_line(self.material).has_columns:
            return [Problem("ranges", "images have no columns", "leave it out")]
        problems: list[Problem] = []
        times: Counter[str] = Counter()
        for number, section in enumerate(self.ranges):
            key = f"ranges.{number}.columns"
            times.update(section.columns)
            for name in section.columns:
                if name not in self.columns:
                    what = f"{name!r} is not among the columns"
                    problems.append(Problem(key, what, "correct it, or add it to `columns`"))
                elif name in self.encoding:
                    what = f"{name!r} holds categories, and they have no range"
                    problems.append(Problem(key, what, "leave it out"))
                elif times[name] > 1:
                    what = f"{name!r} has a range before"
                    problems.append(Problem(key, what, "write each column once"))
        return problems
