"""Pictures of a run: how good round by round, who had what, what was sent, what was spent, what
attacks found. All are SVG.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from fedgraft.simulations.figures import COLOURS
from fedgraft.simulations.readable import show_bytes
from fedgraft.simulations.report.canvas import (
    choose_colour,
    format_tick,
    open_canvas,
    render_svg,
)

# nodes whose names are still legible beside their bars, and classes in a legend
NAMED_NODES = 40
NAMED_CLASSES = 12
# nodes with a bar or a line of their own
SINGLE_BARS = 150
# in a line of a legend, each name with its mark
LEGEND_LETTERS = 54

Curve = tuple[Sequence[float], Sequence[float]]


def draw_rounds(by_node: Mapping[str, Sequence[tuple[int, float, int]]], words: str) -> bytes:
    """Draw a metric of the shared model after each round: each node in grey, the mean over all
    their test examples in colour.

    Args:
        by_node: for each node `(rounds behind the model, value, test examples)`.
        words: what the metric is called.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = open_canvas()
    added: dict[int, float] = defaultdict(float)
    total: dict[int, int] = defaultdict(int)
    curves: list[Curve] = []
    for points in by_node.values():
        ordered = sorted(points)
        for number, value, examples in ordered:
            added[number] += value * examples
            total[number] += examples
        rounds = [point[0] for point in ordered]
        values = [point[1] for point in ordered]
        curves.append((rounds, values))
    if len(curves) <= SINGLE_BARS:
        for rounds, values in curves:
            axes.plot(rounds, values, color="0.78", linewidth=0.9)
    else:
        # one line with gaps, since a line each for ten thousand nodes takes minutes
        gap = [float("nan")]
        rounds = np.concatenate([[*each, *gap] for each, _ in curves])
        values = np.concatenate([[*each, *gap] for _, each in curves])
        axes.plot(rounds, values, color="0.78", linewidth=0.9)

    together = sorted(total)
    means = [added[number] / total[number] for number in together]
    axes.plot(together, means, color=COLOURS[0], linewidth=2.4, label="all together")
    axes.plot([], [], color="0.78", label="each hospital's own test data")
    axes.set(xlabel="rounds", ylabel=words)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="lower right")
    return render_svg(figure)


