"""The page's part on fairness: the worst site and the worst group of people, and how far they are
from the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedgraft.common.plan.plan import Plan
from fedgraft.simulations.report import page
from fedgraft.simulations.report.intervals import of_share, said
from fedgraft.simulations.results_table import spread

Result = Mapping[str, Any]
Rows = Mapping[str, Mapping[str, Any]]


def section(plan: Plan, result: Result) -> list[str]:
    """Accuracy at each site and of each group; nothing where no site told of any."""
    nodes = {
        name: row
        for name, row in sorted(result["final"]["nodes"].items())
        if row.get("accuracy") is not None
    }
    if not nodes:
        return []
    alone = result["baselines"].get("alone", {}).get("nodes", {})
    worst, said_of_gap = gap_in_words(nodes)
    rows = [
        [
            name,
            str(row["examples"]),
            said(of_share(row["accuracy"], row["examples"]), 2),
            "–" if row.get("auroc") is None else f"{row['auroc']:.3f}",
            *([f"{alone[name]['accuracy']:.3f}"] if name in alone else []),
        ]
        for name, row in nodes.items()
    ]
    head = ["site", "test examples", "accuracy there", "AUROC there"]
    return [
        page.heading("Does it serve every site?"),
        page.paragraph(f"Worst site: {said_of_gap}"),
        page.table(
            [*head, *(["its own model, on everybody's tests"] if alone else [])],
            rows,
            strong=list(nodes).index(worst),
        ),
        page.heading("And every group of people?", 3),
        *_groups(plan, result["final"].get("subgroups", {}), len(nodes)),
    ]


def gap_in_words(rows: Rows) -> tuple[str, str]:
    """Which has the lowest accuracy, and the words for how far below the highest that is."""
    worst, best = (choose(rows, key=lambda name: rows[name]["accuracy"]) for choose in (min, max))
    gap = rows[best]["accuracy"] - rows[worst]["accuracy"]
    said = f"{worst}, accuracy {rows[worst]['accuracy']:.3f}; {100 * gap:.1f} points below {best}."
    highest, lowest = (
        of_share(rows[name]["accuracy"], rows[name]["examples"]) for name in (worst, best)
    )
    if (
        highest.high is not None
        and lowest.low is not None
        and highest.high >= lowest.low
        and len(rows) > 1
    ):
        said += " Their 95 % intervals overlap: it may be chance."
    return worst, said if len(rows) > 1 else f"{worst}, the only one."


def _groups(plan: Plan, told: Mapping[str, Rows], sites: int) -> list[str]:
    """Each group that the plan names: measured, or why not."""
    if not plan.evaluate.subgroups:
        return [
            page.paragraph(
                "Not known: the plan names no column such as sex, age or scanner"
                " (evaluate.subgroups), so no site measured the model on any group of people.",
                "quiet",
            )
        ]
    if plan.privacy.mode != "none":
        return [
            page.paragraph(
                "Not known: the plan names groups, but under differential privacy no site tells of"
                " them, because ε would not cover it.",
                "quiet",
            )
        ]
    parts, rows, untold = [], [], []
    for column in plan.evaluate.subgroups:
        known = {
            name: row
            for name, row in told.get(column.column, {}).items()
            if row.get("accuracy") is not None
        }
        untold += [f"{column.column}: {name}" for name in column.groups if name not in known]
        rows += [
            [
                f"{column.column}: {name}",
                str(row["examples"]),
                f"{row['nodes']} of {sites}",
                said(of_share(row["accuracy"], row["examples"])),
                spread([row.get("auroc")]),
            ]
            for name, row in known.items()
        ]
        if len(known) > 1:
            parts.append(f"Worst by {column.column}: {gap_in_words(known)[1]}")
    why = (
        "A site tells of a group only if enough of its test records are in it (min_subgroup in its"
        " own file: 10 unless it says otherwise), and if what it does not tell cannot be worked out"
        " from what it tells. So a group may be measured at some sites only: two groups can differ"
        " because their sites do."
    )
    head = ["group", "test examples", "told by sites", "accuracy", "AUROC"]
    return [
        page.bullets(parts),
        page.table(head, rows) if rows else "",
        page.paragraph(f"No site told of: {', '.join(untold)}.", "quiet") if untold else "",
        page.paragraph(why, "quiet"),
    ]
