"""A coordinator and three nodes as real processes, with TLS, keys and the gateway between them."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from pathlib import Path

import pytest

from simulations.federation import Federation, until

pytestmark = [pytest.mark.slow, pytest.mark.deployment]


def adapter(run: Path) -> bytes:
    return (run / "shared_model" / "adapter_model.safetensors").read_bytes()


def test_the_same_model_as_in_one_process(federation: Federation, in_process):
    """Other bits over the wire than in one process; an exit status, a folder or a message that is not true."""
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

    again = federation.fedgraft("server", "resume", out, "--server", federation.server_file)
    assert again.code == 2
    assert "this run is completed" in again.err
    again = federation.run(federation.folder / "plan.yaml", out)
    assert again.code == 2
    assert "exists and is not an empty folder" in again.err


def test_a_killed_run_is_told_and_resumed(federation: Federation, in_process):
    """A dead ServerApp that nobody is told of; a resumed run with other bits than one that was never cut off.

    The SuperLink is killed as well, before: the server must bring it back, and the nodes must find it again.
    """
    out = federation.folder / "runs" / "killed"
    running = federation.begin_run(federation.folder / "plan.yaml", out)
    try:
        until("the first round is finished", lambda: (out / "checkpoints" / "round-0001").is_dir(), 120)
        server_app = federation.server_app()
        assert server_app is not None
        os.kill(server_app, signal.SIGKILL)
        federation.kill("superlink")
        assert "superlink ended by SIGKILL; starts again in 1 s" in federation.log("server")
        _, err = running.communicate(timeout=180)
        assert running.returncode == 1
    finally:
        running.kill()
    assert "finished rounds are kept" in err
    assert f"fedgraft server resume {out}" in err
    assert "Traceback" not in err

    done = federation.fedgraft("server", "resume", out, "--server", federation.server_file, "--json")
    assert done.code == 0, done
    assert json.loads(done.out)["status"] == "completed"
    assert adapter(out) == adapter(in_process)


def test_metrics_of_the_server(federation: Federation):
    """Numbers that are not those of the runs."""
    with urllib.request.urlopen(f"http://{federation.server.metrics}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert 'fedgraft_rounds_total{run="first"} 3.0' in text
    assert 'fedgraft_up{process="superlink"} 1.0' in text
    assert 'fedgraft_run_status{run="killed",status="completed"} 1.0' in text
    lines = [json.loads(line) for line in (federation.folder / "runs/first/metrics.jsonl").read_text().splitlines()]
    up = sum(line["bytes"]["up"] for line in lines if line["node"] == "north" and "bytes" in line)
    assert f'fedgraft_bytes_total{{direction="up",node="north",run="first"}} {float(up)}' in text
