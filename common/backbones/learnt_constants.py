"""Constants of a network that nodes' histograms tell; they travel as an adapter does.

Kept as fractions and exponents of 2, exactly: numbers of any unit are small on the wire.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LearntConstants(nn.Module):
    """Some constants for each number of a table, all 0 until they are learnt.

        network.constants = constants = LearntConstants(rows=2, numbers=5)
        network.load_state_dict(split_constants("constants", [means, deviations]), strict=False)
        constants.values()  # float64 (2, 5)

    Args:
        rows: constants of a number.
        numbers: how many numbers there are.
    """

    def __init__(self, rows: int, numbers: int) -> None:
        super().__init__()
        self.fraction = nn.Parameter(torch.zeros(rows, numbers))
        self.exponent = nn.Parameter(torch.zeros(rows, numbers))

    def values(self) -> Tensor:
        """Return the constants, float64 `(rows, numbers)`. No gradient reaches them: steps leave
        them as they were counted.
        """
        fraction = self.fraction.detach().double()
        return fraction * torch.pow(2.0, self.exponent.detach().double())


def split_constants(module: str, rows: Sequence[Sequence[float]]) -> dict[str, Tensor]:
    """Return the parameters of `LearntConstants` by dotted name, for these values.

    Args:
        module: dotted name of the constants in their network.
    """
    fraction, exponent = torch.frexp(torch.tensor(rows, dtype=torch.float64))
    return {f"{module}.fraction": fraction.float(), f"{module}.exponent": exponent.float()}
