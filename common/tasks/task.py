"""What a question says of itself: head, loss, sums that merge, prediction, words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from torch import Tensor

from fedgraft.common.inputs.material import Preparation
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.closed_form import ClosedForm
from fedgraft.common.tasks.labels import Label
from fedgraft.common.tasks.operating_point import OperatingPoint


class Sums(Protocol):
    """What a set of predictions adds up to: two nodes' sums added equal those of their pooled
    predictions.
    """

    @property
    def examples(self) -> int:
        """Return how many predictions there are."""
        ...

    @property
    def cells(self) -> int:
        """Return how many counts `only_counts` adds noise to; one example is in one of them."""
        ...

    def __add__(self, other: Self) -> Self: ...

    def within(self, other: Self) -> bool:
        """Whether these can be sums of some of the predictions that `other` sums up."""
        ...

    def only_counts(self, noise: np.ndarray) -> Self:
        """Return the counts alone with noise `(cells,)` added; all else is undefined."""
        ...

    def counts(self) -> list[list[int]]:
        """Return how many predictions there are by true class and answer, `(classes, classes)`;
        nothing where answers are no classes.
        """
        ...

    def summary(self) -> dict[str, float | int | None]:
        """Return the metrics by name; None where one is undefined."""
        ...

    def to_flat(self) -> dict[str, Any]:
        """Return plain numbers and lists for the wire."""
        ...


class LabelledSource(Protocol):
    """What a task reads of a hospital's data to find its targets."""

    @property
    def labels(self) -> Sequence[Label]:
        """The label of each record as the data states it."""
        ...

    @property
    def where(self) -> str:
        """The file, for messages."""
        ...

    @property
    def place(self) -> Callable[[int], str]:
        """Record → where a person finds it: file and line."""
        ...

    @property
    def boxes(self) -> BoxReader | None:
        """The boxes of each record; None: it has none."""
        ...

    @property
    def masks(self) -> MaskReader | None:
        """The mask of each record; None: it has none."""
        ...

    @property
    def texts(self) -> Sequence[str] | None:
        """The text of each record; None: they are none."""
        ...

    @property
    def answers_at(self) -> Sequence[int] | None:
        """Where in each text its answer begins, characters; None: it holds none."""
        ...


class MaskReader(Protocol):
    """What a task reads of a hospital's masks."""

    @property
    def values(self) -> Sequence[tuple[int, ...]]:
        """Which numbers each record's mask holds."""
        ...

    @property
    def read(self) -> Callable[[int], Any]:
        """Record → its mask: uint8 `(H, W)`, or a `Volume`."""
        ...


class BoxReader(Protocol):
    """What a task reads of a hospital's boxes."""

    @property
    def categories(self) -> Mapping[int, str]:
        """The name of each category by its number."""
        ...

    @property
    def records(self) -> Sequence[np.ndarray]:
        """Each record's boxes, float64 `(k, 5)`: category, left, top, right, bottom, pixels."""
        ...

    @property
    def sides(self) -> Sequence[tuple[int, int]]:
        """Height and width of each record's image."""
        ...


# records whose heads give hundreds of channels for each place
MAPS_AT_ONCE = 8


@dataclass(frozen=True)
class Threshold:
    """Where a score becomes an answer, for questions with two classes.

    Attributes:
        choose: (sums, sensitivity=…, specificity=…) → the operating point that reaches one of them,
            or the highest sum of both; raises `ValueError` where sums tell of one class alone.
        answer_from: (sums, bin of scores) → sums with the answers that are given from there on.
    """

    choose: Callable[..., OperatingPoint]
    answer_from: Callable[[Any, int], Any]


