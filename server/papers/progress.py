"""Progress of a run, read from its own metrics.jsonl: the same for every engine.

Nothing is shown when nobody sits at a terminal.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from fedgraft.common.plan.plan import Plan
from fedgraft.common.tasks.measures import main_measures
from fedgraft.server.papers.metric_lines import read_lines

# seconds between two looks at the file
LOOK = 0.25


class Progress:
    """Bars for one plan: a federation is followed by the rounds in its file, other work is counted.

        with Progress(plan) as progress, progress.follow("shared model", out):
            simulate(plan, path, out, nodes=nodes)

    Args:
        quiet: show nothing.
    """

    def __init__(self, plan: Plan, *, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._plan = plan
        self._bars = Bars(
            TextColumn(f"{plan.name} seed {plan.seed}  {{task.description:<16}}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )

    @property
    def shown(self) -> bool:
        """Whether there is somebody to see the bars."""
        return not self._bars.disable

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    @contextlib.contextmanager
    def count(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """Show a bar that moves by one at each call of what it yields."""
        bar = self._bars.add_task(what, total=total, unit="nodes")
        yield lambda: self._bars.advance(bar)

    @contextlib.contextmanager
    def follow(self, what: str, run: Path, rounds: int | None = None) -> Iterator[None]:
        """Show a bar that moves with the lines of a run's metrics.jsonl while the block runs.

        Args:
            rounds: of the run, where these are not the plan's.
        """
        rounds = rounds or self._plan.train.rounds
        bar = self._bars.add_task(what, total=rounds, unit="rounds")
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(LOOK):
                self._update(bar, run)

        thread = threading.Thread(target=look, daemon=True)
        if not self._bars.disable:
            thread.start()
        try:
            yield
            self._bars.update(bar, completed=rounds)
        finally:
            ended.set()
            if thread.is_alive():
                thread.join()

    def _update(self, bar: TaskID, run: Path) -> None:
        with contextlib.suppress(ValueError):
            lines = read_lines(run)
            done = max((line["round"] for line in lines), default=0)
            unit = "rounds"
            measure, _ = main_measures(self._plan.task.question)
            value = _mean(lines, done, measure.key)
            if value is not None:
                unit = f"rounds, {measure.words} {value:.3f}"
            self._bars.update(bar, completed=done, unit=unit)


def _mean(lines: Sequence[dict[str, Any]], number: int, key: str) -> float | None:
    """Return the mean of a metric over all nodes' test records in a round, where any was
    measured.
    """
    examples = 0
    total = 0.0
    for line in lines:
        measured = line.get("received")
        if line["round"] != number or not measured:
            continue
        examples += measured["examples"]
        if measured.get(key) is not None:
            total += measured[key] * measured["examples"]
    return total / examples if examples else None
