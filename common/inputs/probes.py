"""Records drawn at random, with which a network is tried before any record of a hospital."""

from __future__ import annotations

import torch

from fedgraft.common.inputs import INPUTS
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.material import Preparation


def draw_probes(material: str, preparation: Preparation, example: Batch, count: int) -> Batch:
    """Return prepared records that a network can take, the same at every call.

    Args:
        material: a member of `common.inputs.INPUTS`.
        example: any prepared batch: its shapes are used, its values are not.
    """
    generator = torch.Generator().manual_seed(0)
    return INPUTS[material].draw(preparation, example, count, generator)
