"""The family of networks for tables that nobody trains: a table's columns as they are, one name.

Its constants (where a number is clipped, its middle, its knots) are learnt in a round of their own
from one histogram of all nodes, and travel with the head. Hinges at quantiles are linear splines
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


class Constants(nn.Module):
    """What is known of each number: low, centre, high, and its knots, in this order.

    Kept as fractions and exponents of 2, exactly: numbers of any unit are small on the wire.
    """

    def __init__(self, numbers: int, *, hinges: bool) -> None:
        super().__init__()
        rows = len(list_percents(hinges))
        self.fraction = nn.Parameter(torch.zeros(rows, numbers))
        self.exponent = nn.Parameter(torch.zeros(rows, numbers))

    def values(self) -> Tensor:
        """Return the constants, float64 `(3, numbers)`, or `(8, numbers)` with knots."""
        return self.fraction.double() * torch.pow(2.0, self.exponent.double())


class Columns(nn.Module):
    """(n, inputs), NaN where missing → features → classifier `head`.

    Features, in this order: numbers clipped to [low, high], less the centre, over high − low;
    categories as they are; a mark of each column, 1 where it is missing; for each knot, how far a
    number is above it, over high − low. What is missing is 0.

    Args:
        category_sizes: of each column, how many categories it has; 0: it holds numbers.
        hinges: whether there are knots.
    """

    category_sizes: Tensor

    def __init__(self, category_sizes: Sequence[int], *, hinges: bool, classes: int = 2) -> None:
        super().__init__()
        self.numbers = number_inputs(category_sizes)
        self.categories = category_inputs(category_sizes)
        self.firsts = first_inputs(category_sizes)
        knots = len(KNOTS) if hinges else 0
        features = len(self.numbers) * (1 + knots) + len(self.categories) + len(self.firsts)
        # frozen: what its fingerprint covers
        self.register_buffer("category_sizes", torch.tensor(category_sizes, dtype=torch.int64))
        self.constants = Constants(len(self.numbers), hinges=hinges)
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


def list_percents(hinges: bool) -> tuple[int, ...]:
    """Return the percents of the constants, in their order."""
    percents = (LOW, CENTRE, HIGH)
    if hinges:
        return percents + KNOTS
    return percents


def learn_constants(histograms: TableHistograms, hinges: bool) -> dict[str, Tensor]:
    """Return the constants' tensors by name out of merged histograms of all numbers."""
    rows = []
    for percent in list_percents(hinges):
        rows.append([column.quantile(percent) for column in histograms.columns])
    fraction, exponent = torch.frexp(torch.tensor(rows, dtype=torch.float64))
    return {
        f"{CONSTANTS}.fraction": fraction.float(),
        f"{CONSTANTS}.exponent": exponent.float(),
    }


# ── the family ────────────────────────────────────────────────────────────────────────────────────
def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network whose constants are all 0. Raise `UserError` without columns."""
    if not shape.category_sizes:
        what = "a table without columns"
        raise UserError(what, where="task.columns", remedy="name the feature columns")
    return Columns(shape.category_sizes, hinges=shape.hinges)


def read_shape(state: State, shape: NetworkShape, where: str) -> NetworkShape:
    """Return columns and hinges of the network that these tensors belong to.

    Raises:
        UserError: they belong to none, or the plan names other columns.
    """
    sizes = state.get("category_sizes")
    fraction = state.get(f"{CONSTANTS}.fraction")
    if sizes is None or fraction is None or sizes.ndim != 1 or len(sizes) == 0:
        remedy = "leave backbone.weights out: nothing of it is trained beforehand"
        raise UserError("these are no constants of a table's columns", where=where, remedy=remedy)
    told = tuple(map(int, sizes.tolist()))
    if min(told) < 0 or max(told) > MOST_CATEGORIES:
        what = f"columns of up to {max(told)} categories; none has more than {MOST_CATEGORIES}"
        raise UserError(what, where=where, remedy="list a column's categories in task.categories")
    if shape.category_sizes and told != shape.category_sizes:
        what = "constants of other columns or categories than the plan names"
        raise UserError(what, where=where, remedy="name the same columns in the same order")
    hinges = len(fraction) == len(list_percents(True))
    return replace(shape, category_sizes=told, hinges=hinges)


COLUMNS = Family(
    names=lambda: ("columns",),
    build=build,
    preparation=lambda name, weights, image_size: TablePreparation(),
    fetch=refuse_to_fetch,
    read_shape=read_shape,
    fit=keep_state,
    learnt=Learnt(CONSTANTS, learn_constants),
)
