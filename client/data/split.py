"""One split of a hospital's records as examples that are ready for the model.

Prepared inputs are kept in memory while they fit `KEPT_BYTES` and preparation is cheap to undo by
asking again; a larger split is read and prepared batch by batch, so that memory stays flat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.data_set import Records
from fedgraft.client.data.examples import EVALUATION_BATCH, Examples
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.material import Preparation

KEPT_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one split, prepared on demand.

        split = Split(records, records.splits["train"], backbone.preprocess)
        split.inputs(torch.arange(8))["image"].shape, split.labels[:8]

    Attributes:
        records: the hospital's data set.
        rows: row numbers of the split, int64 `(n,)`.
        preparation: the backbone's own.
    """

    records: Records = field(repr=False)
    rows: np.ndarray = field(repr=False)
    preparation: Preparation

    @property
    def labels(self) -> Tensor:
        """The targets, `(n, …)`."""
        return self._labels

    @cached_property
    def _labels(self) -> Tensor:
        return self.records.targets(self.rows, self.preparation)

    def __len__(self) -> int:
        return len(self.rows)

    def inputs(self, positions: Tensor) -> Batch:
        """Return prepared inputs of these positions within the split."""
        if self._kept is not None:
            return self._kept[positions]
        return self.prepare(self.rows[positions.numpy()])

    def prepare(self, rows: np.ndarray) -> Batch:
        """Return prepared inputs of these rows of the data set."""
        return self.records.prepare(rows, self.preparation)

    def through(self, change: Callable[[Examples], Examples]) -> Examples:
        """Return what `change` makes of the split."""
        return change(self)

    @property
    def nbytes(self) -> int:
        """Return the size of what is kept in memory, bytes."""
        kept = self.__dict__.get("_kept")
        return self.rows.nbytes + (kept.nbytes if kept is not None else 0)

    @cached_property
    def _kept(self) -> Batch | None:
        """All prepared inputs; None where they are too large to be kept."""
        if len(self) == 0:
            return Batch({"nothing": torch.empty(0)})
        first = self.prepare(self.rows[:1])
        if first.nbytes * len(self) > KEPT_BYTES:
            return None
        kept = first.empty_like(len(self))
        for start in range(0, len(self), EVALUATION_BATCH):
            rows = self.rows[start : start + EVALUATION_BATCH]
            kept.write(slice(start, start + len(rows)), self.prepare(rows))
        return kept
