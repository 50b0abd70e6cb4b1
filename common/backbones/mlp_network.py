"""A multi-layer perceptron for tables that have holes.

The columns are standardised inside the network, with constants that are part of the backbone and of
its fingerprint: all hospitals scale alike, and none has to tell its own means. A missing value
becomes the mean (0 after standardising), and an indicator for each column says that it was missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


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
        missing = x.isnan()
        values = torch.where(missing, 0.0, (x - self.mean) / self.std)
        return torch.cat([values, missing.to(values.dtype)], dim=1)


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
        classes: outputs of `head`.
    """

    def __init__(self, columns: int, hidden: tuple[int, ...], classes: int = 2) -> None:
        super().__init__()
        widths = (2 * columns, *hidden)
        layers = [Layer(inputs, outputs) for inputs, outputs in pairwise(widths)]
        self.standardise = Standardise(columns)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Tables (n, columns) with NaN for missing values → logits (n, classes)."""
        return self.head(self.layers(self.standardise(x)))
