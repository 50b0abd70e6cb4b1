"""The page's part on fairness: the worst site and the worst group of people, and how far they are
from the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedgraft.common.plan.evaluate_section import SubgroupsSection
from fedgraft.common.plan.plan import Plan
from fedgraft.common.tasks.measures import Measure, main_measures
from fedgraft.simulations.answers import Answers, question_of, read_site_answers
from fedgraft.simulations.readable import show_spread
from fedgraft.simulations.report import page
from fedgraft.simulations.report.intervals import Interval, estimate_share, show_interval

Result = Mapping[str, Any]
Measured = Mapping[str, Any]
Rows = Mapping[str, Measured]

NO_GROUPS = (
    "Not known: the plan names no column such as sex, age or scanner (evaluate.subgroups), so no"
    " site measured the model on any group of people."
)
NOT_UNDER_PRIVACY = (
    "Not known: the plan names groups, but under differential privacy no site tells of them,"
    " because ε would not cover it."
)
WHO_TELLS = (
    "A site tells of a group only if enough of its test records are in it (min_subgroup in its own"
    " file: 10 unless it says otherwise), and if what it does not tell cannot be worked out from"
    " what it tells. So a group may be measured at some sites only: two groups can differ because"
    " their sites do."
)
OVERLAP = " Their 95 % intervals overlap: it may be chance."


def show_fairness(plan: Plan, result: Result) -> list[str]:
    """Return what matters most at each site and of each group; nothing where no site told of it."""
    measures = main_measures(question_of(result))
    sites = _select_measured(dict(sorted(result["final"]["nodes"].items())), measures[0])
    if not sites:
        return []
    worst, gap = describe_gap(_balance(sites, read_site_answers(result)), measures[0])
    subgroups = result["final"].get("subgroups", {})
    return [
        page.heading("Does it serve every site?"),
        page.paragraph(f"Worst site: {gap}"),
        _sites_table(sites, result["baselines"], measures, worst),
        page.heading("And every group of people?", 3),
        *_show_groups(plan, subgroups, measures, len(sites)),
    ]


def _balance(sites: Rows, answers: Mapping[str, Answers]) -> Rows:
    """Return the sites with the balanced accuracy of each: accuracy alone would call that site the
    worst which has the most of the harder class.
    """
    balanced = {}
    for name, row in sites.items():
        balanced[name] = row
        if name in answers:
            balanced[name] = {**row, "balanced_accuracy": answers[name].balanced_accuracy}
    return balanced


def describe_gap(rows: Rows, measure: Measure) -> tuple[str, str]:
    """Return which row is worst, by accuracy balanced over classes where that is known of all, and
    the words for how far from the best that is.
    """
    key = measure.key
    if all("balanced_accuracy" in row for row in rows.values()):
        key = "balanced_accuracy"

    def value_of(name: str) -> float:
        return rows[name][key]

    lowest = min(rows, key=value_of)
    highest = max(rows, key=value_of)
    worst, best = lowest, highest
    if measure.lower:
        worst, best = highest, lowest
    if len(rows) == 1:
        return worst, f"{worst}, the only one."

    apart = value_of(highest) - value_of(lowest)
    gap = f"{100 * apart:.1f} points below {best}"
    if not measure.in_points:
        gap = f"{apart:.3f} from {best}"
    name = measure.words if key == measure.key else key.replace("_", " ")
    words = f"{worst}, {name} {value_of(worst):.3f}; {gap}."
    if _overlap(_estimate(rows[worst], measure), _estimate(rows[best], measure)):
        words += OVERLAP
    return worst, words


def _overlap(lower: Interval, higher: Interval) -> bool:
    if lower.high is None or higher.low is None:
        return False
    return lower.high >= higher.low


def _estimate(row: Measured, measure: Measure) -> Interval:
    if measure.is_share:
        return estimate_share(row[measure.key], row["examples"])
    return Interval(row[measure.key])


def _select_measured(rows: Rows, measure: Measure) -> dict[str, Measured]:
    return {name: row for name, row in rows.items() if row.get(measure.key) is not None}


# ── sites ─────────────────────────────────────────────────────────────────────────────────────────
def _sites_table(
    sites: Rows, baselines: Mapping[str, Any], measures: Sequence[Measure], worst: str
) -> str:
    alone = baselines.get("alone", {}).get("nodes", {})
    head = ["site", "test examples", *(f"{measure.words} there" for measure in measures)]
    if alone:
        head.append("its own model, on everybody's tests")
    rows = []
    for name, row in sites.items():
        cells = _site_cells(name, row, measures)
        if name in alone:
            cells.append(show_spread([alone[name][measures[0].key]]))
        rows.append(cells)
    return page.table(head, rows, strong=list(sites).index(worst))


def _site_cells(name: str, row: Measured, measures: Sequence[Measure]) -> list[str]:
    first, second = measures
    value = show_interval(_estimate(row, first), 2)
    return [name, str(row["examples"]), value, show_spread([row.get(second.key)])]


# ── groups of people ──────────────────────────────────────────────────────────────────────────────
def _show_groups(
    plan: Plan, subgroups: Mapping[str, Rows], measures: Sequence[Measure], sites: int
) -> list[str]:
    """Return each group that the plan names: measured, or why not."""
    if not plan.evaluate.subgroups:
        return [page.paragraph(NO_GROUPS, "quiet")]
    if plan.privacy.mode != "none":
        return [page.paragraph(NOT_UNDER_PRIVACY, "quiet")]

    gaps: list[str] = []
    rows: list[list[str]] = []
    missing: list[str] = []
    for column in plan.evaluate.subgroups:
        measured = _select_measured(subgroups.get(column.column, {}), measures[0])
        missing += _missing_groups(column, measured)
        for name, row in measured.items():
            rows.append(_group_cells(f"{column.column}: {name}", row, measures, sites))
        if len(measured) > 1:
            _, gap = describe_gap(measured, measures[0])
            gaps.append(f"Worst by {column.column}: {gap}")

    parts = [page.bullets(gaps)]
    if rows:
        names = [measure.words for measure in measures]
        head = ["group", "test examples", "told by sites", *names]
        parts.append(page.table(head, rows))
    if missing:
        parts.append(page.paragraph(f"No site told of: {', '.join(missing)}.", "quiet"))
    parts.append(page.paragraph(WHO_TELLS, "quiet"))
    return parts


def _missing_groups(column: SubgroupsSection, measured: Rows) -> list[str]:
    return [f"{column.column}: {name}" for name in column.groups if name not in measured]


def _group_cells(name: str, row: Measured, measures: Sequence[Measure], sites: int) -> list[str]:
    first, second = measures
    return [
        name,
        str(row["examples"]),
        f"{row['nodes']} of {sites}",
        show_interval(_estimate(row, first)),
        show_spread([row.get(second.key)]),
    ]
