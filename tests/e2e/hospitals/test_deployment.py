"""A coordinator and three nodes as real processes, with TLS, keys and the gateway between them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from fedgraft.client.node.node_file import load_node
from fedgraft.client.store.journal import Journal
from fedgraft.simulations.deployment.local_federation import BIN, LocalFederation
from tests.e2e.conftest import wait_for_first_round
from tests.e2e.hospitals.conftest import run_in_process

pytestmark = [pytest.mark.slow, pytest.mark.deployment]


def adapter(run: Path) -> bytes:
    return (run / "shared_model" / "adapter_model.safetensors").read_bytes()


def digest(run: Path) -> str:
    return f"sha256:{hashlib.sha256(adapter(run)).hexdigest()[:12]}…"


def test_the_same_model_as_in_one_process(federation: LocalFederation, in_process, seen):
    """Other bits over the wire than in one process; an exit status, a folder or a message that is
    not true.
    """
    out = federation.folder / "runs" / "first"
    done = federation.run(federation.folder / "plan.yaml", out)
    assert done.code == 0, done
    assert str(out) in done.out
    assert "round 2: 3 of 3 nodes" in done.out
    assert "completed: 3 rounds, 3 nodes, accuracy" in done.out
    assert adapter(out) == adapter(in_process)
    results = [json.loads((run / "result.json").read_text()) for run in (out, in_process)]
    for key in ("status", "plan_hash", "backbone", "adapter", "final", "refused", "rounds_done"):
        assert results[0][key] == results[1][key], key

    seen(
        f"pneumonia, 3 rounds at 3 hospitals: {digest(out)}; in one process: {digest(in_process)};"
        " the same bits"
    )

    again = federation.fedgraft("server", "resume", out, "--server", federation.server_file)
    assert again.code == 2
    assert "this run is completed" in again.err
    again = federation.run(federation.folder / "plan.yaml", out)
    assert again.code == 2
    assert "exists and is not an empty folder" in again.err


def test_one_round_over_the_wire(federation: LocalFederation, deployed: Path, seen):
    """Sums that are other bits over the wire, or that a real node does not take for what was
    approved.
    """
    changes = ("adapter.method=head", "train={method: closed-form}")
    here = run_in_process(deployed, "one-round-here", *changes)
    federation.approve(federation.folder / "plan.yaml", *changes)
    out = federation.folder / "runs" / "one-round"
    done = federation.run(federation.folder / "plan.yaml", out, *changes)
    assert done.code == 0, done
    assert adapter(out) == adapter(here)
    result = json.loads((out / "result.json").read_text())
    assert result["closed_form"]["records"] == sum(
        node["examples"] for node in result["nodes"].values()
    )
    seen(f"one round of sums at 3 hospitals: {digest(out)}; in one process: the same bits")


def test_everything_is_written_down(federation: LocalFederation):
    """A message that leaves no entry in a node's audit log, or a log that does not verify."""
    if not (federation.folder / "runs" / "first").is_dir():  # this test by itself
        federation.run(federation.folder / "plan.yaml", federation.folder / "runs" / "first")
    path = load_node(federation.files["north"]).audit_path
    assert path is not None
    kinds = [
        (entry.kind, entry.body["kind"], entry.body.get("decision"))
        for entry in Journal(path).entries()
    ]
    for kind in ("query.offer", "query.backbone", "train", "evaluate"):
        assert ("in", kind, None) in kinds
        assert ("out", kind, "sent") in kinds
    done = federation.fedgraft("node", "log", federation.files["north"], "--verify")
    assert done.code == 0, done


def test_a_killed_run_is_told_and_resumed(federation: LocalFederation, in_process, seen):
    """A dead ServerApp that nobody is told of; a resumed run with other bits than one that was
    never cut off.

    The SuperLink is killed as well, before: the server must bring it back, and the nodes must find
    it again. It is resumed from a terminal, where a bar shows the rounds.
    """
    out = federation.folder / "runs" / "killed"
    running = federation.begin_run(federation.folder / "plan.yaml", out)
    try:
        wait_for_first_round(out)
        server_app = federation.find_server_app()
        assert server_app is not None
        os.kill(server_app, signal.SIGKILL)
        federation.kill("superlink")
        assert "superlink ended by SIGKILL; starts again in 1 s" in federation.log("server")
        _, err = running.communicate(timeout=180)
        assert running.returncode == 1
    finally:
        running.kill()
    lost = "Lost: the process of this run was killed (SIGKILL)"
    assert lost in (federation.server.logs / "superexec.log").read_text()
    assert "finished rounds are kept" in err
    assert f"fedgraft server resume {out}" in err
    assert "Traceback" not in err

    code, shown = on_terminal(
        federation, "server", "resume", out, "--server", federation.server_file
    )
    assert code == 0, shown
    assert re.search(r"shared model.*3/3.* rounds, accuracy 0\.\d{3}", shown), shown
    assert "completed: 3 rounds, 3 nodes, accuracy" in shown
    assert adapter(out) == adapter(in_process)
    seen("server run and SuperLink killed after round 1, resumed: the same bits")


def on_terminal(federation: LocalFederation, *words: str | Path) -> tuple[int, str]:
    """`fedgraft …` in a terminal: its exit status, and all that was shown."""
    ours, theirs = pty.openpty()
    environment = federation.environment | {"TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [str(BIN / "fedgraft"), *map(str, words)],
        cwd=federation.folder,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    with (
        contextlib.suppress(OSError),
        open(ours, "rb", buffering=0) as screen,
    ):  # an error once nobody has it open
        while piece := screen.read(65536):
            shown += piece
    return process.wait(), shown.decode(errors="replace")


def test_metrics_of_the_server(federation: LocalFederation):
    """Numbers that are not those of the runs."""
    with urllib.request.urlopen(
        f"http://{federation.server.metrics}/metrics", timeout=10
    ) as answer:
        text = answer.read().decode()
    assert 'fedgraft_up{process="superlink"} 1.0' in text
    for path in (federation.folder / "runs").glob("*/result.json"):
        result = json.loads(path.read_text())
        assert (
            f'fedgraft_rounds_total{{run="{path.parent.name}"}} {float(result["rounds_done"])}'
            in text
        )
