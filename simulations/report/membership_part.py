"""The page's part on membership: what each attack that tells members from strangers found, against
what guessing would find.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from fedgraft.simulations.report import page
from fedgraft.simulations.report.attack_results import (
    NAMES,
    AttackResults,
    ByPlan,
    Measured,
    View,
    join_title,
    list_views,
    table_by_plan,
)
from fedgraft.simulations.report.pictures import Curve, draw_roc_curves

MEANINGS = {
    "loss-threshold": "calls those records members that the model fits best",
    "lira": "compares the model with shadow models that were trained with and without each record",
}
OF_SUMS = (
    "node sums: what one hospital sent. By the loss: under the head that its sums alone give. LiRA:"
    " by the record's leverage in their products; under noise, by their inner product with what the"
    " record adds to them. LiRA's attacker knows every other record"
)
QUESTION = (
    "An attacker holds a person's record and asks whether it was trained on. Guessing finds as many"
    " members as it raises false alarms: 1 % at 1 %. In brackets: 95 % intervals over the records"
    " drawn."
)
CAPTION = (
    "Hits against false alarms, both on log axes. On the dotted line an attacker might as well"
    " guess; a curve above it at the left names some members with certainty."
)
ONE_EACH = " Of each plan the attack with the largest area."

# more would not be told apart in one picture
MOST_CURVES = 8


def show_membership(results: ByPlan) -> str:
    """Return a table and curves of every attack that tells members from strangers."""
    views = list(list_views(results))
    if not views:
        return ""
    several = any(view.plan for view in views)
    curves = select_curves(views, one_each=several)
    caption = CAPTION + ONE_EACH if several else CAPTION
    return "".join(
        [
            page.heading("Can it be told who was in the training data?", 3),
            page.paragraph(QUESTION),
            page.bullets(_explain_attacks(views)),
            _views_table(views),
            page.bullets(_list_limits(views)),
            page.figure(draw_roc_curves(curves), caption),
        ]
    )


def select_curves(views: Iterable[View], *, one_each: bool) -> dict[str, Curve]:
    """Return every attack's curve by its title, or of each plan that of the most successful one."""
    by_plan: dict[str, list[View]] = defaultdict(list)
    for view in views:
        by_plan[view.plan].append(view)

    chosen: list[View] = []
    for candidates in by_plan.values():
        if one_each:
            chosen.append(max(candidates, key=_area))
        else:
            chosen += candidates

    curves: dict[str, Curve] = {}
    for view in chosen[:MOST_CURVES]:
        roc = view.measured["roc"]
        curves[join_title(view.plan, view.title)] = (roc["fpr"], roc["tpr"])
    return curves


def find_strongest(results: AttackResults) -> Measured | None:
    """Return what the most successful membership attack on one run measured."""
    views = list(list_views({"": results}))
    if not views:
        return None
    return max(views, key=_area).measured


# ── what numbers mean ─────────────────────────────────────────────────────────────────────────────
def judge_membership(measured: Measured) -> str:
    """Return what an attack's numbers mean, in words."""
    rate = _largest_rate(measured)
    if is_leak(measured):
        strong = measured["auc"] >= 0.7 or measured["tpr"][rate] >= 0.1
        return "leaks strongly" if strong else "leaks a little"
    _, high = measured["auc_interval"]
    return "not told from guessing" if high >= 0.5 else "worse than guessing"


def is_leak(measured: Measured) -> bool:
    """Return whether an attack is better than guessing with 95 % confidence, on the whole or on the
    records that it is surest of.
    """
    rate = _largest_rate(measured)
    low, _ = measured["auc_interval"]
    fewest_hits, _ = measured["tpr_interval"][rate]
    return low > 0.5 or fewest_hits > float(rate)


def _largest_rate(measured: Measured) -> str:
    return max(measured["tpr"], key=float)


def _area(view: View) -> float:
    return view.measured["auc"]


# ── table ─────────────────────────────────────────────────────────────────────────────────────────
def _views_table(views: Sequence[View]) -> str:
    head = ["attack", "AUC (guessing: 0.5)"]
    for rate in views[0].measured["tpr"]:
        head.append(f"hits at {100 * float(rate):g} % false alarms")
    head.append("in words")
    rows = [(view.plan, _view_cells(view)) for view in views]
    return table_by_plan(head, rows, texts=[0, len(head) - 1])


def _view_cells(view: View) -> list[str]:
    measured = view.measured
    low, high = measured["auc_interval"]
    cells = [view.title, f"{measured['auc']:.3f} ({low:.3f} to {high:.3f})"]
    for rate, hits in measured["tpr"].items():
        cells.append(_show_percent(hits, measured["tpr_interval"][rate]))
    cells.append(judge_membership(measured))
    return cells


def _show_percent(share: float, interval: Sequence[float]) -> str:
    low, high = map(_percent, interval)
    return f"{_percent(share)} % ({low} to {high})"


def _percent(share: float) -> str:
    percent = f"{100.0 * share:.1f}"
    # wide tables have no room for it
    return percent.replace("100.0", "100")


def _list_limits(views: Iterable[View]) -> list[str]:
    """Return the most that any attack reaches under each plan's ε, whatever it knows."""
    lines: dict[str, None] = {}
    for view in views:
        if view.limit:
            rate = _largest_rate(view.measured)
            words = (
                f"at ε = {view.limit['epsilon']:.3g} no attack, whatever it knows, is expected to"
                f" pass an AUC of {view.limit['auc']:.3f}, or {100 * view.limit['tpr'][rate]:.1f} %"
                f" hits at {100 * float(rate):g} % false alarms"
            )
            lines[join_title(view.plan, words)] = None
    return list(lines)


def _explain_attacks(views: Sequence[View]) -> list[str]:
    lines: list[str] = []
    for attack in dict.fromkeys(view.attack for view in views):
        if attack in MEANINGS:
            lines.append(f"{NAMES[attack]}: {MEANINGS[attack]}")
    if any(view.seen == "node sums" for view in views):
        lines.append(OF_SUMS)
    return lines
