"""The family of networks for tables that nobody trains: a table's columns as they are, one name.

Its constants (where a number is clipped, its middle, its knots) are learnt in a round of their own
from one histogram of all nodes, and travel with the head; or the plan declares ranges, and they are
frozen with the backbone. Hinges at quantiles are linear splines
(Hastie et al. 2009, section 5.2): a linear head over them bends where records are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedgraft.common.backbones.family import (
    Family,
    Learnt,
    NetworkShape,
    State,
    keep_state,
    refuse_to_fetch,
)
from fedgraft.common.backbones.learnt_constants import LearntConstants, split_constants
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.input_positions import category_inputs, first_inputs, number_inputs
from fedgraft.common.inputs.table import TablePreparation
from fedgraft.common.statistics.histograms import TableHistograms

# percents of the records at which numbers are clipped, centred and bent
LOW = 1
CENTRE = 50
HIGH = 99
KNOTS = (10, 30, 50, 70, 90)
# as a plan's task has it
MOST_CATEGORIES = 1000
CONSTANTS = "constants"
# how far apart under differential privacy: the ends of a number's range are 2, two categories √2,
# present and missing this
MISSING_APART = 0.5


class DeclaredConstants(nn.Module):
    """What is known of each number by the ranges that a plan declares: low, centre, high, and its
    knots, in this order; frozen, and under the backbone's fingerprint.

    A number is centred in the middle of its range; its knots are at the same parts of the range as
    those that are learnt are of the records.
    """

    table: Tensor

    def __init__(self, ranges: Sequence[tuple[float, float]], *, hinges: bool) -> None:
        super().__init__()
        low, high = torch.tensor(ranges, dtype=torch.float64).reshape(-1, 2).T
        rows = [low, (low + high) / 2, high]
        if hinges:
            rows += [low + percent / 100 * (high - low) for percent in KNOTS]
        self.register_buffer("table", torch.stack(rows).float())

    def values(self) -> Tensor:
        """Return the constants, float64 `(3, numbers)`, or `(8, numbers)` with knots."""
        return self.table.double()


class Columns(nn.Module):
    """(n, inputs), NaN where missing → features → classifier `head`.

    Features, in this order: numbers clipped to [low, high], less the centre, over high − low;
    categories as they are; a mark of each column, 1 where it is missing; for each knot, how far a
    number is above it, over high − low. What is missing is 0.

    Args:
        category_sizes: of each column, how many categories it has; 0: it holds numbers.
        hinges: whether there are knots.
        ranges: of each number, where the plan declares them; None: constants are to be learnt.
    """

    category_sizes: Tensor

    def __init__(
        self,
        category_sizes: Sequence[int],
        *,
        hinges: bool,
        ranges: Sequence[tuple[float, float]] | None = None,
        classes: int = 2,
    ) -> None:
        super().__init__()
        self.numbers = number_inputs(category_sizes)
        self.categories = category_inputs(category_sizes)
        self.firsts = first_inputs(category_sizes)
        features = count_features(category_sizes, hinges=hinges)
        self.features = features
        # frozen: what its fingerprint covers
        self.register_buffer("category_sizes", torch.tensor(category_sizes, dtype=torch.int64))
        self.constants: LearntConstants | DeclaredConstants
        if ranges is None:
            rows = len(list_percents(hinges))
            self.constants = LearntConstants(rows, len(self.numbers))
        else:
            self.constants = DeclaredConstants(ranges, hinges=hinges)
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Tables (n, inputs) with NaN for missing values → logits (n, classes)."""
        return self.head(self.list_features(x))

    def list_features(self, x: Tensor) -> Tensor:
        """(n, inputs), NaN where missing → features (n, d)."""
        low, centre, high, *knots = self.constants.values()
        width = high - low
        width = torch.where(width > 0, width, 1.0)

        numbers = x[:, self.numbers].double()
        missing = numbers.isnan()
        clipped = torch.clamp(numbers, low, high)
        values = torch.where(missing, 0.0, (clipped - centre) / width)
        hinges = []
        for knot in knots:
            above = torch.relu(clipped - knot) / width
            hinges.append(torch.where(missing, 0.0, above))

        categories = torch.nan_to_num(x[:, self.categories], nan=0.0)
        marks = x[:, self.firsts].isnan()
        return torch.cat([part.to(x.dtype) for part in (values, categories, marks, *hinges)], dim=1)


