"""The node's metrics for Prometheus, added up from its audit log: no process has to stay alive to
count. Beside them is whether the node can work (`condition.py`).

A ClientApp lives for one message. What it did is in the audit log; the process that starts it
serves the sums, and reads only what was added since it was asked last.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgraft.client.node.node_file import Node
from fedgraft.client.site.condition import Condition
from fedgraft.client.site.network import split_address
from fedgraft.client.store.chain_entry import Entry
from fedgraft.client.store.journal import Journal, parse_line
from fedgraft.common.errors import UserError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

# label values → number
_Samples = Mapping[tuple[str, ...], float]


@dataclass(frozen=True)
class _Mark:
    """How far a file was read: its inode and the offset behind the last line."""

    inode: int = 0
    offset: int = 0


class Tally:
    """Sums over the entries of an audit log.

    tally = Tally(node.audit_path)
    tally.read()
    tally.messages["train", "sent"]
    """

    def __init__(self, path: Path) -> None:
        self.journal = Journal(path)
        # by kind and decision
        self.messages: Counter[tuple[str, str]] = Counter()
        # in and out
        self.bytes: Counter[str] = Counter()
        # by kind
        self.seconds: defaultdict[str, float] = defaultdict(float)
        # by run: spent, and left if there is a ceiling
        self.epsilon: dict[str, tuple[float, float | None]] = {}
        self.last = 0
        self._mark = _Mark()

    def read(self) -> None:
        """Take in what was added since the last time."""
        for path in self.journal.segments():
            with path.open("rb") as file:
                inode = path.stat().st_ino
                if inode != self._mark.inode:
                    self._mark = _Mark(inode)
                file.seek(self._mark.offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._take_line(line)
                    self._mark = _Mark(inode, self._mark.offset + len(line))

    def _take_line(self, line: bytes) -> None:
        entry, _ = parse_line(line)
        if entry is not None and entry.number > self.last:
            self._take(entry)

    def _take(self, entry: Entry) -> None:
        body = entry.body
        self.last = entry.number
        self.bytes[entry.kind] += int(body.get("bytes", 0))
        if entry.kind != "out":
            return
        kind = str(body.get("kind", ""))
        decision = str(body.get("decision", ""))
        self.messages[kind, decision] += 1
        self.seconds[kind] += float(body.get("seconds", 0.0))
        if "epsilon" in body:
            spent = float(body["epsilon"])
            self.epsilon[str(body["run"])] = (spent, body.get("epsilon_left"))

    def collect(self) -> Iterator[Metric]:
        """Give the metrics as Prometheus asks for them."""
        self.read()
        yield _counter(
            "fedgraft_node_messages",
            "messages answered, by kind and decision",
            dict(sorted(self.messages.items())),
            labels=("kind", "decision"),
        )
        rounds = self.messages["train", "sent"]
        yield _counter("fedgraft_node_rounds", "rounds trained and sent", {(): rounds})
        refused = 0
        for (_, decision), count in self.messages.items():
            if decision == "refused":
                refused += count
        failures = "messages refused, for whatever reason"
        yield _counter("fedgraft_node_failures", failures, {(): refused})
        yield _counter(
            "fedgraft_node_seconds",
            "time spent on messages, by kind",
            {(kind,): spent for kind, spent in sorted(self.seconds.items())},
            labels=("kind",),
        )
        yield _counter(
            "fedgraft_node_bytes",
            "bytes of messages, by direction",
            {(direction,): count for direction, count in sorted(self.bytes.items())},
            labels=("direction",),
        )
        yield from self._collect_epsilon()

    def _collect_epsilon(self) -> Iterator[Metric]:
        spent: dict[tuple[str, ...], float] = {}
        left: dict[tuple[str, ...], float] = {}
        for run, (epsilon, rest) in self.epsilon.items():
            spent[run,] = epsilon
            if rest is not None:
                left[run,] = rest
        what = "ε spent in a run, at the plan's δ"
        yield _gauge("fedgraft_node_epsilon", what, spent, labels=("run",))
        what = "ε that a run may still spend here"
        yield _gauge("fedgraft_node_epsilon_left", what, left, labels=("run",))


def _counter(name: str, what: str, samples: _Samples, labels: tuple[str, ...] = ()) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, what, labels=labels)
    for values, number in samples.items():
        family.add_metric(values, number)
    return family


def _gauge(name: str, what: str, samples: _Samples, labels: tuple[str, ...]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(name, what, labels=labels)
    for values, number in samples.items():
        family.add_metric(values, number)
    return family


def serve(node: Node, condition: Condition | None = None) -> Any:
    """Serve the sums over HTTP in a thread, and the node's condition where there is one.

    Raises `UserError` where the address is taken or there is no audit log.
    """
    # a tenth of a second
    from prometheus_client import CollectorRegistry, start_http_server

    if node.audit_path is None or node.metrics is None:
        what = "metrics are added up from the audit log"
        raise UserError(what, where="metrics", remedy="write `audit: true`")
    host, port = split_address(node.metrics)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Tally(node.audit_path))  # pyright: ignore[reportArgumentType]
    if condition is not None:
        registry.register(condition)  # pyright: ignore[reportArgumentType]
    try:
        return start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        what = f"{node.metrics}: {error.strerror or error}"
        remedy = "choose a free port, such as 127.0.0.1:9464"
        raise UserError(what, where="metrics", remedy=remedy) from None
