"""What enters the first trainable layer, computed once for each record and kept on disk.

    records → preparation → frozen prefix → [kept here] → trainable layers → outputs

The same bits come out whether a row was kept or is computed anew. A convolution's last bit depends
on the size of the batch, so the prefix only ever sees batches of BLOCK records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.examples import Examples
from fedgraft.client.data.split import Split
from fedgraft.client.store.activation_file import ActivationFile, ActivationForm
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.model.frozen_prefix import FrozenPrefix

# records that go through the prefix at once; always, with zeros in empty places
BLOCK = 32


@dataclass(frozen=True, eq=False)
class Activations:
    """Examples as they enter the first trainable layer, instead of prepared inputs.

        model, examples = behind_prefix(model, split, cut, cache)
        model(examples.inputs(positions))  # the same outputs as the whole model's

    Attributes:
        split: the records.
        prefix: what is frozen in front of that layer.
        form: shape and layout of its output.
        file: where rows are kept; None: they are computed each time they are asked for.
    """

    split: Split
    prefix: FrozenPrefix
    form: ActivationForm
    file: ActivationFile | None

    def __len__(self) -> int:
        return len(self.split)

    @property
    def labels(self) -> Tensor:
        """The targets, int64 `(n,)`."""
        return self.split.labels

    def through(self, change: Callable[[Examples], Examples]) -> Examples:
        """Return what `change` makes of the examples."""
        return change(self)

    def inputs(self, positions: Tensor) -> Batch:
        """Return activations `(len(positions), …)` float32 of these positions within the split."""
        rows = self.split.rows[positions.numpy()]
        if self.file is None:
            values = self.compute(rows)
        else:
            values = self._read_or_compute(self.file, rows)
        return Batch({"activation": self.form.unflatten(values)})

    def _read_or_compute(self, file: ActivationFile, rows: np.ndarray) -> np.ndarray:
        values, missing = file.read(rows)
        if missing.any():
            unknown = np.unique(rows[missing])
            # empty places of the last block
            free = -len(unknown) % BLOCK
            more = file.claim(free, after=int(unknown[-1]))
            filled = np.concatenate([unknown, more])
            computed = self.compute(filled)
            file.write(filled, computed)
            values[missing] = computed[np.searchsorted(unknown, rows[missing])]
        return values

    def compute(self, rows: np.ndarray) -> np.ndarray:
        """Return the prefix's output for these rows, flat, in the precision that is kept."""
        parts = [np.empty((0, self.form.values), self.form.dtype)]
        for start in range(0, len(rows), BLOCK):
            batch = self.split.prepare(rows[start : start + BLOCK])
            block = batch.empty_like(BLOCK).map(torch.zero_)
            block.write(slice(0, len(batch)), batch)
            activations = self.prefix(block.joined).cpu()
            parts.append(self.form.flatten(activations)[: len(batch)])
        return np.concatenate(parts)