def draw_label_counts(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> bytes:
    """Draw training examples by node, stacked by class: one bar a node, from the top down."""
    nodes = len(counts)
    figure, axes = open_canvas(height=1.3 + 0.34 * min(nodes, NAMED_NODES))
    table = np.array(list(counts.values())).reshape(nodes, len(classes))
    left = np.zeros(nodes)
    for number, name in enumerate(classes):
        column = table[:, number]
        # a colour that comes again is another class
        hatch = "//" if number >= len(COLOURS) else None
        if nodes > SINGLE_BARS:
            # one outline, since a bar each for ten thousand nodes takes minutes
            axes.stairs(
                left + column,
                np.arange(nodes + 1) - 0.5,
                baseline=left,
                orientation="horizontal",
                fill=True,
                color=choose_colour(number),
                hatch=hatch,
                label=name,
            )
            left += column
            continue
        axes.barh(
            range(nodes),
            column,
            left=left,
            color=choose_colour(number),
            edgecolor="white",
            hatch=hatch,
            label=name,
        )
        left += column

    axes.set_xlabel("training examples")
    if nodes <= NAMED_NODES:
        axes.set_yticks(range(nodes), list(counts))
    else:
        axes.set_ylabel(f"{nodes} hospitals")
        axes.set_yticks([])
    axes.invert_yaxis()
    if len(classes) <= NAMED_CLASSES:
        axes.legend(
            frameon=False,
            ncols=min(_count_columns(classes), len(classes)),
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderpad=0,
        )
    return render_svg(figure)


def _count_columns(names: Sequence[str]) -> int:
    """Return how many columns of names a legend has room for."""
    longest = max(map(len, names))
    return max(1, min(4, LEGEND_LETTERS // (longest + 4)))


def draw_bytes(parts: Mapping[str, float]) -> bytes:
    """Draw bytes on a log axis, one bar each, with its size beside it; the first in colour."""
    figure, axes = open_canvas(height=0.9 + 0.42 * len(parts))
    values = list(parts.values())
    colours = [COLOURS[0]] + ["0.72"] * (len(parts) - 1)
    axes.barh(range(len(parts)), values, color=colours, height=0.6)
    axes.set_yticks(range(len(parts)), list(parts))
    axes.invert_yaxis()

    axes.set_xscale("log")
    axes.set_xlim(min(values) / 3, max(values) * 12)
    axes.xaxis.set_major_formatter(format_tick)
    for number, value in enumerate(values):
        label = show_bytes(value)
        axes.annotate(label, (value, number), (4, 0), textcoords="offset points", va="center")
    return render_svg(figure)


def draw_budget(spent: Mapping[str, float], ceiling: float | None) -> bytes:
    """Draw the ε that each node spent, under the plan's target where it has one."""
    nodes = len(spent)
    figure, axes = open_canvas(height=1.1 + 0.32 * min(nodes, NAMED_NODES))
    values = list(spent.values())
    if nodes <= SINGLE_BARS:
        axes.barh(range(nodes), values, color=COLOURS[2], height=0.65)
    else:
        edges = np.arange(nodes + 1) - 0.5
        axes.stairs(values, edges, orientation="horizontal", fill=True, color=COLOURS[2])
    if nodes <= NAMED_NODES:
        axes.set_yticks(range(nodes), list(spent))
    axes.invert_yaxis()
    axes.set_xlabel("ε spent (upper bound)")
    if ceiling is not None:
        axes.axvline(ceiling, color="0.2", linestyle="--", linewidth=1.2)
        axes.annotate(
            "the plan's ε",
            (ceiling, 1),
            (-4, 4),
            xycoords=("data", "axes fraction"),
            ha="right",
            textcoords="offset points",
        )
    return render_svg(figure)


def draw_roc_curves(curves: Mapping[str, Curve], floor: float = 1e-3) -> bytes:
    """Draw true against false positives on log axes; the diagonal is guessing.

    Args:
        curves: by name, false-positive and true-positive rates.
        floor: where both axes begin.

    Source: Carlini et al. 2022, figure 2.
    """
    longest = max(map(len, curves), default=0)
    columns = 2 if longest < 30 else 1
    figure, axes = open_canvas(height=4.1 + 0.2 * len(curves) / columns)
    axes.plot([floor, 1], [floor, 1], color="0.4", linestyle=":", linewidth=1.3, label="guessing")
    for number, (name, (fpr, tpr)) in enumerate(curves.items()):
        # once the colours are used up, they come again in another style
        style = ("-", "--", "-.")[number // len(COLOURS) % 3]
        axes.plot(
            np.maximum(fpr, floor / 10),
            np.maximum(tpr, floor / 10),
            color=choose_colour(number),
            linestyle=style,
            linewidth=1.7,
            label=name,
            drawstyle="steps-post",
        )

    axes.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1))
    axes.set_xlabel("false alarms (share of strangers called members)")
    axes.set_ylabel("hits (share of members found)")
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=columns)
    return render_svg(figure)


def draw_hiding(lines: Mapping[str, Curve], marks: Sequence[float]) -> bytes:
    """Draw how well members are told from strangers, over the number of records on a log axis.

    Args:
        lines: by name, numbers of records and areas under the ROC curve.
        marks: numbers of records that are marked.
    """
    figure, axes = open_canvas(height=3.5 + 0.12 * len(lines))
    for mark in marks:
        axes.axvline(mark, color="0.55", linestyle=":", linewidth=1.2)
    axes.axhline(0.5, color="0.4", linestyle=":", linewidth=1.3, label="guessing")
    for number, (name, (sizes, areas)) in enumerate(lines.items()):
        axes.plot(sizes, areas, color=choose_colour(number), linewidth=1.7, marker="o", label=name)
    axes.set(xscale="log", ylim=(0.35, 1.03), xlabel="records in the sums")
    axes.set_ylabel("members told from strangers (AUC)")
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    return render_svg(figure)
