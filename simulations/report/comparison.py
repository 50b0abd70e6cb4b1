"""Plans beside each other, in words: differences seed by seed, and no ranking where they may be
chance.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedgraft.simulations.report.intervals import Interval, of_mean
from fedgraft.simulations.report.page import listed
from fedgraft.simulations.report.study_groups import Group
from fedgraft.simulations.study.study_file import Study

NAMED = 6  # plans that are named in a sentence; more are counted


def apart(group: Group, other: Group, column: str) -> Interval | None:
    """The first less the second, mean over the seeds that both have, with Student's t; None where
    there are none.

    Seed by seed, for a seed deals the same data to both: what it brings cancels out.
    """
    theirs = {row["seed"]: row[column] for row in other.rows if row.get(column) is not None}
    pairs = [
        row[column] - theirs[row["seed"]]
        for row in group.rows
        if row.get(column) is not None and row["seed"] in theirs
    ]
    return of_mean(pairs) if pairs else None


def highest(groups: Sequence[Group], column: str) -> tuple[Group, list[Group], list[Group]] | None:
    """The plan with the highest mean; those that are below it seed by seed; those that cannot be
    told from it.
    """
    known = [
        (found.value, group) for group in groups if (found := group.over_seeds(column)) is not None
    ]
    if not known:
        return None
    best = max(known, key=lambda pair: pair[0])[1]
    below, alike = [], []
    for _, group in known:
        if group is not best:
            less = apart(group, best, column)
            (
                below if less is not None and less.high is not None and less.high < 0 else alike
            ).append(group)
    return best, below, alike


def standing(groups: Sequence[Group], column: str, words: str) -> str:
    """A sentence about the highest mean that claims no more than the seeds show."""
    found = highest(groups, column)
    if found is None:
        return ""
    best, below, alike = found
    value = best.over_seeds(column)
    assert value is not None  # it is the highest
    said = f"Highest mean {words}: {best.name}, {value.value:.3f}."
    if len(best.rows) < 2:
        return f"{said} Of one seed: what another would show is not known."
    if below:
        said += f" Seed by seed, each with 95 % confidence, {_named(below)} {_is(below)} below it."
    if alike:
        said += f" {_named(alike, first=True)} cannot be told from it with {len(best.rows)} seeds."
    return said


def change(first: Group, last: Group, columns: Sequence[tuple[str, str]], prefix: str = "") -> str:
    """From one plan to another in points, with intervals; `columns` are names and what they are
    called.
    """
    steps = []
    for column, words in columns:
        gain = apart(last, first, column)
        if gain is not None:
            between = ""
            if gain.low is not None and gain.high is not None:
                between = f" ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
            steps.append(f"{100 * gain.value:+.1f} points of {words}{between}")
    return f"{prefix}From {first.name} to {last.name}: {listed(steps)}." if steps else ""


def beside_first(study: Study, groups: Sequence[Group], column: str) -> list[tuple[str, Interval]]:
    """Where cases were run over a grid: each case less the first one at the same place of the grid,
    seed by seed.
    """
    if len(study.cases) < 2 or not study.grid:
        return []
    first, found = next(iter(study.cases)), []
    places = {
        tuple(group.rows[0][key] for key in study.grid): group
        for group in groups
        if _case(group) == first
    }
    for group in groups:
        partner = places.get(tuple(group.rows[0][key] for key in study.grid))
        if _case(group) != first and partner is not None:
            gain = apart(group, partner, column)
            if gain is not None:
                found.append((group.name, gain))
    return found


def in_points(gain: Interval) -> str:
    """`+4.7 (-4.5 to +13.8), may be chance`, of a difference of shares."""
    if gain.low is None or gain.high is None:
        return f"{100 * gain.value:+.1f}, of one seed"
    verdict = "better" if gain.low > 0 else "worse" if gain.high < 0 else "may be chance"
    return f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}), {verdict}"


def _case(group: Group) -> str:
    return group.rows[0].get("case", "")


def _named(groups: Sequence[Group], *, first: bool = False) -> str:
    if len(groups) <= NAMED:
        names = [group.name for group in groups]
        return "; ".join(names) if any("," in name for name in names) else listed(names)
    return f"{'The other' if first else 'of the others'} {len(groups)}"


def _is(groups: Sequence[Group]) -> str:
    return "is" if len(groups) == 1 else "are"
