"""Copies of a run's metrics for TensorBoard and MLflow, through their own packages; off unless
server.yaml says so.

Both see what metrics.jsonl holds and nothing else: a point for each round and node, and the mean
over the nodes weighted by their examples.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedgraft.common.errors import UserError
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import plan_hash
from fedgraft.server.site.server_file import Tracking

log = logging.getLogger("fedgraft.server")


class Sink(Protocol):
    """Where points go."""

    def point(self, name: str, value: float, round_: int) -> None:
        """One value of one series at one round."""

    def close(self) -> None:
        """Flush and close."""


class Tracker:
    """Writes each line of a run once to every sink. A sink that fails is dropped and never stops
    the run.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)
        self._written = 0

    @classmethod
    def open(cls, tracking: Tracking, plan: Plan, folder: Path) -> Tracker:
        """The sinks that are asked for. Raises `UserError` where one cannot be opened, or is not
        installed.
        """
        sinks: list[Sink] = []
        for key, value in (("tensorboard", tracking.tensorboard), ("mlflow", tracking.mlflow)):
            if value is None:
                continue
            try:
                sinks.append(
                    TensorBoard(value, folder)
                    if key == "tensorboard"
                    else MLflow(value, plan, folder)
                )
            except ImportError:
                what, remedy = (
                    "its package is not installed",
                    f"pip install 'fedgraft[{key}]', or leave it out",
                )
                raise UserError(what, where=f"tracking.{key}", remedy=remedy) from None
            except Exception as error:  # theirs are many: an address, a database, rights
                what = f"{value!r} cannot be used: {str(error).splitlines()[0][:300]}"
                raise UserError(
                    what, where=f"tracking.{key}", remedy="correct it, or leave it out"
                ) from None
        return cls(sinks)

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write what is new in these lines, the whole of metrics.jsonl so far."""
        new, self._written = lines[self._written :], max(self._written, len(lines))
        for sink in list(self._sinks):
            try:
                for name, value, round_ in points(new):
                    sink.point(name, value, round_)
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


def points(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[str, float, int]]:
    """(series, value, round) of lines of metrics.jsonl.

    `received` metrics are of the model that a node was sent, the shared model after the round
    before: they are plotted there. The last evaluation is plotted at the last round.
    """
    totals: dict[tuple[str, int], list[tuple[float, int]]] = {}
    for line in lines:
        round_, node = line["round"], line["node"]
        for key, value in (line.get("train") or {}).items():
            if isinstance(value, int | float):
                yield f"train/{key}/{node}", float(value), round_
        for key, value in (line.get("bytes") or {}).items():
            yield f"bytes/{key}/{node}", float(value), round_
        if "final" not in line:
            yield f"refused/{node}", float("refused" in line), round_
        measured, at = (
            (line["final"], round_) if "final" in line else (line.get("received"), round_ - 1)
        )
        for key, value in (measured or {}).items():
            if isinstance(value, int | float) and key != "examples":
                yield f"{key}/{node}", float(value), at
                totals.setdefault((key, at), []).append(
                    (float(value), int((measured or {})["examples"]))
                )
    for (key, at), values in totals.items():
        if weight := sum(examples for _, examples in values):
            yield f"{key}/mean", sum(value * examples for value, examples in values) / weight, at


class TensorBoard:
    """Event files in a folder, for `tensorboard --logdir`."""

    def __init__(self, boards: str, folder: Path) -> None:
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
        key = experiment.experiment_id if experiment else self._client.create_experiment("fedgraft")
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
