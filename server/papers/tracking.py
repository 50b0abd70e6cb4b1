"""Copies of a run's metrics for TensorBoard and MLflow, through their own packages.

Off unless server.yaml says so. Both see what metrics.jsonl holds and nothing else: a point for each
round and node, and the mean over the nodes weighted by their examples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fedgraft.common.errors import UserError
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import plan_hash
from fedgraft.server.papers.metric_lines import is_of_training
from fedgraft.server.site.server_file import Tracking

log = logging.getLogger("fedgraft.server")

Line = Mapping[str, Any]


class Sink(Protocol):
    """Where points go."""

    def point(self, name: str, value: float, round_: int) -> None:
        """Take one value of one series at one round."""

    def close(self) -> None:
        """Flush and close."""


class Tracker:
    """Writes each line of a run once to every sink; one that fails is dropped, the run goes on.

        tracker = Tracker.open(server.tracking, plan, folder)
        tracker.write(read_lines(folder))
        tracker.close()

    Args:
        sinks: where the points go.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)
        self._written = 0

    @classmethod
    def open(cls, tracking: Tracking, plan: Plan, folder: Path) -> Tracker:
        """Open the sinks that are asked for.

        Raises:
            UserError: one cannot be opened, or is not installed.
        """
        sinks: list[Sink] = []
        for name, make in SINKS.items():
            address = getattr(tracking, name)
            if address is not None:
                sinks.append(_opened(name, make, address, plan, folder))
        return cls(sinks)

    def write(self, lines: Sequence[Line]) -> None:
        """Write what is new in these lines, the whole of metrics.jsonl so far."""
        new = list(points(lines[self._written :]))
        self._written = max(self._written, len(lines))
        for sink in list(self._sinks):
            try:
                for point in new:
                    sink.point(point.series, point.value, point.round)
            except Exception as error:
                log.warning("%s is dropped: %s", type(sink).__name__, error)
                self._sinks.remove(sink)

    def close(self) -> None:
        """Close the sinks."""
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:
                log.warning("%s: %s", type(sink).__name__, error)


def _opened(
    name: str, make: Callable[[str, Plan, Path], Sink], address: str, plan: Plan, folder: Path
) -> Sink:
    where = f"tracking.{name}"
    try:
        return make(address, plan, folder)
    except ImportError:
        remedy = f"pip install 'fedgraft[{name}]', or leave it out"
        raise UserError("its package is not installed", where=where, remedy=remedy) from None
    except Exception as error:
        # theirs are many: an address, a database, rights
        first = str(error).splitlines()[0][:300]
        what = f"{address!r} cannot be used: {first}"
        raise UserError(what, where=where, remedy="correct it, or leave it out") from None


# ── points ────────────────────────────────────────────────────────────────────────────────────────
class Point(NamedTuple):
    """One value of one series."""

    series: str
    value: float
    round: int


def points(lines: Sequence[Line]) -> Iterator[Point]:
    """Yield the points of lines of metrics.jsonl.

    `received` metrics are of the model that a node was sent, the shared model after the round
    before: they are plotted there. The last evaluation is plotted at the round that is kept, and
    what was measured on validation records under names of its own.
    """
    measured: dict[tuple[str, int], list[tuple[float, int]]] = {}
    for line in lines:
        yield from _costs(line)
        metrics = line.get("received") or {}
        number = line["round"] - 1
        on = ""
        if "final" in line:
            metrics = line["final"] or {}
            number = line["round"]
        elif "validation" in line:
            metrics = line["validation"]
            number = line["round"]
            on = "validation/"
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "examples":
                key = f"{on}{name}"
                yield Point(f"{key}/{line['node']}", float(value), number)
                pairs = measured.setdefault((key, number), [])
                pairs.append((float(value), int(metrics["examples"])))
    for (key, number), pairs in measured.items():
        weight = sum(examples for _, examples in pairs)
        if weight:
            total = sum(value * examples for value, examples in pairs)
            yield Point(f"{key}/mean", total / weight, number)


def _costs(line: Line) -> Iterator[Point]:
    """Yield what a round took at one node."""
    number = line["round"]
    node = line["node"]
    for key, value in (line.get("train") or {}).items():
        if isinstance(value, int | float):
            yield Point(f"train/{key}/{node}", float(value), number)
    for key, value in (line.get("bytes") or {}).items():
        yield Point(f"bytes/{key}/{node}", float(value), number)
    if is_of_training(line):
        yield Point(f"refused/{node}", float("refused" in line), number)


# ── sinks ─────────────────────────────────────────────────────────────────────────────────────────
class TensorBoard:
    """Event files in a folder, for `tensorboard --logdir`."""

    def __init__(self, boards: str, plan: Plan, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(Path(boards) / folder.name))

    def point(self, name: str, value: float, round_: int) -> None:
        """See `Sink`."""
        self._writer.add_scalar(name, value, round_)

    def close(self) -> None:
        """See `Sink`."""
        self._writer.close()


class MLflow:
    """A run in the experiment `fedgraft`, with the plan's keys as parameters."""

    def __init__(self, uri: str, plan: Plan, folder: Path) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name("fedgraft")
        if experiment is None:
            key = self._client.create_experiment("fedgraft")
        else:
            key = experiment.experiment_id
        self._run = self._client.create_run(key, run_name=folder.name).info.run_id
        about = {
            "plan": plan.name,
            "plan_hash": plan_hash(plan),
            "adapter": plan.adapter.method,
            "seed": plan.seed,
        }
        for name, value in about.items():
            self._client.log_param(self._run, name, value)

    def point(self, name: str, value: float, round_: int) -> None:
        """See `Sink`."""
        self._client.log_metric(self._run, name, value, step=round_)

    def close(self) -> None:
        """See `Sink`."""
        self._client.set_terminated(self._run)


# by the key of server.yaml's `tracking` that holds the address
SINKS: Mapping[str, Callable[[str, Plan, Path], Sink]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
}
