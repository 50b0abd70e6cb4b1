"""The node's metrics for Prometheus, added up from its audit log: no process has to stay alive to
count.

A ClientApp lives for one message. What it did is in the audit log; the process that starts it
serves the sums, and reads only what was added since it was asked last.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgraft.client.node.node_file import Node
from fedgraft.client.site.network import split_address
from fedgraft.client.store.chain_entry import Entry
from fedgraft.client.store.journal import Journal, parse_line
from fedgraft.common.errors import UserError

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class Tally:
    """Sums over the entries of an audit log."""

    def __init__(self, path: Path) -> None:
        self.journal = Journal(path)
        self.messages: Counter[tuple[str, str]] = Counter()  # kind, decision
        self.bytes: Counter[str] = Counter()  # in, out
        self.seconds: defaultdict[str, float] = defaultdict(float)  # kind
        self.epsilon: dict[str, tuple[float, float | None]] = {}  # run → spent, left
        self.last = 0
        self._place: tuple[int, int] = (0, 0)  # inode and offset of the newest file

    def read(self) -> None:
        """Take in what was added since the last time."""
        for path in self.journal.segments():
            with path.open("rb") as file:
                inode = path.stat().st_ino
                if inode == self._place[0]:
                    file.seek(self._place[1])
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    entry, _ = parse_line(line)
                    if entry is not None and entry.number > self.last:
                        self._take(entry)
                    self._place = (
                        inode,
                        (self._place[1] if inode == self._place[0] else 0) + len(line),
                    )

    def _take(self, entry: Entry) -> None:
        body, self.last = entry.body, entry.number
        self.bytes[entry.kind] += int(body.get("bytes", 0))
        if entry.kind == "out":
            kind = str(body.get("kind", ""))
            self.messages[kind, str(body.get("decision", ""))] += 1
            self.seconds[kind] += float(body.get("seconds", 0.0))
            if "epsilon" in body:
                self.epsilon[str(body["run"])] = (float(body["epsilon"]), body.get("epsilon_left"))

    def collect(self) -> Iterator[Metric]:
        """As Prometheus asks for it."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        self.read()
        messages = CounterMetricFamily(
            "fedgraft_node_messages",
            "messages answered, by kind and decision",
            labels=["kind", "decision"],
        )
        for (kind, decision), count in sorted(self.messages.items()):
            messages.add_metric([kind, decision], count)
        rounds = CounterMetricFamily("fedgraft_node_rounds", "rounds trained and sent")
        rounds.add_metric([], self.messages["train", "sent"])
        failures = CounterMetricFamily(
            "fedgraft_node_failures", "messages refused, for whatever reason"
        )
        failures.add_metric(
            [],
            sum(count for (_, decision), count in self.messages.items() if decision == "refused"),
        )
        seconds = CounterMetricFamily(
            "fedgraft_node_seconds", "time spent on messages, by kind", labels=["kind"]
        )
        for kind, spent in sorted(self.seconds.items()):
            seconds.add_metric([kind], spent)
        size = CounterMetricFamily(
            "fedgraft_node_bytes", "bytes of messages, by direction", labels=["direction"]
        )
        for direction, count in sorted(self.bytes.items()):
            size.add_metric([direction], count)
        spent = GaugeMetricFamily(
            "fedgraft_node_epsilon", "ε spent in a run, at the plan's δ", labels=["run"]
        )
        left = GaugeMetricFamily(
            "fedgraft_node_epsilon_left", "ε that a run may still spend here", labels=["run"]
        )
        for run, (epsilon, rest) in self.epsilon.items():
            spent.add_metric([run], epsilon)
            if rest is not None:
                left.add_metric([run], rest)
        yield from (messages, rounds, failures, seconds, size, spent, left)


def serve(node: Node) -> Any:
    """Serve the sums over HTTP in a thread. Raises `UserError` where the address is taken or there
    is no audit log.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    if node.audit_path is None or node.metrics is None:
        raise UserError(
            "metrics are added up from the audit log", where="metrics", remedy="write `audit: true`"
        )
    host, port = split_address(node.metrics)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Tally(node.audit_path))  # pyright: ignore[reportArgumentType]
    try:
        return start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        what = f"{node.metrics}: {error.strerror or error}"
        raise UserError(
            what, where="metrics", remedy="choose a free port, such as 127.0.0.1:9464"
        ) from None
