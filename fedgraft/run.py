"""A run's folder as an object to look at: data frames, a plot, the shared model."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgraft.common.errors import UserError
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.common.result import Result
from fedgraft.common.tasks.measures import measure_of
from fedgraft.predictor import Predictor
from fedgraft.server.papers.metric_lines import is_of_training

if TYPE_CHECKING:
    import pandas

    from fedgraft.plot import Plot

SHARED = "shared model"  # the row of what the federation trained
DECIMALS = 3


class Run:
    """One run, read from its folder. In a notebook it shows itself as a table.

    >>> run = fedgraft.load_run("two-rounds")
    >>> run.metrics.index.tolist()  # a row for the shared model and for each baseline
    ['shared model', 'one-round']
    >>> run.rounds.groupby("round")["train_loss"].count().tolist()  # a row a round and node
    [5, 5]
    >>> run.plot().savefig("rounds.png")
    >>> run.shared_model.classes[0], run.result.status.value
    ('five', 'completed')

    Args:
        path: the run's folder.

    Raises:
        UserError: it holds no run.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "plan.yaml").is_file():
            remedy = "give the folder of a run, such as runs/NAME-TIME"
            raise UserError("holds no run", where=str(path), remedy=remedy)

    @cached_property
    def plan(self) -> Plan:
        """The plan, every default written out."""
        return load_plan(self.path / "plan.yaml")

    @cached_property
    def result(self) -> Result:
        """What result.json says, typed. Raise `UserError` where the run has not ended."""
        file = self.path / "result.json"
        if not file.is_file():
            remedy = "wait until it ends, or go on with it: resume=True"
            raise UserError("the run has no result yet", where=str(self.path), remedy=remedy)
        return Result.from_json(json.loads(file.read_text()))

    @property
    def name(self) -> str:
        """The plan's name."""
        return self.plan.name

    @property
    def status(self) -> str:
        """How the run ended: completed, failed or interrupted; running before."""
        if not (self.path / "result.json").is_file():
            return "running"
        return str(self.result.status)

    @property
    def _measured(self) -> tuple[str, ...]:
        """What was measured, in the plan's order, and of how many records."""
        return (*self.plan.evaluate.metrics, "examples")

    @property
    def metrics(self) -> pandas.DataFrame:
        """Metrics on all nodes' test data: a row for the shared model and for each baseline."""
        import pandas

        rows = {SHARED: self.result.final.global_, **self.result.baselines}
        table: dict[str, dict[str, Any]] = {}
        for name, metrics in rows.items():
            table[name] = {key: metrics[key] for key in self._measured if key in metrics}
        return pandas.DataFrame.from_dict(table, orient="index")

    @property
    def nodes(self) -> pandas.DataFrame:
        """The shared model's metrics on each node's own test data."""
        import pandas

        return pandas.DataFrame.from_dict(self.result.final.nodes, orient="index")

    @property
    def rounds(self) -> pandas.DataFrame:
        """A row for each round and node: examples, steps, loss and seconds of its training, bytes,
        and the metrics of the shared model as the node received it.
        """
        import pandas

        rows: list[dict[str, Any]] = []
        for line in self._lines():
            if not is_of_training(line):
                continue
            row: dict[str, Any] = {"round": line["round"], "node": line["node"]}
            for group in ("train", "received", "bytes"):
                for key, value in (line.get(group) or {}).items():
                    row[f"{group}_{key}"] = value
            row["refused"] = line.get("refused")
            rows.append(row)
        return pandas.DataFrame(rows)

    def _lines(self) -> Iterator[dict[str, Any]]:
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return
        for line in file.read_text().splitlines(keepends=True):
            # a line that is being written has no end yet
            if line.endswith("\n"):
                yield json.loads(line)

    def plot(self) -> Plot:
        """Return a figure, round by round: the shared model's accuracy, or what else the plan
        measures first, and the training loss.
        """
        # matplotlib takes half a second to import
        from fedgraft.plot import Plot

        rounds = self.rounds
        figure = Plot(figsize=(9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        shown = self._shown_by_round(rounds)
        _plot_mean(left, rounds, f"received_{shown}", "received_examples")
        left.set_title(f"{measure_of(shown).words} of the shared model, all nodes")
        _plot_mean(right, rounds, "train_loss", "train_examples")
        right.set_title("loss of local training, mean over examples")
        for axes in (left, right):
            axes.set_xlabel("round")
            axes.spines[["top", "right"]].set_visible(False)
        return figure

    def _shown_by_round(self, rounds: pandas.DataFrame) -> str:
        """Return the metric that is drawn: accuracy, or the first of the plan's that is there."""
        for key in ("accuracy", *self.plan.evaluate.metrics):
            if f"received_{key}" in rounds:
                return key
        return self.plan.evaluate.metrics[0]

    @cached_property
    def shared_model(self) -> Predictor:
        """The shared model, ready to predict."""
        return Predictor.load(self.path)

    @property
    def page(self) -> Path:
        """The run's page for people, report.html."""
        return self.path / "report.html"

    def __repr__(self) -> str:
        text = f"Run({str(self.path)!r}): {self.name}, seed {self.plan.seed}, {self.status}"
        if self.status == "running":
            return text
        final = self.result.final.global_
        measured = [key for key in self._measured if final.get(key) is not None]
        shown = [f"{key} {_show(final[key])}" for key in measured]
        return f"{text}, {self.result.rounds_done} rounds\n  {', '.join(shown)}"

    def _repr_html_(self) -> str:
        title = f"<b>{html.escape(self.name)}</b>, seed {self.plan.seed}, {self.status}"
        folder = html.escape(str(self.path))
        if self.status == "running":
            return f"<p>{title}</p><p><code>{folder}</code></p>"
        table = self.metrics.to_html(float_format=lambda value: f"{value:.{DECIMALS}f}")
        return f"<p>{title}</p>{table}<p><code>{folder}</code></p>"


class Runs(Sequence[Run]):
    """The runs of several seeds: what `fedgraft.simulate("digits", seeds=3)` returns.

    >>> runs = fedgraft.Runs([fedgraft.load_run("two-rounds")])
    >>> runs.metrics[["seed", "model"]].values.tolist()  # a row for each seed and model
    [[7, 'shared model'], [7, 'one-round']]
    >>> runs.metrics.groupby("model")["accuracy"].mean().index.tolist()
    ['one-round', 'shared model']
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = list(runs)

    def __getitem__(self, index: Any) -> Any:
        return self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def metrics(self) -> pandas.DataFrame:
        """Metrics on all nodes' test data: a row for each seed and model."""
        import pandas

        tables = []
        for run in self._runs:
            table = run.metrics.rename_axis("model").reset_index()
            table.insert(0, "seed", run.plan.seed)
            tables.append(table)
        return pandas.concat(tables, ignore_index=True)

    def __repr__(self) -> str:
        return "\n".join(map(repr, self._runs))

    def _repr_html_(self) -> str:
        means: Any = self.metrics.drop(columns="seed").groupby("model", sort=False).mean()
        seeds = ", ".join(str(run.plan.seed) for run in self._runs)
        title = f"<b>{html.escape(self._runs[0].name)}</b>, mean over seeds {seeds}"
        table = means.to_html(float_format=lambda value: f"{value:.{DECIMALS}f}")
        return f"<p>{title}</p>{table}"


def _plot_mean(axes: Any, rounds: pandas.DataFrame, column: str, weight: str) -> None:
    """Draw the mean of a column over nodes, weighted by their examples, round by round."""
    if column not in rounds:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
        return
    known = rounds.dropna(subset=[column, weight])
    sums: Any = (known[column] * known[weight]).groupby(known["round"]).sum()
    weights: Any = known[weight].groupby(known["round"]).sum()
    means: Any = sums / weights
    axes.plot(means.index, means.values, marker="o", markersize=3)


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.{DECIMALS}f}"
    return f"{value:,}"
