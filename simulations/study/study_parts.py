"""Tables of a study's page: against the first case and the baselines, the worst sites, privacy, and
what was sent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from fedgraft.common.privacy.accounting import shown
from fedgraft.simulations.readable import show_bytes
from fedgraft.simulations.report import page
from fedgraft.simulations.report.attack_results import AttackResults
from fedgraft.simulations.report.audits_part import show_audits
from fedgraft.simulations.report.intervals import Interval, estimate_mean, show_interval
from fedgraft.simulations.report.privacy_part import ASSUMPTIONS, NO_PRIVACY
from fedgraft.simulations.study.comparison import list_gains_over_first, show_gain
from fedgraft.simulations.study.study_answer import METRICS, WORDS
from fedgraft.simulations.study.study_file import Study
from fedgraft.simulations.study.study_groups import Group

AGAINST_FIRST = ("accuracy", "worst.accuracy", "auroc")
BY_CHANCE = (
    "In points, seed by seed on the same data, with 95 % intervals. Of many comparisons some leave"
    " zero out by chance."
)
AGAINST_BASELINES = (
    "The federation less the baseline, in points, seed by seed on the same data, with 95 %"
    " intervals. alone: each hospital by itself, the mean of their models, without privacy. pooled:"
    " all data in one place, without privacy; what privacy and distance cost."
)
SMALL_SITES = (
    "A small site has few test examples: the worst of many small sites is far below the best by"
    " chance alone."
)
# what an ε up to this much promises, in a word
PROMISES = {1.0: "strong", 3.0: "good", 10.0: "moderate"}


# ── beside others ─────────────────────────────────────────────────────────────────────────────────
def show_against_first_case(study: Study, groups: Sequence[Group]) -> list[str]:
    """Return cases against the first of them, where all were run over a grid."""
    gains: dict[str, dict[str, Interval]] = defaultdict(dict)
    for column in AGAINST_FIRST:
        for name, gain in list_gains_over_first(study, groups, column):
            gains[name][column] = gain
    if not gains:
        return []

    rows = []
    for name, by_column in gains.items():
        cells = [_show_known(by_column.get(column)) for column in AGAINST_FIRST]
        rows.append([name, *cells])
    head = ["plan", *(WORDS[column] for column in AGAINST_FIRST)]
    first = next(iter(study.cases))
    return [
        page.heading(f"Against {first}"),
        page.paragraph(BY_CHANCE),
        page.table(head, rows, texts=[1, 2, 3]),
    ]


def show_against_baselines(study: Study, groups: Sequence[Group]) -> list[str]:
    """Return what each plan is ahead of each baseline, and whether that may be chance."""
    rows = []
    for group in groups:
        for baseline in study.baselines:
            gains = [_subtract_baseline(group, baseline, metric) for metric in METRICS]
            if any(gain is not None for gain in gains):
                rows.append([group.name, baseline, *map(_show_known, gains)])
    if not rows:
        return []
    return [
        page.heading("Against each baseline"),
        page.paragraph(AGAINST_BASELINES),
        page.table(["plan", "baseline", *METRICS.values()], rows, texts=[1]),
    ]


def _subtract_baseline(group: Group, baseline: str, metric: str) -> Interval | None:
    """Return what a plan is ahead of a baseline, seed by seed; None where it was not measured."""
    differences = []
    for row in group.rows:
        ours = row.get(metric)
        theirs = row.get(f"baseline.{baseline}.{metric}")
        if ours is not None and theirs is not None:
            differences.append(ours - theirs)
    if not differences:
        return None
    return estimate_mean(differences)


def _show_known(gain: Interval | None) -> str:
    return "–" if gain is None else show_gain(gain)


# ── sites ─────────────────────────────────────────────────────────────────────────────────────────
def show_worst_sites(groups: Sequence[Group]) -> list[str]:
    """Return accuracy at the worst site of each plan, and how far it is from the best."""
    rows = []
    for group in groups:
        worst = group.estimate("worst.accuracy")
        gap = group.estimate("gap.accuracy")
        if worst is not None and gap is not None:
            rows.append([group.name, show_interval(worst), show_interval(gap)])
    if not rows:
        return []
    head = ["plan", "accuracy at the worst site", "between best and worst site"]
    return [
        page.heading("Does it serve every site?"),
        page.paragraph(SMALL_SITES),
        page.table(head, rows),
    ]


# ── privacy ───────────────────────────────────────────────────────────────────────────────────────
def show_study_privacy(groups: Sequence[Group], attacks: Mapping[str, AttackResults]) -> list[str]:
    """Return each plan's ε in a word, what it rests on, and what audits proved."""
    title = page.heading("Privacy")
    audits = show_audits(attacks)
    if all(group.estimate("epsilon") is None for group in groups):
        return [title, page.note(NO_PRIVACY, warn=True), audits]

    head = ["plan", "ε, largest of all sites", "δ", "in words"]
    rows = [_promise_cells(group) for group in groups]
    return [title, page.table(head, rows, texts=[3]), page.bullets(ASSUMPTIONS), audits]


def _promise_cells(group: Group) -> list[str]:
    epsilons = group.values("epsilon")
    delta = group.estimate("delta")
    if not epsilons or delta is None:
        return [group.name, "none", "–", "what is sent may reveal training data"]
    most = max(epsilons)
    return [group.name, f"≤ {shown(most)}", f"{delta.value:g}", _name_promise(most)]


def _name_promise(epsilon: float) -> str:
    for most, word in PROMISES.items():
        if epsilon <= most * 1.001:
            return word
    return "weak"


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────
def show_bytes_sent(groups: Sequence[Group]) -> list[str]:
    """Return what left each building; plans that sent the same share a row."""
    names: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for group in groups:
        names[_bytes_cells(group)].append(group.name)

    rows = []
    for cells, plans in names.items():
        rows.append([", ".join(plans), *cells])
    if len(rows) == 1 and len(groups) > 1:
        rows[0][0] = f"each of the {len(groups)} plans"
    head = ["plan", "in one round", "all rounds, both ways", "full fine-tuning would send"]
    return [page.heading("What left each building"), page.table(head, rows, texts=[0])]


def _bytes_cells(group: Group) -> tuple[str, str, str]:
    first = group.rows[0]
    sent = float(np.mean(group.values("bytes")))
    # a table that an earlier release wrote has the update's bytes alone
    reply = first.get("reply_bytes") or first["adapter_bytes"]
    times = first["full_model_bytes"] / reply
    return show_bytes(reply), show_bytes(sent), f"{times:,.0f} times"
