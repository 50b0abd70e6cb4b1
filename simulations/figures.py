"""Pictures of a run, as files; those of its page are in `simulations/report/pictures.py`.

matplotlib is imported where something is drawn: a second that other commands need not wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedgraft.common.files.whole_files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008: told apart with any kind of colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")

# beyond these, names would no longer be legible, or edges would hide the bars
NAMED_NODES = 40
EDGED_NODES = 150
NAMED_CLASSES = 20


def draw_labels_by_node(
    counts: Sequence[Sequence[int]] | np.ndarray,
    nodes: Sequence[str],
    classes: Sequence[str],
    path: Path,
) -> None:
    """Draw how many training examples of each class every node has, as PNG: one bar a node, stacked
    by class.

    Args:
        counts: `(nodes, classes)`.
        nodes: names of the nodes.
        classes: names of the classes.
        path: where to write; all of the file or nothing.
    """
    from matplotlib.figure import Figure

    width = min(max(6.0, 2.5 + 0.55 * len(nodes)), 13.0)
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    axes = figure.add_subplot()

    totals = _draw_bars(axes, np.asarray(counts), classes)
    axes.set_ylabel("training examples")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(-0.6, len(nodes) - 0.4)
    axes.margins(y=0.08)
    if len(nodes) > NAMED_NODES:
        axes.set_xlabel(f"{len(nodes)} nodes")
    else:
        _name_nodes(axes, nodes)
        _write_totals(axes, totals)
    _explain_colours(figure, axes, classes)

    show_names_as_they_are(figure)
    with replacing(path) as part:
        figure.savefig(part, dpi=150, format="png")


def show_names_as_they_are(figure: Figure) -> None:
    """Take no text of a picture for a formula: a name with two dollars in it would be set as one,
    or end the run.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_parse_math(False)


def _draw_bars(axes: Axes, table: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Draw the bars class by class; return each node's total."""
    nodes = len(table)
    width = 1.0 if nodes > NAMED_NODES else 0.8
    below = np.zeros(nodes)
    colours = _colours(len(classes))
    for label, (name, colour) in enumerate(zip(classes, colours, strict=True)):
        if nodes > EDGED_NODES:
            # one outline, since a bar each for ten thousand nodes takes minutes
            edges = np.arange(nodes + 1) - 0.5
            upper = below + table[:, label]
            axes.stairs(upper, edges, baseline=below, fill=True, color=colour, label=name)
            below = upper
            continue
        axes.bar(
            np.arange(nodes),
            table[:, label],
            width=width,
            bottom=below,
            color=colour,
            edgecolor="white",
            linewidth=0.3,
            label=name,
        )
        below += table[:, label]
    return below


def _name_nodes(axes: Axes, nodes: Sequence[str]) -> None:
    longest = max(map(len, nodes))
    if longest * len(nodes) > 80:
        axes.set_xticks(range(len(nodes)), nodes, rotation=45, ha="right")
    else:
        axes.set_xticks(range(len(nodes)), nodes, rotation=0, ha="center")


def _write_totals(axes: Axes, totals: np.ndarray) -> None:
    for number, total in enumerate(totals.astype(int)):
        axes.annotate(
            str(total),
            (number, total),
            (0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )


def _explain_colours(figure: Figure, axes: Axes, classes: Sequence[str]) -> None:
    """Add a legend, or a scale where the classes are many."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if len(classes) > NAMED_CLASSES:
        scale = ScalarMappable(Normalize(0, len(classes) - 1), cmap="viridis")
        figure.colorbar(scale, ax=axes, label=f"class: {classes[0]} … {classes[-1]}")
        return

    handles, names = axes.get_legend_handles_labels()
    handles.reverse()
    names.reverse()
    figure.legend(handles, names, loc="outside right upper", frameon=False, title="class")


def _colours(count: int) -> list:
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 1, count)))
