"""Pictures of the page, as SVG that is the same for the same numbers."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedgraft.simulations.figures import COLOURS
from fedgraft.simulations.report.intervals import Interval
from fedgraft.simulations.results_table import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
Point = tuple[float, Interval]


def accuracy_by_round(by_node: Mapping[str, Sequence[tuple[int, float, int]]]) -> bytes:
    """The shared model's accuracy after each round: each node in grey, all their test examples
    together in colour.

    Args:
        by_node: for each node `(rounds behind the model, accuracy, test examples)`.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _canvas()
    right, all_ = Counter(), Counter()
    for points in by_node.values():
        rounds, accuracies, examples = zip(*sorted(points), strict=True)
        axes.plot(rounds, accuracies, color="0.78", linewidth=0.9)
        for round_, accuracy, count in zip(rounds, accuracies, examples, strict=True):
            right[round_] += accuracy * count
            all_[round_] += count
    together = sorted(all_)
    axes.plot(
        together,
        [right[r] / all_[r] for r in together],
        color=COLOURS[0],
        linewidth=2.4,
        label="all together",
    )
    axes.plot([], [], color="0.78", label="each hospital's own test data")
    axes.set(xlabel="rounds", ylabel="accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="lower right")
    return _svg(figure)


def labels(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> bytes:
    """Training examples by node, stacked by class: one bar a node, from the top down."""
    figure, axes = _canvas(height=1.3 + 0.34 * min(len(counts), 40))
    table, left = (
        np.array(list(counts.values())).reshape(len(counts), len(classes)),
        np.zeros(len(counts)),
    )
    for number, name in enumerate(classes):
        colour = COLOURS[number % len(COLOURS)]
        axes.barh(
            range(len(counts)),
            table[:, number],
            left=left,
            color=colour,
            edgecolor="white",
            label=name,
        )
        left += table[:, number]
    axes.set_xlabel("training examples")
    if len(counts) <= 40:
        axes.set_yticks(range(len(counts)), list(counts))
    else:
        axes.set_ylabel(f"{len(counts)} hospitals")
        axes.set_yticks([])
    axes.invert_yaxis()
    if len(classes) <= 12:
        axes.legend(
            frameon=False,
            ncols=min(4, len(classes)),
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderpad=0,
        )
    return _svg(figure)


def bytes_sent(parts: Sequence[tuple[str, float]]) -> bytes:
    """Bytes on a log axis, one bar each, with its size beside it."""
    figure, axes = _canvas(height=0.9 + 0.42 * len(parts))
    names, values = zip(*parts, strict=True)
    axes.barh(
        range(len(parts)), values, color=[COLOURS[0], *["0.72"] * (len(parts) - 1)], height=0.6
    )
    axes.set_yticks(range(len(parts)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 3, max(values) * 12)
    axes.xaxis.set_major_formatter(lambda value, _: size(value))
    for number, value in enumerate(values):
        axes.annotate(size(value), (value, number), (4, 0), textcoords="offset points", va="center")
    return _svg(figure)


def budget(spent: Mapping[str, float], ceiling: float | None) -> bytes:
    """ε that each node spent, under the plan's target where it has one."""
    figure, axes = _canvas(height=1.1 + 0.32 * min(len(spent), 40))
    axes.barh(range(len(spent)), list(spent.values()), color=COLOURS[2], height=0.65)
    if len(spent) <= 40:
        axes.set_yticks(range(len(spent)), list(spent))
    axes.invert_yaxis()
    axes.set_xlabel("ε spent (upper bound)")
    if ceiling is not None:
        axes.axvline(ceiling, color="0.2", linestyle="--", linewidth=1.2)
        axes.annotate("the plan's ε", (ceiling, 1), (-4, 4), xycoords=("data", "axes fraction"), ha="right",
                      textcoords="offset points")  # fmt: skip
    return _svg(figure)


def roc_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], floor: float = 1e-3
) -> bytes:
    """True against false positives on log axes (Carlini et al. 2022, figure 2); the diagonal is
    guessing.

    Args:
        curves: by name, false-positive and true-positive rates.
        floor: where both axes begin.
    """
    columns = 2 if max(map(len, curves), default=0) < 30 else 1
    figure, axes = _canvas(height=4.1 + 0.2 * len(curves) / columns)
    axes.plot([floor, 1], [floor, 1], color="0.4", linestyle=":", linewidth=1.3, label="guessing")
    for number, (name, (fpr, tpr)) in enumerate(curves.items()):
        x, y = np.maximum(fpr, floor / 10), np.maximum(tpr, floor / 10)
        style = ("-", "--", "-.")[number // len(COLOURS) % 3]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            x, y, color=colour, linestyle=style, linewidth=1.7, label=name, drawstyle="steps-post"
        )
    axes.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1))
    axes.set(
        xlabel="false alarms (share of strangers called members)",
        ylabel="hits (share of members found)",
    )
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=columns)
    return _svg(figure)


