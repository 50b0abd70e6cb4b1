"""Pictures of a run, as files; those of its page are in `simulations/report/pictures.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedgraft.common.files.whole_files import replacing

# Okabe and Ito 2008: told apart with any kind of colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
NAMED_NODES = 40  # beyond this, every node's name would no longer be legible


def labels_by_node(
    counts: Sequence[Sequence[int]] | np.ndarray,
    nodes: Sequence[str],
    classes: Sequence[str],
    path: Path,
) -> None:
    """How many training examples of each class every node has: one bar a node, stacked by class, as
    PNG.

    Args:
        counts: `(nodes, classes)`.
        nodes: names of the nodes.
        classes: names of the classes.
        path: where to write; all of the file or nothing.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    table = np.asarray(counts)
    many = len(nodes) > NAMED_NODES
    figure = Figure(
        figsize=(min(max(6.0, 2.5 + 0.55 * len(nodes)), 13.0), 4.2), layout="constrained"
    )
    axes = figure.add_subplot()
    colours = _colours(len(classes))
    below = np.zeros(len(nodes))
    for label, (name, colour) in enumerate(zip(classes, colours, strict=True)):
        axes.bar(
            np.arange(len(nodes)),
            table[:, label],
            width=1.0 if many else 0.8,
            bottom=below,
            color=colour,
            edgecolor="white",
            linewidth=0.0 if len(nodes) > 150 else 0.3,
            label=name,
        )
        below += table[:, label]
    axes.set_ylabel("training examples")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(-0.6, len(nodes) - 0.4)
    axes.margins(y=0.08)
    if many:
        axes.set_xlabel(f"{len(nodes)} nodes")
    else:
        slanted = max(map(len, nodes)) * len(nodes) > 80
        axes.set_xticks(
            range(len(nodes)),
            nodes,
            rotation=45 if slanted else 0,
            ha="right" if slanted else "center",
        )
        for number, total in enumerate(below.astype(int)):
            axes.annotate(
                str(total),
                (number, total),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    if len(classes) <= 20:
        handles, names = axes.get_legend_handles_labels()
        figure.legend(
            handles[::-1], names[::-1], loc="outside right upper", frameon=False, title="class"
        )
    else:
        scale = ScalarMappable(Normalize(0, len(classes) - 1), cmap="viridis")
        figure.colorbar(scale, ax=axes, label=f"class: {classes[0]} … {classes[-1]}")
    with replacing(path) as part:
        figure.savefig(part, dpi=150, format="png")


def _colours(number: int) -> list:
    if number <= len(COLOURS):
        return list(COLOURS[:number])
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 1, number)))
