"""Which rows lie nearest to others, by the cosine of the angle between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# rows whose similarities to all others are in memory at once
AT_ONCE = 256


@dataclass(frozen=True)
class Neighbours:
    """The nearest of some rows, the most similar first.

    Attributes:
        positions: among these rows, int64 `(n, count)`.
        similarities: −1 to 1; 0 with a row of zeros, which points nowhere, `(n, count)`.
    """

    positions: Tensor
    similarities: Tensor


def find_nearest(rows: Tensor, among: Tensor, count: int) -> Neighbours:
    """Return the nearest of `among` `(m, d)` for each of `rows` `(n, d)`; of equals the first.

    Args:
        count: how many; where there are fewer all of them.

    Raises:
        ValueError: a row that is not finite: it is near to nothing.
    """
    for values in (rows, among):
        if not bool(torch.isfinite(values).all()):
            raise ValueError("rows that are not finite")
    kept = min(count, len(among))
    directions = F.normalize(among.double(), dim=1)
    positions = [torch.empty(0, kept, dtype=torch.int64)]
    similarities = [torch.empty(0, kept, dtype=torch.float64)]
    for some in rows.double().split(AT_ONCE):
        cosines = F.normalize(some, dim=1) @ directions.T
        found = cosines.sort(dim=1, descending=True, stable=True)
        positions.append(found.indices[:, :kept])
        similarities.append(found.values[:, :kept])
    return Neighbours(torch.cat(positions), torch.cat(similarities))
