"""One split of a hospital's records as batches that are ready for the model.

Prepared inputs are kept in memory while they fit `KEPT_BYTES` and preprocessing is cheap to undo by
asking again; a larger split is read and prepared batch by batch, so that memory stays flat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.data_set import Records
from fedgraft.common.backbones.backbone import Preprocess

KEPT_BYTES = 256 * 2**20
EVALUATION_BATCH = 256


@dataclass
class Split:
    """The rows of one split, prepared on demand.

    Args:
        records: the hospital's data set.
        rows: row numbers of the split, int64 `(n,)`.
        preprocess: the backbone's own preprocessing.
    """

    records: Records
    rows: np.ndarray
    preprocess: Preprocess

    def __post_init__(self) -> None:
        self.labels = torch.from_numpy(self.records.labels[self.rows].astype(np.int64))
        self._kept: Tensor | None = None
        self._too_large = False

    def __len__(self) -> int:
        return len(self.rows)

    def inputs(self, positions: Tensor) -> Tensor:
        """Prepared inputs `(len(positions), …)` float32 of these positions within the split."""
        if self._kept is None and not self._too_large:
            self._keep()
        if self._kept is not None:
            return self._kept[positions]
        return self._prepare(self.rows[positions.numpy()])

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches `(inputs, labels)` in the split's order, for evaluation."""
        for start in range(0, len(self), EVALUATION_BATCH):
            positions = torch.arange(start, min(start + EVALUATION_BATCH, len(self)))
            yield self.inputs(positions), self.labels[positions]

    def shuffled(
        self, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one epoch in an order drawn from `generator`; the last one may be smaller."""
        order = torch.randperm(len(self), generator=generator)
        for positions in torch.split(order, batch_size):
            yield self.inputs(positions), self.labels[positions]

    def _prepare(self, rows: np.ndarray) -> Tensor:
        return self.records.read(rows, prepare=self.preprocess)

    def _keep(self) -> None:
        if len(self) == 0:
            self._kept = torch.empty(0)
            return
        first = self._prepare(self.rows[:1])
        if first.nbytes * len(self) > KEPT_BYTES:
            self._too_large = True
            return
        kept = torch.empty((len(self), *first.shape[1:]))
        for start in range(0, len(self), EVALUATION_BATCH):
            rows = self.rows[start : start + EVALUATION_BATCH]
            kept[start : start + len(rows)] = self._prepare(rows)
        self._kept = kept
