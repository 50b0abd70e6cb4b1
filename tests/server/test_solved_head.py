"""A solved head that no node would take ends the run in words."""

from __future__ import annotations

import pytest
import torch

from fedgraft.common.errors import RunFailed
from fedgraft.common.wire.layout import LARGEST
from fedgraft.server.sums.solution import check_head


@pytest.mark.parametrize("value", [2 * LARGEST, -3 * LARGEST, float("nan"), float("inf")])
def test_a_head_that_no_node_takes_ends_the_run(value: float) -> None:
    """Every node refused such a head, and the run was called completed, without a figure."""
    check_head({"head.weight": torch.full((2, 3), LARGEST), "head.bias": torch.zeros(2)})
    weight = torch.zeros(2, 3)
    weight[1, 2] = value
    with pytest.raises(RunFailed, match="no node takes it"):
        check_head({"head.weight": weight, "head.bias": torch.zeros(2)})
