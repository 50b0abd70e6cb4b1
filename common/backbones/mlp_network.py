"""A multi-layer perceptron for tables that have holes.

The columns are standardised inside the network, and all hospitals scale alike: with constants that
are part of the backbone and of its fingerprint, or that histograms of all hospitals tell in a round
of their own. A missing value becomes the mean (0 after standardising), and an indicator for each
column says that it was missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fedgraft.common.backbones.learnt_constants import LearntConstants, split_constants
from fedgraft.common.inputs.input_positions import count_inputs, number_inputs
from fedgraft.common.statistics.histograms import STEP, TableHistograms

# dotted name of what scales an Mlp's columns
STANDARDISE = "standardise"


class Standardise(nn.Module):
    """(n, columns), NaN where missing → (n, 2·columns): standardised values, then 1 where one was
    missing.

        layer = Standardise(columns=3)
        layer.fit(table)
        layer(table)
    """

    mean: Tensor
    std: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("std", torch.ones(columns))

    @torch.no_grad()
    def fit(self, table: Tensor) -> None:
        """Take mean and standard deviation (population) of each column of `table` (n, columns), NaN
        left out.

        A column without values gets mean 0, and one without spread a standard deviation of 1.
        """
        known = ~table.isnan()
        count = known.sum(0).clamp(min=1)
        values = torch.where(known, table, 0.0).double()
        mean = values.sum(0) / count
        deviations = torch.where(known, values - mean, 0.0)
        std = ((deviations**2).sum(0) / count).sqrt()
        spreads = std > 1e-6 * mean.abs().clamp(min=1.0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(spreads, std, 1.0))

    @torch.no_grad()
    def declare(self, numbers: Sequence[int], ranges: Sequence[tuple[float, float]]) -> None:
        """Take mean and standard deviation of numbers that are even between low and high.

        Args:
            numbers: which of the columns they are.
            ranges: low and high of each.
        """
        low, high = torch.tensor(ranges, dtype=torch.float64).reshape(-1, 2).T
        self.mean[numbers] = ((low + high) / 2).float()
        self.std[numbers] = ((high - low) / math.sqrt(12)).float()

    def forward(self, x: Tensor) -> Tensor:
        """Return the values standardised and, behind them, the marks of those that are missing."""
        return standardise(x, self.mean, self.std)


class LearntStandardise(LearntConstants):
    """The same with the mean and deviation of each number that histograms of all hospitals tell;
    categories stay 0 or 1, and a number of which one value was counted is always 0: nothing was
    learnt of others.

    Args:
        category_sizes: of each column, how many categories it has; 0: it holds numbers.
    """

    category_sizes: Tensor

    def __init__(self, category_sizes: Sequence[int]) -> None:
        numbers = number_inputs(category_sizes)
        super().__init__(2, len(numbers))
        self.numbers = numbers
        self.inputs = count_inputs(category_sizes)
        # frozen: what its fingerprint covers
        self.register_buffer("category_sizes", torch.tensor(category_sizes, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs), NaN where missing → (n, 2·inputs), as `Standardise`."""
        told_mean, told_std = self.values().to(x.dtype)
        mean = x.new_zeros(self.inputs)
        std = x.new_ones(self.inputs)
        mean[self.numbers] = told_mean
        std[self.numbers] = torch.where(told_std > 0, told_std, torch.inf)
        return standardise(x, mean, std)


def standardise(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(n, inputs), NaN where missing → (n, 2·inputs): what is missing is 0, and marked."""
    missing = x.isnan()
    values = torch.where(missing, 0.0, (x - mean) / std)
    return torch.cat([values, missing.to(values.dtype)], dim=1)


def learn_scales(histograms: TableHistograms) -> dict[str, Tensor]:
    """Return the parameters of `LearntStandardise` by name out of merged histograms."""
    means: list[float] = []
    deviations: list[float] = []
    for column in histograms.columns:
        mean, deviation = column.mean_and_deviation()
        if deviation > 0:
            # numbers closer than this were counted as one
            deviation = max(deviation, STEP * abs(mean))
        means.append(mean)
        deviations.append(deviation)
    return split_constants(STANDARDISE, [means, deviations])


class Layer(nn.Module):
    """Linear map and ReLU: (n, in) → (n, out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(n, in) → (n, out), never negative."""
        return self.relu(self.linear(x))


class Mlp(nn.Module):
    """Standardise, hidden layers, classifier `head`.

    Args:
        columns: feature columns of the table.
        hidden: width of each hidden layer.
        scales: of its columns; None: mean 0 and deviation 1.
        classes: outputs of `head`.
    """

    def __init__(
        self,
        columns: int,
        hidden: tuple[int, ...],
        scales: Standardise | LearntStandardise | None = None,
        classes: int = 2,
    ) -> None:
        super().__init__()
        widths = (2 * columns, *hidden)
        layers = [Layer(inputs, outputs) for inputs, outputs in pairwise(widths)]
        self.standardise = scales or Standardise(columns)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Tables (n, columns) with NaN for missing values → logits (n, classes)."""
        return self.head(self.layers(self.standardise(x)))
