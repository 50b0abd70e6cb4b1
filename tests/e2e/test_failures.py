"""Failure is normal: nodes that hang, die and come back, while the others go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.federation import Federation, until

pytestmark = pytest.mark.slow
PATIENCE = 30  # seconds that a round waits
MORE = (
    "--set",
    "adapter.method=head",
    "--set",
    "aggregate.min_nodes=2",
    "--set",
    f"aggregate.round_timeout={PATIENCE}",
)


def lines(run: Path) -> list[dict[str, Any]]:
    try:
        text = (run / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def trained(run: Path, node: str) -> set[int]:
    """Rounds in which a node's update was counted."""
    return {row["round"] for row in lines(run) if row["node"] == node and "train" in row}


def refused(run: Path, node: str) -> dict[int, str]:
    """Why a node was left out, by round."""
    return {row["round"]: row["refused"] for row in lines(run) if row["node"] == node and "refused" in row}


def test_a_node_that_hangs_is_waited_for_so_long_and_no_longer(federation: Federation):
    """A round that waits for ever; a reply that comes a round too late and is counted all the same."""
    out = federation.folder / "runs" / "hangs"
    more = ("--set", "train.rounds=5", *MORE)
    running = federation.begin_run(federation.folder / "plan.yaml", out, *more)
    try:
        until("the first round is finished", lambda: (out / "checkpoints" / "round-0001").is_dir(), 120)
        federation.freeze("west")
        until("a round went on without it", lambda: bool(refused(out, "west")), 120)
        federation.thaw("west")  # it answers now, what it was asked in a round that is over
        said, err = running.communicate(timeout=240)
        assert running.returncode == 0, said + err
    finally:
        federation.thaw("west")
        running.kill()
    missed = refused(out, "west")
    assert all(f"no answer within {PATIENCE} s" in reason for reason in missed.values()), missed
    assert trained(out, "west") == set(range(1, 6)) - set(missed)
    assert max(trained(out, "west")) > max(missed), "it never came back"
    assert trained(out, "north") == trained(out, "south") == set(range(1, 6))
    result = json.loads((out / "result.json").read_text())
    assert result["status"] == "completed"
    assert {(row["node"], row["round"]) for row in result["refused"]} == {("west", n) for n in missed}


def test_a_node_that_dies_while_it_trains_comes_back(federation: Federation):
    """A run that dies with a node, or that never takes it back; a node whose own key is refused after its crash.

    Flower holds a dead node's place until its heartbeat is overdue, up to a minute: its key is refused until then.
    """
    out = federation.folder / "runs" / "dies"
    more = ("--set", "train.rounds=9", *MORE)
    running = federation.begin_run(federation.folder / "plan.yaml", out, *more)
    try:
        until("the first round is finished", lambda: (out / "checkpoints" / "round-0001").is_dir(), 120)
        until("it is in the middle of a message", lambda: federation.at_work("south"), 120)
        federation.kill_node("south")
        until("a round went on without it", lambda: bool(refused(out, "south")), 150)

        def connected() -> bool:
            if not federation.alive("south"):
                federation.start_node("south")
            return federation.log("south").count("SuperNode ID") > before

        before = federation.log("south").count("SuperNode ID")
        until("its key is taken again", connected, 150)
        said, err = running.communicate(timeout=400)
        assert running.returncode == 0, said + err
    finally:
        running.kill()
    missed = refused(out, "south")
    assert missed
    assert max(trained(out, "south")) > max(missed), "it never came back"
    assert trained(out, "north") == trained(out, "west") == set(range(1, 10))
    assert set(json.loads((out / "result.json").read_text())["final"]["nodes"]) == {"north", "south", "west"}
