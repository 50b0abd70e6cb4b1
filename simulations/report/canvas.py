"""What every picture of a page is drawn on: an empty canvas, colours, and SVG that is the same for
the same numbers.

    figure, axes = open_canvas(height=2.0)
    axes.plot([1, 2], [3, 4], color=choose_colour(0))
    svg = render_svg(figure)

matplotlib is imported where something is drawn: a second that other commands need not wait for.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from fedgraft.simulations.figures import COLOURS, show_names_as_they_are
from fedgraft.simulations.readable import show_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def open_canvas(width: float = 6.0, height: float = 3.5) -> tuple[Figure, Axes]:
    """Return an empty figure of this size in inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def render_svg(figure: Figure) -> bytes:
    """Return the same bytes for the same picture: no date, no random ids."""
    from matplotlib import rc_context

    show_names_as_they_are(figure)
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "fedgraft", "svg.fonttype": "path", "font.size": 11.5}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def choose_colour(number: int) -> str:
    """Return the colour of line number 0, 1, …; they come again once they are used up."""
    return COLOURS[number % len(COLOURS)]


def format_tick(value: float, _: float) -> str:
    """Return bytes as matplotlib asks for the words at a tick."""
    return show_bytes(value)
