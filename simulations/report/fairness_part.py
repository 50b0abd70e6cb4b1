"""The page's part on fairness: the worst site and the worst group of people, and how far they are
from the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedgraft.common.plan.evaluate_section import SubgroupsSection
from fedgraft.common.plan.plan import Plan
from fedgraft.simulations.answers import Answers, read_site_answers
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
    """Return accuracy at each site and of each group; nothing where no site told of any."""
    sites = _select_measured(dict(sorted(result["final"]["nodes"].items())))
    if not sites:
        return []
    worst, gap = describe_gap(_balance(sites, read_site_answers(result)))
    subgroups = result["final"].get("subgroups", {})
    return [
        page.heading("Does it serve every site?"),
        page.paragraph(f"Worst site: {gap}"),
        _sites_table(sites, result["baselines"], worst),
        page.heading("And every group of people?", 3),
        *_show_groups(plan, subgroups, len(sites)),
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


def describe_gap(rows: Rows) -> tuple[str, str]:
    """Return which row has the lowest accuracy, balanced over classes where that is known of all,
    and the words for how far below the highest that is.
    """
    key = "accuracy"
    if all("balanced_accuracy" in row for row in rows.values()):
        key = "balanced_accuracy"

    def accuracy_of(name: str) -> float:
        return rows[name][key]

    worst = min(rows, key=accuracy_of)
    best = max(rows, key=accuracy_of)
    if len(rows) == 1:
        return worst, f"{worst}, the only one."

    low = accuracy_of(worst)
    points = 100 * (accuracy_of(best) - low)
    words = f"{worst}, {key.replace('_', ' ')} {low:.3f}; {points:.1f} points below {best}."
    if _overlap(_accuracy(rows[worst]), _accuracy(rows[best])):
        words += OVERLAP
    return worst, words


def _overlap(lower: Interval, higher: Interval) -> bool:
    if lower.high is None or higher.low is None:
        return False
    return lower.high >= higher.low


def _accuracy(row: Measured) -> Interval:
    return estimate_share(row["accuracy"], row["examples"])


def _select_measured(rows: Rows) -> dict[str, Measured]:
    return {name: row for name, row in rows.items() if row.get("accuracy") is not None}


# ── sites ─────────────────────────────────────────────────────────────────────────────────────────
def _sites_table(sites: Rows, baselines: Mapping[str, Any], worst: str) -> str:
    alone = baselines.get("alone", {}).get("nodes", {})
    head = ["site", "test examples", "accuracy there", "AUROC there"]
    if alone:
        head.append("its own model, on everybody's tests")
    rows = []
    for name, row in sites.items():
        cells = _site_cells(name, row)
        if name in alone:
            own = alone[name]["accuracy"]
            cells.append(f"{own:.3f}")
        rows.append(cells)
    return page.table(head, rows, strong=list(sites).index(worst))


def _site_cells(name: str, row: Measured) -> list[str]:
    accuracy = show_interval(_accuracy(row), 2)
    return [name, str(row["examples"]), accuracy, show_spread([row.get("auroc")])]


# ── groups of people ──────────────────────────────────────────────────────────────────────────────
def _show_groups(plan: Plan, subgroups: Mapping[str, Rows], sites: int) -> list[str]:
    """Return each group that the plan names: measured, or why not."""
    if not plan.evaluate.subgroups:
        return [page.paragraph(NO_GROUPS, "quiet")]
    if plan.privacy.mode != "none":
        return [page.paragraph(NOT_UNDER_PRIVACY, "quiet")]

    gaps: list[str] = []
    rows: list[list[str]] = []
    missing: list[str] = []
    for column in plan.evaluate.subgroups:
        measured = _select_measured(subgroups.get(column.column, {}))
        missing += _missing_groups(column, measured)
        for name, row in measured.items():
            rows.append(_group_cells(f"{column.column}: {name}", row, sites))
        if len(measured) > 1:
            _, gap = describe_gap(measured)
            gaps.append(f"Worst by {column.column}: {gap}")

    parts = [page.bullets(gaps)]
    if rows:
        head = ["group", "test examples", "told by sites", "accuracy", "AUROC"]
        parts.append(page.table(head, rows))
    if missing:
        parts.append(page.paragraph(f"No site told of: {', '.join(missing)}.", "quiet"))
    parts.append(page.paragraph(WHO_TELLS, "quiet"))
    return parts


def _missing_groups(column: SubgroupsSection, measured: Rows) -> list[str]:
    return [f"{column.column}: {name}" for name in column.groups if name not in measured]


def _group_cells(name: str, row: Measured, sites: int) -> list[str]:
    return [
        name,
        str(row["examples"]),
        f"{row['nodes']} of {sites}",
        show_interval(_accuracy(row)),
        show_spread([row.get("auroc")]),
    ]
