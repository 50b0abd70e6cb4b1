"""Plans beside each other, in words: differences seed by seed, and no ranking where they may be
chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedgraft.simulations.report.intervals import Interval, estimate_mean
from fedgraft.simulations.report.page import listed
from fedgraft.simulations.study.study_file import Study
from fedgraft.simulations.study.study_groups import Group, Row

# in front of a metric: on validation records
VALIDATION = "validation"
# plans that are named in a sentence; more are counted
MOST_NAMES = 6


@dataclass
class Ranking:
    """The plan with the highest mean; those that are below it seed by seed; those that cannot be
    told from it.

    Attributes:
        column: whose mean it is: on validation records, or on test records, by which no plan is
            chosen.
    """

    best: Group
    mean: Interval
    column: str
    below: list[Group] = field(default_factory=list)
    alike: list[Group] = field(default_factory=list)


# ── differences ───────────────────────────────────────────────────────────────────────────────────
def subtract(group: Group, other: Group, column: str) -> Interval | None:
    """Return the first less the second, mean over the seeds that both have, with Student's t; None
    where there are none.

    Seed by seed, for a seed deals the same data to both: what it brings cancels out.
    """
    theirs = _by_seed(other, column)
    differences = []
    for seed, value in _by_seed(group, column).items():
        if seed in theirs:
            differences.append(value - theirs[seed])
    if not differences:
        return None
    return estimate_mean(differences)


def _by_seed(group: Group, column: str) -> dict[int, float]:
    return {row["seed"]: row[column] for row in group.rows if row.get(column) is not None}


def list_gains_over_first(
    study: Study, groups: Sequence[Group], column: str
) -> list[tuple[str, Interval]]:
    """Return, where cases were run over a grid, each case less the first one at the same values of
    the grid, seed by seed.
    """
    if len(study.cases) < 2 or not study.grid:
        return []

    first = next(iter(study.cases))
    partners: dict[tuple[Any, ...], Group] = {}
    others = []
    for group in groups:
        if _case_of(group) == first:
            partners[_grid_values(study, group.rows[0])] = group
        else:
            others.append(group)

    gains = []
    for group in others:
        partner = partners.get(_grid_values(study, group.rows[0]))
        gain = subtract(group, partner, column) if partner else None
        if gain is not None:
            gains.append((group.name, gain))
    return gains


def _case_of(group: Group) -> str:
    return group.rows[0].get("case", "")


def _grid_values(study: Study, row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in study.grid)


def rank_groups(groups: Sequence[Group], metric: str) -> Ranking | None:
    """Return the plan with the highest mean and where the others stand; None where no plan has
    one. By validation records, where every cell was measured on them.
    """
    column = _choose_column(groups, metric)
    known = []
    for group in groups:
        mean = group.estimate(column)
        if mean is not None:
            known.append((mean, group))
    if not known:
        return None

    highest, best = max(known, key=lambda pair: pair[0].value)
    ranking = Ranking(best, highest, column)
    for _, group in known:
        if group is best:
            continue
        difference = subtract(group, best, column)
        if difference is not None and difference.bounds is not None and difference.bounds[1] < 0:
            ranking.below.append(group)
        else:
            ranking.alike.append(group)
    return ranking


def _choose_column(groups: Sequence[Group], metric: str) -> str:
    column = f"{VALIDATION}.{metric}"
    for group in groups:
        if len(group.values(column)) < len(group.rows):
            return metric
    return column


# ── in words ──────────────────────────────────────────────────────────────────────────────────────
def describe_ranking(groups: Sequence[Group], metric: str, word: str) -> str:
    """Return sentences about the highest mean that claim no more than the seeds show: which plan
    is chosen by validation records, or that none is.

    Args:
        word: what the metric is called.
    """
    ranking = rank_groups(groups, metric)
    if ranking is None:
        return ""
    seeds = len(ranking.best.rows)
    sentences = [_describe_best(ranking, metric, word)]
    if seeds < 2:
        sentences.append("Of one seed: what another would show is not known.")
        return " ".join(sentences)

    if ranking.below:
        names = _join_names(ranking.below, "of the others")
        verb = "is" if len(ranking.below) == 1 else "are"
        sentences.append(f"Seed by seed, each with 95 % confidence, {names} {verb} below it.")
    if ranking.alike:
        names = _join_names(ranking.alike, "The other")
        sentences.append(f"{names} cannot be told from it with {seeds} seeds.")
    return " ".join(sentences)


def _describe_best(ranking: Ranking, metric: str, word: str) -> str:
    name = ranking.best.name
    value = f"{ranking.mean.value:.3f}"
    if ranking.column == metric:
        return f"Highest mean {word} on test records, by which no plan is chosen: {name}, {value}."
    sentence = f"Highest mean {word} on validation records: {name}, {value}"
    tests = ranking.best.estimate(metric)
    if tests is None:
        return f"{sentence}."
    return f"{sentence}; chosen by that, it has {tests.value:.3f} on test records."


def describe_change(first: Group, last: Group, columns: Mapping[str, str]) -> str:
    """Return how much changes from one plan to another in points, with intervals.

    Args:
        columns: the columns to compare, and what they are called.
    """
    steps = []
    for column, word in columns.items():
        gain = subtract(last, first, column)
        if gain is not None:
            steps.append(f"{100 * gain.value:+.1f} points of {word}{_show_bounds(gain)}")
    if not steps:
        return ""
    return f"From {first.name} to {last.name}: {listed(steps)}."


def show_gain(gain: Interval) -> str:
    """Return `+4.7 (-4.5 to +13.8), may be chance`, of a difference of shares."""
    points = f"{100 * gain.value:+.1f}"
    if gain.bounds is None:
        return f"{points}, of one seed"
    return f"{points}{_show_bounds(gain)}, {_judge(gain.bounds)}"


def _judge(bounds: tuple[float, float]) -> str:
    low, high = bounds
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "may be chance"


def _show_bounds(gain: Interval) -> str:
    if gain.bounds is None:
        return ""
    low, high = gain.bounds
    return f" ({100 * low:+.1f} to {100 * high:+.1f})"


def _join_names(groups: Sequence[Group], many: str) -> str:
    """Return the plans' names, or how many they are after the words for many."""
    if len(groups) > MOST_NAMES:
        return f"{many} {len(groups)}"
    names = [group.name for group in groups]
    if any("," in name for name in names):
        return "; ".join(names)
    return listed(names)