def utility(
    lines: Mapping[str, Sequence[Point]],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    levels: Mapping[str, Interval] | None = None,
    names: Sequence[str] = (),
) -> bytes:
    """A measure against what was changed, with intervals: a line each, and levels that do not
    depend on x.

    Args:
        lines: by name, (x, interval); with `names`, x counts them.
        levels: by name, drawn as a band across the picture.
        names: where x is no number: what each of 0, 1, … is called.
    """
    from matplotlib.ticker import NullFormatter, NullLocator

    figure, axes = _canvas(height=3.9 if not names else 1.4 + 0.42 * len(names))
    if names:
        return _dots(figure, axes, lines, y, names)
    beside = _beside(lines, log_x)
    for number, (name, points) in enumerate(lines.items()):
        points = sorted(points)
        xs, ys = [beside(p, number) for p, _ in points], [i.value for _, i in points]
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(xs, ys, yerr=_bars(i for _, i in points), color=colour, marker=MARKS[number % len(MARKS)],
                      linewidth=1.8, markersize=5, capsize=3, elinewidth=1.1, label=name or None)  # fmt: skip
    for number, (name, level) in enumerate((levels or {}).items()):
        colour = ("0.25", *COLOURS[1:])[number % len(COLOURS)]
        axes.axhline(
            level.value,
            color=colour,
            linestyle=("--", ":", "-.")[number % 3],
            linewidth=1.3,
            label=name,
        )
        if level.low is not None and level.high is not None and number == 0:
            axes.axhspan(level.low, level.high, color=colour, alpha=0.1, linewidth=0)
    axes.set(xlabel=x, ylabel=y)
    _look_at(
        axes, [i for points in lines.values() for _, i in points] + list((levels or {}).values())
    )
    if log_x:
        axes.set_xscale("log")
        if x != "bytes sent":
            ticks = sorted({p for points in lines.values() for p, _ in points})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_minor_formatter(NullFormatter())
    if x == "bytes sent":
        axes.xaxis.set_major_formatter(lambda value, _: size(value))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if any(lines) or levels:
        figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    return _svg(figure)


def _dots(
    figure: Figure, axes: Axes, lines: Mapping[str, Sequence[Point]], y: str, names: Sequence[str]
) -> bytes:
    """Cases under one another, each a dot with its interval."""
    for number, (name, points) in enumerate(lines.items()):
        shift = 0.14 * (number - (len(lines) - 1) / 2)
        axes.errorbar([i.value for _, i in points], [p + shift for p, _ in points], xerr=_bars(i for _, i in points),
                      fmt=MARKS[number % len(MARKS)], color=COLOURS[number % len(COLOURS)], capsize=3,
                      label=name or None)  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color="0.9")
    axes.set_xlabel(y)
    if any(lines):
        figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    return _svg(figure)


def _beside(lines: Mapping[str, Sequence[Point]], log_x: bool) -> Callable[[float, int], float]:
    """Where the points of line number k are drawn: beside each other where lines share an x, or
    bars hide bars.
    """
    xs = [p for points in lines.values() for p, _ in points]
    if len(set(xs)) == len(xs):
        return lambda x, _: x
    middle, span = (len(lines) - 1) / 2, max(xs) - min(xs)
    if log_x:
        step = (max(xs) / min(xs)) ** 0.012
        return lambda x, number: x * step ** (number - middle)
    return lambda x, number: x + 0.012 * span * (number - middle)


def _look_at(axes: Axes, found: Sequence[Interval]) -> None:
    """An axis from the lowest value to the highest with some room: a wide interval may leave the
    picture.
    """
    values = [each.value for each in found]
    room = max(0.6 * (max(values) - min(values)), 0.02)
    most = 1.01 if max(values) <= 1 else math.inf  # of shares
    axes.set_ylim(max(min(values) - room, 0.0), min(max(values) + room, most))


def _bars(found: Iterable[Interval]) -> Any:
    """Half-lengths of error bars, `(2, n)`; zero where there is no interval."""
    pairs = [
        (0.0, 0.0) if i.low is None or i.high is None else (i.value - i.low, i.high - i.value)
        for i in found
    ]
    return np.maximum(np.array(pairs, float).reshape(-1, 2).T, 0.0)


def _canvas(width: float = 6.0, height: float = 3.5) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> bytes:
    """The same bytes for the same picture: no date, no random ids."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "fedgraft", "svg.fonttype": "path", "font.size": 11.5}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
