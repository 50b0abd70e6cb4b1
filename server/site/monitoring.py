"""Prometheus metrics of the coordinator: read from the runs' folders at each scrape, so that
nothing is counted twice.

Only the last runs are shown (`MOST_RUNS`), by the names of their folders. Nothing of a node's data
is in them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedgraft.server.site.server_file import Address, Server
from fedgraft.server.site.submit_run import lines, submitted

if TYPE_CHECKING:
    from fedgraft.server.site.supervisor import Supervisor

MOST_RUNS = 20


def publish(address: Address, server: Server, supervisor: Supervisor) -> None:
    """Serve the metrics on `http://address/metrics`, from a thread of this process."""
    registry = CollectorRegistry()
    registry.register(Coordinator(server, supervisor))
    start_http_server(address.port, address.host, registry)


class Coordinator(Collector):
    """What `fedgraft server start` looks after, and the runs that went through it."""

    def __init__(self, server: Server, supervisor: Supervisor) -> None:
        self._server, self._supervisor = server, supervisor

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there is to tell is found at each scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        up = GaugeMetricFamily(
            "fedgraft_up", "1 while a process of the server runs", labels=["process"]
        )
        starts = CounterMetricFamily(
            "fedgraft_starts", "starts of a process of the server", labels=["process"]
        )
        for child in self._supervisor.children:
            up.add_metric([child.name], float(child.alive))
            starts.add_metric([child.name], child.starts)
        yield from (up, starts)

        rounds = CounterMetricFamily("fedgraft_rounds", "finished rounds", labels=["run"])
        seconds = CounterMetricFamily(
            "fedgraft_run_seconds", "seconds of a run, by phase", labels=["run", "phase"]
        )
        training = CounterMetricFamily(
            "fedgraft_node_train_seconds", "seconds of training", labels=["run", "node"]
        )
        sent = CounterMetricFamily(
            "fedgraft_bytes", "bytes of the rounds", labels=["run", "node", "direction"]
        )
        refused = CounterMetricFamily(
            "fedgraft_refused", "replies left out", labels=["run", "node"]
        )
        epsilon = GaugeMetricFamily("fedgraft_epsilon", "ε spent in a run", labels=["run", "node"])
        status = GaugeMetricFamily(
            "fedgraft_run_status", "1 for the status that a run has", labels=["run", "status"]
        )
        for folder in self._folders():
            run, so_far = folder.name, state_of(folder)
            status.add_metric([run, str(so_far.get("status", "starting"))], 1.0)
            rounds.add_metric([run], so_far.get("rounds_done", 0))
            for phase, value in so_far.get("seconds", {}).items():
                seconds.add_metric([run, phase], value)
            for node, spent in so_far.get("privacy", {}).items():
                epsilon.add_metric([run, node], spent["epsilon"])
            for node, about in by_node(lines(folder)).items():
                training.add_metric([run, node], about["seconds"])
                refused.add_metric([run, node], about["refused"])
                for direction in ("down", "up"):
                    sent.add_metric([run, node, direction], about[direction])
        yield from (rounds, seconds, training, sent, refused, epsilon, status)

    def _folders(self) -> list[Path]:
        known = dict.fromkeys(line["out"] for line in reversed(submitted(self._server)))
        return [Path(out) for out in list(known)[:MOST_RUNS]]


def state_of(folder: Path) -> dict[str, Any]:
    """A run's result, or what its last checkpoint says of it; empty before the first round."""
    places = [
        folder / "result.json",
        *sorted((folder / "checkpoints").glob("round-????/so_far.json"), reverse=True),
    ]
    for place in places:
        with contextlib.suppress(
            OSError, json.JSONDecodeError
        ):  # it may be replaced at this moment
            return json.loads(place.read_text())
    return {}


def by_node(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Seconds of training, bytes and refusals of each node, summed over a run's rounds."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        about = found.setdefault(
            row["node"], {"seconds": 0.0, "refused": 0.0, "down": 0.0, "up": 0.0}
        )
        about["seconds"] += (row.get("train") or {}).get("seconds", 0.0)
        about["refused"] += "refused" in row
        for direction in ("down", "up"):
            about[direction] += (row.get("bytes") or {}).get(direction, 0)
    return found