def count_features(category_sizes: Sequence[int], *, hinges: bool) -> int:
    """Return how many features the columns of a table have."""
    each = 1 + len(KNOTS) if hinges else 1
    numbers = len(number_inputs(category_sizes))
    return numbers * each + len(category_inputs(category_sizes)) + len(category_sizes)


def list_percents(hinges: bool) -> tuple[int, ...]:
    """Return the percents of the constants, in their order."""
    percents = (LOW, CENTRE, HIGH)
    if hinges:
        return percents + KNOTS
    return percents


def learn_constants(histograms: TableHistograms, hinges: bool) -> dict[str, Tensor]:
    """Return the constants' parameters by name out of merged histograms of all numbers."""
    rows = []
    for percent in list_percents(hinges):
        rows.append([column.quantile(percent) for column in histograms.columns])
    return split_constants(CONSTANTS, rows)


def declare_reference(net: Columns) -> tuple[Tensor, Tensor]:
    """Return centre and linear map of the features by rule alone, for features of norm 1.

    A number is in the middle of its range, and its ends lie at ±1; categories are equally frequent;
    nothing is missing. A missing category says nothing of the others: its mark takes out what the
    centre puts in. Seen on training records of `heart` and `icu`: a mark that weighs as much as a
    number drowns it in noise where most columns are missing.
    """
    numbers = len(net.numbers)
    marks = numbers + len(net.categories)
    centre = torch.zeros(net.features)
    spread = torch.full((net.features,), 2.0)
    spread[numbers:marks] = 1.0
    spread[marks : marks + len(net.firsts)] = MISSING_APART
    change = torch.diag(spread)
    at = numbers
    for column, size in enumerate(net.category_sizes.tolist()):
        if size:
            centre[at : at + size] = 1 / size
            change[marks + column, at : at + size] = 1 / size
            at += size
    return centre, change


# ── the family ────────────────────────────────────────────────────────────────────────────────────
def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network whose constants are all 0. Raise `UserError` without columns."""
    if not shape.category_sizes:
        what = "a table without columns"
        raise UserError(what, where="task.columns", remedy="name the feature columns")
    return Columns(shape.category_sizes, hinges=shape.hinges, ranges=shape.ranges)


def read_shape(state: State, shape: NetworkShape, where: str) -> NetworkShape:
    """Return columns and hinges of the network that these tensors belong to.

    Raises:
        UserError: they belong to none, or the plan names other columns.
    """
    sizes = state.get("category_sizes")
    declared = state.get(f"{CONSTANTS}.table")
    constants = state.get(f"{CONSTANTS}.fraction", declared)
    if sizes is None or constants is None or sizes.ndim != 1 or len(sizes) == 0:
        remedy = "leave backbone.weights out: nothing of it is trained beforehand"
        raise UserError("these are no constants of a table's columns", where=where, remedy=remedy)
    told = tuple(map(int, sizes.tolist()))
    if min(told) < 0 or max(told) > MOST_CATEGORIES:
        what = f"columns of up to {max(told)} categories; none has more than {MOST_CATEGORIES}"
        raise UserError(what, where=where, remedy="list a column's categories in task.categories")
    if shape.category_sizes and told != shape.category_sizes:
        what = "constants of other columns or categories than the plan names"
        raise UserError(what, where=where, remedy="name the same columns in the same order")
    hinges = len(constants) == len(list_percents(True))
    ranges: tuple[tuple[float, float], ...] | None = None
    if declared is not None:
        # only how many: the values are those of the tensors
        ranges = ((0.0, 1.0),) * len(number_inputs(told))
    return replace(shape, category_sizes=told, hinges=hinges, ranges=ranges)


COLUMNS = Family(
    names=lambda: ("columns",),
    build=build,
    preparation=lambda name, weights, image_size: TablePreparation(),
    fetch=refuse_to_fetch,
    read_shape=read_shape,
    fit=keep_state,
    learnt=Learnt(CONSTANTS, learn_constants),
    reference=declare_reference,
)
