"""Pictures of a study: a measure against what was changed, or cases under one another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedgraft.simulations.figures import COLOURS
from fedgraft.simulations.report.canvas import (
    choose_colour,
    format_tick,
    open_canvas,
    render_svg,
)
from fedgraft.simulations.report.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINE: dict[str, Any] = {"linewidth": 1.8, "markersize": 5, "capsize": 3, "elinewidth": 1.1}
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9, "loc": "outside lower center"}

Point = tuple[float, Interval]
Lines = Mapping[str, Sequence[Point]]


@dataclass(frozen=True)
class Axis:
    """What lies along the horizontal axis: `Axis("ε (upper bound)", log=True)`."""

    label: str
    log: bool = False
    in_bytes: bool = False


def draw_lines(lines: Lines, along: Axis, measure: str, levels: Mapping[str, Interval]) -> bytes:
    """Draw a measure against what was changed, with intervals: a line each, and levels that do not
    depend on it.

    Args:
        lines: by name, (x, interval).
        along: the axis of x.
        measure: what the other axis is called.
        levels: by name, drawn across the picture; the first with its interval as a band.
    """
    figure, axes = open_canvas(height=3.9)
    shift = _shift_of(lines, along.log)
    for number, (name, points) in enumerate(lines.items()):
        xs = []
        intervals = []
        for x, interval in sorted(points):
            xs.append(shift(x, number))
            intervals.append(interval)
        axes.errorbar(
            xs,
            _values(intervals),
            yerr=_error_bars(intervals),
            color=choose_colour(number),
            marker=MARKS[number % len(MARKS)],
            label=name or None,
            **LINE,
        )
    _draw_levels(axes, levels)

    axes.set(xlabel=along.label, ylabel=measure)
    _set_limits(axes, [*_intervals_of(lines), *levels.values()])
    _mark_axis(axes, along, lines)
    if any(lines) or levels:
        figure.legend(ncols=2, **LEGEND)
    return render_svg(figure)


def draw_cases(lines: Lines, measure: str, names: Sequence[str]) -> bytes:
    """Draw cases under one another, each a dot with its interval.

    Args:
        lines: by name, (number of a case, interval).
        measure: what the axis is called.
        names: what each of 0, 1, … is called.
    """
    figure, axes = open_canvas(height=1.4 + 0.42 * len(names))
    middle = (len(lines) - 1) / 2
    for number, (name, points) in enumerate(lines.items()):
        shift = 0.14 * (number - middle)
        heights = [position + shift for position, _ in points]
        intervals = [interval for _, interval in points]
        axes.errorbar(
            _values(intervals),
            heights,
            xerr=_error_bars(intervals),
            fmt=MARKS[number % len(MARKS)],
            color=choose_colour(number),
            label=name or None,
            capsize=3,
        )

    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color="0.9")
    axes.set_xlabel(measure)
    if any(lines):
        figure.legend(ncols=3, **LEGEND)
    return render_svg(figure)


def _draw_levels(axes: Axes, levels: Mapping[str, Interval]) -> None:
    greys_first = ("0.25", *COLOURS[1:])
    for number, (name, level) in enumerate(levels.items()):
        colour = greys_first[number % len(COLOURS)]
        style = ("--", ":", "-.")[number % 3]
        axes.axhline(level.value, color=colour, linestyle=style, linewidth=1.3, label=name)
        if number == 0 and level.bounds is not None:
            low, high = level.bounds
            axes.axhspan(low, high, color=colour, alpha=0.1, linewidth=0)


def _mark_axis(axes: Axes, along: Axis, lines: Lines) -> None:
    """Put a tick at each value of a log axis; write bytes as people read them."""
    from matplotlib.ticker import NullFormatter, NullLocator

    if along.log:
        axes.set_xscale("log")
    if along.log and not along.in_bytes:
        ticks = sorted(set(_positions_of(lines)))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    if along.in_bytes:
        axes.xaxis.set_major_formatter(format_tick)
        axes.xaxis.set_minor_formatter(NullFormatter())


def _shift_of(lines: Lines, log: bool) -> Callable[[float, int], float]:
    """Return where the points of line number k are drawn: beside each other where lines share an x,
    or bars hide bars.
    """
    positions = list(_positions_of(lines))
    if len(set(positions)) == len(positions):
        return lambda x, number: x

    low = min(positions)
    high = max(positions)
    middle = (len(lines) - 1) / 2
    if log:
        step = (high / low) ** 0.012
        return lambda x, number: x * step ** (number - middle)
    span = high - low
    return lambda x, number: x + 0.012 * span * (number - middle)


def _positions_of(lines: Lines) -> Iterator[float]:
    for points in lines.values():
        for x, _ in points:
            yield x


def _intervals_of(lines: Lines) -> Iterator[Interval]:
    for points in lines.values():
        for _, interval in points:
            yield interval


def _values(intervals: Iterable[Interval]) -> list[float]:
    return [interval.value for interval in intervals]


def _set_limits(axes: Axes, intervals: Sequence[Interval]) -> None:
    """Let an axis run from the lowest value to the highest with some room: a wide interval may
    leave the picture.
    """
    values = _values(intervals)
    low = min(values)
    high = max(values)
    room = max(0.6 * (high - low), 0.02)
    # shares stay below 1
    most = 1.01 if high <= 1 else math.inf
    axes.set_ylim(max(low - room, 0.0), min(high + room, most))


def _error_bars(intervals: Sequence[Interval]) -> np.ndarray:
    """Return half-lengths of error bars, `(2, n)`; zero where there is no interval."""
    lengths = np.zeros((2, len(intervals)))
    for number, interval in enumerate(intervals):
        if interval.bounds is not None:
            low, high = interval.bounds
            lengths[:, number] = interval.value - low, high - interval.value
    return np.maximum(lengths, 0.0)
