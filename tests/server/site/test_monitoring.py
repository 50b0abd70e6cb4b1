"""The coordinator's metrics, read from the runs' folders: the numbers that are there, once, and no
others.
"""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from fedgraft.server.site.monitoring import MOST_RUNS, publish
from fedgraft.server.site.server_file import Server, load_server, split_address
from fedgraft.server.site.supervisor import Child, Supervisor
from fedgraft.simulations.deployment.processes import find_free_ports

ROWS = [
    {"round": 1, "node": "a", "bytes": {"down": 100, "up": 10}, "train": {"seconds": 1.5}},
    {"round": 1, "node": "b", "bytes": {"down": 100, "up": 0}, "refused": "no answer within 30 s"},
    {"round": 2, "node": "a", "bytes": {"down": 100, "up": 11}, "train": {"seconds": 2.0}},
    {"round": 2, "node": "a", "final": {"accuracy": 0.9}},
]
RESULT = {
    "status": "completed",
    "rounds_done": 2,
    "seconds": {"rounds": 9.5, "total": 12.0},
    "privacy": {"a": {"epsilon": 2.25}},
}


def coordinator(folder: Path, runs: dict[str, Any]) -> Server:
    (folder / "state").mkdir(parents=True)
    (folder / "server.yaml").write_text(
        f"certificates: certificates\nstate: state\nmetrics: 127.0.0.1:{find_free_ports(1)[0]}\n"
    )
    server = load_server(folder / "server.yaml")
    for name, result in runs.items():
        run = server.runs / name
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in ROWS) + '{"round": 3, "no'
        )
        if result is not None:
            (run / "result.json").write_text(json.dumps(result))
        with server.submitted.open("a") as file:
            file.write(json.dumps({"run": "1", "out": str(run), "weights": ""}) + "\n")
    return server


def scraped(server: Server) -> list[str]:
    children = [Child("superlink", ["true"], starts=3)]
    supervisor = Supervisor(children, folder=server.state, logs=server.state, environment={})
    assert server.metrics is not None
    publish(split_address(server.metrics), server, supervisor)
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=10) as answer:
        return answer.read().decode().splitlines()


def test_the_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    """A byte counted twice, a half-written line that ends the scrape, a refusal that nobody is
    alarmed by.
    """
    text = scraped(coordinator(tmp_path, {"first": RESULT}))
    for line in (
        'fedgraft_up{process="superlink"} 0.0',
        'fedgraft_starts_total{process="superlink"} 3.0',
        'fedgraft_rounds_total{run="first"} 2.0',
        'fedgraft_run_status{run="first",status="completed"} 1.0',
        'fedgraft_run_seconds_total{phase="rounds",run="first"} 9.5',
        'fedgraft_node_train_seconds_total{node="a",run="first"} 3.5',
        'fedgraft_bytes_total{direction="down",node="a",run="first"} 200.0',
        'fedgraft_bytes_total{direction="up",node="a",run="first"} 21.0',
        'fedgraft_refused_total{node="b",run="first"} 1.0',
        'fedgraft_refused_total{node="a",run="first"} 0.0',
        'fedgraft_epsilon{node="a",run="first"} 2.25',
    ):
        assert line in text, line


@pytest.mark.parametrize("count", [0, MOST_RUNS + 5])
def test_a_run_that_begins_and_one_too_many(tmp_path: Path, count: int) -> None:
    """A run without a result yet; series that grow with every run for ever."""
    runs: dict[str, Any] = {f"old-{number}": RESULT for number in range(count)}
    text = "\n".join(scraped(coordinator(tmp_path, {**runs, "new": None})))
    assert 'fedgraft_run_status{run="new",status="starting"} 1.0' in text
    assert text.count("fedgraft_rounds_total{") == min(count + 1, MOST_RUNS)
