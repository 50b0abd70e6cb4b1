"""Progress of a run, read from its own metrics.jsonl: the same for every engine; nothing when not a
terminal.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from fedgraft.common.plan.plan import Plan


class Progress:
    """Bars for one plan: a federation is followed by the rounds in its file, other work is
    counted.
    """

    def __init__(self, plan: Plan, nodes: int, *, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._plan, self._nodes = plan, nodes
        self._bars = Bars(
            TextColumn(f"{plan.name} seed {plan.seed}  {{task.description:<16}}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
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
        """A bar that moves by one at each call of what it yields."""
        bar = self._bars.add_task(what, total=total, said="nodes")
        yield lambda: self._bars.advance(bar)

    @contextlib.contextmanager
    def follow(self, what: str, run: Path) -> Iterator[None]:
        """A bar that moves with the lines of a run's metrics.jsonl while the block runs."""
        bar = self._bars.add_task(what, total=self._plan.train.rounds, said="rounds")
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(0.25):
                self._update(bar, run)

        thread = threading.Thread(target=look, daemon=True)
        if not self._bars.disable:
            thread.start()
        try:
            yield
            self._bars.update(bar, completed=self._plan.train.rounds)
        finally:
            ended.set()
            if thread.is_alive():
                thread.join()

    def _update(self, bar: Any, run: Path) -> None:
        with contextlib.suppress(OSError, ValueError):
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            done = max((line["round"] for line in lines), default=0)
            last = [
                line["received"] for line in lines if line["round"] == done and line.get("received")
            ]
            said = "rounds"
            if examples := sum(row["examples"] for row in last):
                accuracy = sum(
                    row["accuracy"] * row["examples"] for row in last if row["accuracy"] is not None
                )
                said = f"rounds, accuracy {accuracy / examples:.3f}"
            self._bars.update(bar, completed=done, said=said)
