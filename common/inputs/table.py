"""Tables: one row a record, as numbers; a missing value is NaN. Scaling is the backbone's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.inputs.material import Input, Preparation
from fedgraft.common.plan.backbone_section import BackboneSection
from fedgraft.common.plan.task_section import TaskSection


@dataclass(frozen=True)
class TablePreparation:
    """Nothing but a cast: a table's backbone standardises its own inputs."""

    def __call__(self, raw: Tensor) -> Batch:
        """Rows (n, columns), NaN where a value is missing → float32 (n, columns)."""
        return Batch({"table": raw.to(torch.float32)})

    def to_json(self) -> dict[str, Any]:
        """Return what an image's preparation with nothing to do would, as files have it."""
        return Preprocess().to_json()


def read_table_preparation(data: Mapping[str, Any]) -> TablePreparation:
    """Return the opposite of `TablePreparation.to_json`. Raise `UserError` for anything else."""
    if dict(data) != TablePreparation().to_json():
        what = f"a preparation of tables that cannot be: {str(dict(data))[:200]}"
        raise UserError(what, remedy="save the backbone again")
    return TablePreparation()


def example_row(preparation: Preparation, backbone: BackboneSection, task: TaskSection) -> Batch:
    """Return one row of zeros, as wide as a plan's table."""
    return Batch({"table": torch.zeros(1, task.inputs)})


def leave_rows(batch: Batch, augment: str, generator: torch.Generator) -> Batch:
    """Return the batch as it is: rows have nothing to flip or crop."""
    return batch


TABLE = Input(
    name="tabular",
    plural="table rows",
    read_preparation=read_table_preparation,
    example=example_row,
    augment=leave_rows,
)
