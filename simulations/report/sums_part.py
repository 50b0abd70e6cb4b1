"""The page's part on sums over records: how few records are too few to hide in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedgraft.simulations.report import page
from fedgraft.simulations.report.attack_results import (
    ByPlan,
    Measured,
    PlanRow,
    join_title,
    list_attacks,
    table_by_plan,
)
from fedgraft.simulations.report.pictures import draw_hiding

METHOD = (
    "What an attacker reads from one hospital's sums who sees nothing else: of ever more records,"
    " drawn from all. Exact: the records' features come back to the last bit from their products"
    " alone, found by lattice reduction (tried up to 32 records; stronger reductions go further)."
    " Members: with a person's record at hand, whether it is among those summed, in pairs (AUC;"
    " guessing: 0.5) and at 1 % false alarms. Class mean: how far a record's features are from the"
    " mean of its class, as the sums give it, and as public records give it (0: the record itself)."
)
CAPTION = (
    "Members told from strangers, by the number of records in the sums (log axis). At the first"
    " dotted line there are as many records as features, at the second twice as many."
)
KNOWN = (
    "Sums of two times differ by what changed in between: where one record came or went, the"
    " difference of two sums without noise is that record, whatever the number of the others."
)
HEAD = ("records", "in words", "exact", "members, AUC", "hits at 1 %", "class mean", "public mean")
TOLD = "every record comes back"
CERTAIN = "certain who is in"
NEARLY_CERTAIN = "nearly certain who is in"
BETTER = "better than guessing"
NO_LEAK = "not told from guessing"
# longer tables are folded up
MOST_ROWS = 12
# of the members, or of the area
NEARLY_ALL = 0.95

Found = Mapping[str, Any]


def show_sums(results: ByPlan) -> str:
    """Return what sums of few records give away; nothing where it was not tried."""
    plans: list[tuple[str, Measured]] = []
    for plan, _, measured in list_attacks(results):
        if measured.get("kind") == "reconstruction":
            plans.append((plan, measured))
    if not plans:
        return ""
    rows: list[PlanRow] = []
    for plan, measured in plans:
        for size, found in measured["by_size"].items():
            rows.append((plan, _size_cells(size, found)))
    table = table_by_plan(HEAD, rows, texts=[1])
    if len(rows) > MOST_ROWS:
        table = page.details(f"Every number of records ({len(rows)} rows)", table)
    lines = [_describe_nodes(plan, measured) for plan, measured in plans]
    return "".join(
        [
            page.heading("How few records do sums hide?", 3),
            page.paragraph(METHOD),
            page.bullets([*lines, KNOWN]),
            page.figure(_draw(plans), CAPTION),
            table,
        ]
    )


def judge_size(found: Found) -> str:
    """Return what was found in sums of so many records, in words."""
    if found.get("exact") == 1.0:
        return TOLD
    low, _ = found["auc_interval"]
    fewest_hits, _ = found["hits_interval"]
    if fewest_hits >= NEARLY_ALL:
        return CERTAIN
    if low >= NEARLY_ALL:
        return NEARLY_CERTAIN
    if low > 0.5 or fewest_hits > 0.01:
        return BETTER
    return NO_LEAK


def _describe_nodes(plan: str, measured: Measured) -> str:
    """Return where a plan's hospitals stand."""
    if measured["noised"]:
        return join_title(plan, "the sums have noise, and ε holds for any number of records")
    features = measured["features"]
    nodes = measured["nodes"]
    words = (
        f"{measured['nodes_below_features']} of {nodes} hospitals have fewer records than the"
        f" {features:,} features, {measured['nodes_below_floor']} fewer than twice as many; the"
        f" smallest class at one of them has {measured['fewest_of_a_class']:,} records"
    )
    return join_title(plan, words)


def _size_cells(size: str, found: Found) -> list[str]:
    low, high = found["auc_interval"]
    return [
        f"{int(size):,}",
        judge_size(found),
        _show_share(found.get("exact")),
        f"{found['auc']:.3f} ({low:.3f} to {high:.3f})",
        _show_share(found["hits"]),
        _show_error(found.get("error")),
        _show_error(found.get("error_mean")),
    ]


def _show_share(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _show_error(error: float | None) -> str:
    return "–" if error is None else f"{error:.2f}"


def _draw(plans: Sequence[tuple[str, Measured]]) -> bytes:
    lines = {}
    for plan, measured in plans:
        sizes = [int(size) for size in measured["by_size"]]
        areas = [found["auc"] for found in measured["by_size"].values()]
        lines[plan or "this plan"] = (sizes, areas)
    features = plans[0][1]["features"]
    return draw_hiding(lines, (features, 2 * features))