@dataclass(frozen=True)
class Task:
    """One kind of question.

        task = TASKS["classification"]
        losses = task.losses(model(batch), targets)  # (n,)
        sums = task.zero(section) + task.sums(outputs, targets, section)
        sums.summary()["accuracy"]

    Attributes:
        name: as the plan calls it.
        takes: which features its head takes; "pooled": one vector `(n, features)`; "maps": the
            outputs of stages at each place, see `stage_maps.py`; "tokens": a vector for each token,
            see `token_features.py`; "vocabulary": the head is the language model's own, see
            `vocabulary_head.py`.
        outputs: how many values the head gives for one record.
        loss: (outputs `(n, …)`, targets `(n, …)`) → the mean loss of a batch, nats.
        losses: the same → loss of each example `(n,)`; None where examples do not part.
        zero: sums of no predictions.
        sums: (outputs, targets, section) → sums of a batch of predictions; raises `Refused` for
            outputs that are not finite.
        read_sums: `Sums.to_flat` → sums; raises `ValueError` for what no predictions could give.
        targets: each record's target, `(n, …)`, int64 or float32; raises `UserError` for a label
            that is none.
        strata: (targets, section) → the stratum of each record, int64 `(n,)`, by which splits and
            partitions deal; −1 for records that are no part of the task.
        counted: what records are counted by, in words, such as the names of the classes.
        count: (targets, section) → how many records there are of each, int64 `(len(counted),)`; a
            record may be of several, or of none.
        predict: (outputs `(n, …)`, section) → what is told of each record, `(n, columns)`.
        columns: what those columns are called where they are written; no name of a class may begin
            one, which might begin like a formula.
        answer: (told `(n, columns)`, section, threshold) → the answer in words, for each record;
            None: what is told is the answer.
        answered: what the answers are called where they are written.
        probes: (section) → two targets `(2, …)`, for trying gradients out before any record.
        describe: the question in words for people, after "It learns", such as "to tell apart:
            normal, pneumonia".
        needs_each: whether a federation without a record of one of `counted` is a mistake.
        parts: (sums) → the metrics of each of `counted`, where these are questions of their own;
            None: they are none.
        balance: (targets, section) → what the loss `balanced` adds to the outputs at a node; None:
            there is no such loss.
        operating_point: its sums with another threshold between two classes, and how one is
            chosen; None: its answers have none.
        closed_form: how its head is solved from sums over records; None: it has no such sums.
        aligned: (source, rows, preparation, section) → the targets of these rows in the grid of
            their prepared inputs, such as masks, `(n, *grid)`, below 0 where there is no place;
            None: `targets` are all there is.
        locate: (outputs `(n, …)`, raw records, preparation, section) → the answer in words, for
            each record, where it says where in the raw record; None: `answer` gives it.
        at_once: how many records' outputs are made at once; None: as many as others.
        reports: what its metric sums are made of, in words.
        write: (model, prompts, preparation) and how many tokens at most → the answers in words,
            where a model writes them token by token; None: they follow from its outputs.
    """

    name: str
    takes: str
    outputs: Callable[[TaskSection], int]
    loss: Callable[[Tensor, Tensor], Tensor]
    losses: Callable[[Tensor, Tensor], Tensor] | None
    zero: Callable[[TaskSection], Any]
    sums: Callable[[Tensor, Tensor, TaskSection], Any]
    read_sums: Callable[[Mapping[str, Any], TaskSection], Any]
    targets: Callable[[LabelledSource, TaskSection], np.ndarray]
    strata: Callable[[np.ndarray, TaskSection], np.ndarray]
    counted: Callable[[TaskSection], tuple[str, ...]]
    count: Callable[[np.ndarray, TaskSection], np.ndarray]
    predict: Callable[[Tensor, TaskSection], Tensor]
    columns: Callable[[TaskSection], tuple[str, ...]]
    answer: Callable[[Tensor, TaskSection, float | None], list[str]] | None
    probes: Callable[[TaskSection], Tensor]
    describe: Callable[[TaskSection], str]
    answered: str = "class"
    needs_each: bool = True
    parts: Callable[[Any], list[dict[str, float | int | None]]] | None = None
    balance: Callable[[Tensor, TaskSection], Tensor] | None = None
    operating_point: Threshold | None = None
    closed_form: ClosedForm | None = None
    aligned: Callable[[Any, np.ndarray, Preparation, TaskSection], Tensor] | None = None
    locate: Callable[[Tensor, Any, Preparation, TaskSection], list[str]] | None = None
    at_once: int | None = None
    reports: str = "answers by true and given class, histograms of scores, losses"
    write: Callable[..., list[str]] | None = None
