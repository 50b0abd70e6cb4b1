"""Where each second of a round of ours went, from clocks that are one machine's here.

The parts add up to the round: the node's log says when Flower's SuperNode had the message and when
it had sent the answer, the audit log when our code began and ended, and the run's checkpoints when
the server had finished a round.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from fedgraft.client.node.node_file import load_node
from fedgraft.client.store.journal import Journal
from fedgraft.common import run_files
from fedgraft.simulations.deployment.local_federation import LocalFederation

LOGGED = re.compile(r"^(\S+Z)  (message|answered) .*group (\d+)$", re.MULTILINE)

# an event and the number of its round → the time, seconds
Times = dict[tuple[str, int], float]
Parts = dict[str, float]


def list_parts(
    federation: LocalFederation, node: str, out: Path, ends: Mapping[int, float]
) -> list[Parts]:
    """Return where the seconds of each round but the first went, as one node saw it.

    Args:
        out: the run's folder.
        ends: when the server had finished each round.
    """
    settings = load_node(federation.files[node])
    assert settings.audit_path is not None
    logged = _read_log(federation.log(node))
    audited = _read_audit(settings.audit_path)
    trained = _read_seconds(out / run_files.METRICS, settings.name)
    parts = []
    for number in sorted(ends):
        if number == 1:
            continue
        came = logged["message", number]
        answered = logged["answered", number]
        began = audited["in", number]
        ended = audited["out", number]
        training = trained[number]
        last = "the server's poll, the slower node, averaging, checkpoint"
        parts.append(
            {
                "until the SuperNode asks, every second": came - ends[number - 1],
                "executor, process, approved code read and checked": began - came,
                "plan, backbone, data opened; the answer packed": ended - began - training,
                "the adapter trained": training,
                "the answer sent; the SuperNode looks every 0.5 s": answered - ended,
                last: ends[number] - answered,
            }
        )
    return parts


def average_parts(parts: Sequence[Parts]) -> Parts:
    """Return the mean of each part."""
    means = {}
    for what in parts[0]:
        means[what] = statistics.mean(each[what] for each in parts)
    return means


def _read_log(log: str) -> Times:
    """Return when the SuperNode had each message, and when it had sent the answer."""
    times = {}
    for when, event, number in LOGGED.findall(log):
        times[event, int(number)] = datetime.fromisoformat(when).timestamp()
    return times


def _read_audit(path: Path) -> Times:
    """Return when our code began and ended."""
    times = {}
    for entry in Journal(path).entries():
        if entry.body["kind"] == "train" and "round" in entry.body:
            times[entry.kind, entry.body["round"]] = entry.time
    return times


def _read_seconds(path: Path, node: str) -> dict[int, float]:
    """Return the seconds of training in each round of a node."""
    seconds = {}
    for text in path.read_text().splitlines():
        line = json.loads(text)
        if line["node"] == node and "train" in line:
            seconds[line["round"]] = line["train"]["seconds"]
    return seconds
