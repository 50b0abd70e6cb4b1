"""Outputs of a model that are to be measured: finite numbers, or the model diverged."""

from __future__ import annotations

import torch
from torch import Tensor

from fedgraft.common.errors import Code, Refused


def take_finite(outputs: Tensor) -> Tensor:
    """Return outputs as float64 on the CPU, without their graph.

    Raises:
        Refused: some are not finite; the model diverged.
    """
    numbers = outputs.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(numbers).all()):
        why = "the model's outputs are not finite (NaN, infinity): training diverged"
        raise Refused(Code.OUTPUT, f"{why}; lower train.optimizer.lr")
    return numbers
