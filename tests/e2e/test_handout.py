"""A backbone of 343 MB over the wire to three nodes: what each process needs for it, and what is
sent.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fedgraft.simulations.benchmarks.handout_memory import (
    NODES,
    describe,
    measure,
    measure_imports,
)

# bytes that a process may need for a hand-out, over what it has while it is idle
ABOVE_IDLE = 300e6
SIZE = 342_604_800


@pytest.mark.exhaustive
def test_a_large_backbone_in_bounded_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A process that holds a whole backbone for each node, or for itself, while it is handed out;
    one that is sent twice.

    Sent in parts of 64 MB, as they were before, the ServerApp needed 730 MB and the SuperLink 590.
    """
    measured = measure(tmp_path, measure_imports())
    with capsys.disabled():
        print(f"\n{describe(measured)}")
    # equal chunks of a message, such as zeros, go once
    assert 0.99 * NODES * SIZE < measured.down < 1.01 * NODES * SIZE
    for kind, peak in measured.peaks.items():
        assert peak.resident > 0, kind
        assert peak.resident - measured.idle[kind].resident < ABOVE_IDLE, kind
