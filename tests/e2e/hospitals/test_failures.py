"""Failure is normal: nodes that hang, die and come back, while the others go on."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from fedgraft.server.papers.metric_lines import read_lines
from fedgraft.simulations.deployment.local_federation import LocalFederation
from fedgraft.simulations.deployment.processes import wait_until
from tests.e2e.conftest import wait_for_first_round

pytestmark = [pytest.mark.slow, pytest.mark.deployment]
PATIENCE = 30  # seconds that a round waits
CHANGES = ("adapter.method=head", "aggregate.min_nodes=2", f"aggregate.round_timeout={PATIENCE}")


def begin(federation: LocalFederation, out: Path, *changes: str) -> subprocess.Popen[str]:
    """A run with the changes of these tests and more, which every hospital approved."""
    federation.approve(federation.folder / "plan.yaml", *CHANGES, *changes)
    return federation.begin_run(federation.folder / "plan.yaml", out, *CHANGES, *changes)


def trained(run: Path, node: str) -> set[int]:
    """Rounds in which a node's update was counted."""
    return {row["round"] for row in read_lines(run) if row["node"] == node and "train" in row}


def refused(run: Path, node: str) -> dict[int, str]:
    """Why a node was left out, by round."""
    return {
        row["round"]: row["refused"]
        for row in read_lines(run)
        if row["node"] == node and "refused" in row
    }


def test_a_node_that_hangs_is_waited_for_so_long_and_no_longer(federation: LocalFederation, seen):
    """A round that waits for ever; a reply that comes a round too late and is counted all the
    same.
    """
    out = federation.folder / "runs" / "hangs"
    running = begin(federation, out, "train.rounds=5")
    try:
        wait_for_first_round(out)
        federation.freeze("west")
        wait_until("a round went on without it", lambda: bool(refused(out, "west")), 120)
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
    assert {(row["node"], row["round"]) for row in result["refused"]} == {
        ("west", n) for n in missed
    }
    seen(f"a node that hung: waited for {PATIENCE} s, its late answer not counted, it trains again")


def test_a_node_that_dies_while_it_trains_comes_back(federation: LocalFederation, seen):
    """A run that dies with a node, or that never takes it back; a node whose own key is refused
    after its crash.

    Flower holds a dead SuperNode's place until its heartbeat is overdue, up to a minute: its key is
    refused until then, and `fedgraft node start` tries again by itself. The run is longer than
    that; Ctrl-C ends it then.
    """
    out = federation.folder / "runs" / "dies"
    running = begin(federation, out, "train.rounds=200")
    try:
        wait_for_first_round(out)
        wait_until("it is in the middle of a message", lambda: federation.is_at_work("south"), 120)
        before = federation.count_connections("south")
        federation.kill_supernode("south")
        wait_until("a round went on without it", lambda: bool(refused(out, "south")), 150)
        wait_until(
            "its key is taken again", lambda: federation.count_connections("south") > before, 150
        )
        missed = refused(out, "south")
        wait_until("it trains again", lambda: max(trained(out, "south")) > max(missed), 120)
        running.send_signal(signal.SIGINT)
        said, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert any("holds this key" in words for words in federation.list_events("south", "ended"))
    assert trained(out, "north") == trained(out, "west") >= set(range(1, max(missed) + 1))

    # ── what Ctrl-C leaves ────────────────────────────────────────────────────────────────────────
    assert running.returncode == 130, said + err
    assert "is stopped" in err
    assert "finished rounds are kept" in err
    assert f"fedgraft server resume {out}" in err
    assert "Traceback" not in err
    kept = max(int(path.name.removeprefix("round-")) for path in (out / "checkpoints").iterdir())
    assert f"{kept} finished rounds" in err
    assert kept > max(missed)
    seen(
        f"a SuperNode killed while it trained: left out in {len(missed)} rounds, restarted by"
        " itself, trains again"
    )
