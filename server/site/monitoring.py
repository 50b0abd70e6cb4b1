"""Prometheus metrics of the coordinator, read from the runs' folders at each scrape.

So nothing is counted twice. Only the last runs are shown (`MOST_RUNS`), by the names of their
folders. Nothing of a node's data is in them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedgraft.common import run_files
from fedgraft.server.papers.metric_lines import read_lines
from fedgraft.server.site.server_file import Address, Server
from fedgraft.server.site.submitted_runs import read_submitted

if TYPE_CHECKING:
    from fedgraft.server.site.supervisor import Supervisor

MOST_RUNS = 20
DIRECTIONS = ("down", "up")


def publish(address: Address, server: Server, supervisor: Supervisor) -> None:
    """Serve the metrics on `http://address/metrics`, from a thread of this process."""
    registry = CollectorRegistry()
    registry.register(Coordinator(server, supervisor))
    start_http_server(address.port, address.host, registry)


class Coordinator(Collector):
    """What `fedgraft server start` looks after, and the runs that went through it."""

    def __init__(self, server: Server, supervisor: Supervisor) -> None:
        self._server = server
        self._supervisor = supervisor

    def describe(self) -> Iterator[Metric]:
        """Return nothing: what there is to tell is found at each scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, as they are now."""
        yield from self._processes()
        families = RunFamilies()
        for folder in self._folders():
            families.add(folder)
        yield from families.all()

    def _processes(self) -> Iterator[Metric]:
        up = _gauge("up", "1 while a process of the server runs", "process")
        starts = _counter("starts", "starts of a process of the server", "process")
        for child in self._supervisor.children:
            up.add_metric([child.name], float(child.alive))
            starts.add_metric([child.name], child.starts)
        yield from (up, starts)

    def _folders(self) -> list[Path]:
        last = [submitted.out for submitted in reversed(read_submitted(self._server))]
        return [Path(out) for out in list(dict.fromkeys(last))[:MOST_RUNS]]


class RunFamilies:
    """The metrics of runs, a series for each run or node of a run."""

    def __init__(self) -> None:
        self._rounds = _counter("rounds", "finished rounds", "run")
        self._seconds = _counter("run_seconds", "seconds of a run, by phase", "run", "phase")
        self._training = _counter("node_train_seconds", "seconds of training", "run", "node")
        self._bytes = _counter("bytes", "bytes of the rounds", "run", "node", "direction")
        self._refused = _counter("refused", "replies left out", "run", "node")
        self._epsilon = _gauge("epsilon", "ε spent in a run", "run", "node")
        self._status = _gauge("run_status", "1 for the status that a run has", "run", "status")

    def add(self, folder: Path) -> None:
        """Add what a run's folder says."""
        run = folder.name
        so_far = state_of(folder)
        self._status.add_metric([run, str(so_far.get("status", "starting"))], 1.0)
        self._rounds.add_metric([run], so_far.get("rounds_done", 0))
        for phase, seconds in so_far.get("seconds", {}).items():
            self._seconds.add_metric([run, phase], seconds)
        for node, spent in so_far.get("privacy", {}).items():
            self._epsilon.add_metric([run, node], spent["epsilon"])
        for node, sums in by_node(read_lines(folder)).items():
            self._training.add_metric([run, node], sums["seconds"])
            self._refused.add_metric([run, node], sums["refused"])
            for direction in DIRECTIONS:
                self._bytes.add_metric([run, node, direction], sums[direction])

    def all(self) -> list[Metric]:
        """Return the metrics in the order in which they are shown."""
        return [
            self._rounds,
            self._seconds,
            self._training,
            self._bytes,
            self._refused,
            self._epsilon,
            self._status,
        ]


def _gauge(name: str, words: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"fedgraft_{name}", words, labels=labels)


def _counter(name: str, words: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"fedgraft_{name}", words, labels=labels)


def state_of(folder: Path) -> dict[str, Any]:
    """Return a run's result, or what its last checkpoint says of it; empty before the first round.

    A file may be replaced at this moment: then the next one is read.
    """
    checkpoints = reversed(run_files.checkpoints_of(folder))
    files = [folder / run_files.RESULT]
    files += [checkpoint / run_files.SO_FAR for checkpoint in checkpoints]
    for file in files:
        with contextlib.suppress(OSError, json.JSONDecodeError):
            return json.loads(file.read_text())
    return {}


def by_node(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return seconds of training, bytes and refusals of each node, summed over a run's rounds."""
    nodes: dict[str, dict[str, float]] = {}
    for line in lines:
        nothing = {"seconds": 0.0, "refused": 0.0, "down": 0.0, "up": 0.0}
        sums = nodes.setdefault(line["node"], nothing)
        train = line.get("train") or {}
        sizes = line.get("bytes") or {}
        sums["seconds"] += train.get("seconds", 0.0)
        sums["refused"] += "refused" in line
        for direction in DIRECTIONS:
            sums[direction] += sizes.get(direction, 0)
    return nodes
