"""The page's part on differential privacy: what is promised, how it was counted, what was tried
against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedgraft.common.plan.phases import trains_nothing
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.privacy_section import PrivacySection
from fedgraft.common.privacy.accounting import shown, statement
from fedgraft.common.statistics.noisy_sums import COUNT_WEIGHT
from fedgraft.simulations.report import page
from fedgraft.simulations.report.attack_results import AttackResults
from fedgraft.simulations.report.audits_part import show_audits
from fedgraft.simulations.report.page import Card
from fedgraft.simulations.report.pictures import draw_budget

# what one site spent: epsilon, delta, unit, neighbours, accountant, history
Spent = Mapping[str, Any]
# of a ledger's history: noise multiplier, sample rate, steps
Steps = Sequence[float]

NO_PRIVACY = (
    "No differential privacy was asked for: what a site sends may reveal training data, and nothing"
    " below limits how much."
)
OF_TEXTS = (
    "metrics, and a temperature or a threshold where one was chosen, may tell of test and"
    " validation records; the model's head was made of texts"
)
ASSUMPTIONS = (
    (
        "The noise comes from a source that an attacker cannot guess. In a simulation it is drawn"
        " from a seed, so that the run can be repeated: such a run protects nobody, it shows what a"
        " deployment would do."
    ),
    (
        "A record counts as one unit. Where one patient has several records and the unit is the"
        " example, each is hidden by itself, and all of them together less well."
    ),
    (
        "Everything that was ever run on the same records is counted by each site's own ledger;"
        " what was computed on them outside of it is not."
    ),
    "The frozen network was trained on other data: ε says nothing about that.",
)
NOT_AUDITED = "Not audited in this run: the ε above is what mathematics promises."
NOTHING_SPENT = "No round was finished: nothing was spent."

# by the plan's mode: what an attacker has, and what is done against it
SEEN = {
    "sample": "all that a site sent as its update",
    "local": "all that a site sent as its update",
    "central": "the shared model; the coordinator itself sees more",
}
KINDS = {
    "sample": "noise on every step at each site (DP-SGD)",
    "central": "noise at the server",
    "local": "noise on each site's update",
}

SUMS_SEEN = "the sums that a site sent"
KIND_OF_SUMS = "discrete Gaussian noise on the sums of each site, once"

UNLIMITED = (
    "anything: without differential privacy what sites send and the shared model may reveal"
    " training records"
)
NEVER_PROTECTED = (
    ("what a group of people have in common: a model that learns it tells it, whoever took part"),
    "mistakes of the model, and what people do with its answers",
)


def make_privacy_card(spent: Sequence[float]) -> Card:
    """Return the box at the top of a page, from the ε of each site."""
    if not spent:
        return Card(
            "none", "differential privacy: what is sent may reveal training data", warn=True
        )
    largest = shown(max(spent)).rstrip("0").rstrip(".")
    return Card(f"ε ≤ {largest}", "differential privacy, the largest of all sites")


def show_privacy(plan: Plan, result: Mapping[str, Any], attacks: AttackResults) -> list[str]:
    """Return ε as stated and as proved, with unit, relation, sampling, δ, accountant and
    assumptions.
    """
    title = page.heading("Privacy")
    audits = show_audits({"": attacks})
    if trains_nothing(plan.train):
        return [title, page.note(f"No differential privacy, and no training: {OF_TEXTS}."), audits]
    if plan.privacy.mode == "none":
        return [title, page.note(NO_PRIVACY, warn=True), audits]
    if not result["privacy"]:
        return [title, page.note(NOTHING_SPENT), audits]

    by_site: dict[str, Spent] = dict(sorted(result["privacy"].items()))
    most = max(by_site, key=lambda site: by_site[site]["epsilon"])
    spent = by_site[most]
    explained = page.paragraph(_explain_epsilon(plan, spent))
    promise = page.note(f"{most}, which spent most: {_state_promise(spent)}")
    facts = page.facts(_list_facts(plan, spent, by_site))
    return [
        title,
        explained,
        promise,
        facts,
        _sums_table(by_site) if _is_of_sums(plan) else _budget_table(by_site),
        _budget_picture(plan.privacy, by_site),
        page.heading("What this rests on", 3),
        page.bullets([*ASSUMPTIONS, *_list_trusted(plan)]),
        audits or page.paragraph(NOT_AUDITED, "quiet"),
    ]


def show_not_protected(plan: Plan, result: Mapping[str, Any]) -> list[str]:
    """Return what ε does not cover, in the result's own words."""
    if trains_nothing(plan.train):
        lines = [OF_TEXTS]
    elif plan.privacy.mode == "none":
        lines = [UNLIMITED]
    else:
        lines = list(result.get("not_covered_by_epsilon", ()))
    return [
        page.heading("What is not protected"),
        page.bullets([*lines, *NEVER_PROTECTED]),
    ]


def _list_trusted(plan: Plan) -> list[str]:
    """Return a sentence for each piece of code of others that ran on the records."""
    sentences = []
    for code in plan.extensions:
        sentences.append(
            f"Extension {code.name} ({code.hash}) is no part of fedgraft and ran on the records. ε"
            " holds if it is what each site approved it as."
        )
    return sentences


# ── in words ──────────────────────────────────────────────────────────────────────────────────────
def _is_of_sums(plan: Plan) -> bool:
    """Whether the noise is on sums, not on steps."""
    return plan.train.method == "closed-form"


def _explain_epsilon(plan: Plan, spent: Spent) -> str:
    likelier = math.exp(spent["epsilon"])
    seen = SUMS_SEEN if _is_of_sums(plan) else SEEN[plan.privacy.mode]
    return (
        f"ε limits what can be told, from {seen}, about whether one {spent['unit']}"
        f" took part: no conclusion becomes more than e^ε = {likelier:.3g} times as likely. The"
        " smaller ε, the better; below 1 is strong, above 10 is little."
    )


def _state_promise(spent: Spent) -> str:
    history = []
    for sigma, rate, steps in spent["history"]:
        history.append((float(sigma), float(rate), int(steps)))
    return statement(
        history,
        spent["delta"],
        unit=spent["unit"],
        accountant=spent["accountant"],
        neighbours=spent.get("neighbours", ""),
    )


def _list_facts(plan: Plan, spent: Spent, by_site: Mapping[str, Spent]) -> list[tuple[str, str]]:
    privacy = plan.privacy
    unit = spent["unit"]
    neighbours = spent.get("neighbours") or f"one {unit} added or removed"
    delta = f"{spent['delta']:g}: the chance that the promise does not hold"
    accountant = f"{spent['accountant'].upper()}, an upper bound"
    if _is_of_sums(plan):
        return [
            ("kind", KIND_OF_SUMS),
            ("unit", unit),
            ("neighbours", neighbours),
            ("sampling", f"none: every {unit} is in the sums"),
            ("δ", delta),
            ("accountant", accountant),
            ("sensitivity", f"features of norm 1, and a count: √(1 + {COUNT_WEIGHT:g}²)"),
        ]
    return [
        ("kind", KINDS.get(privacy.mode, privacy.mode)),
        ("unit", unit),
        ("neighbours", neighbours),
        ("sampling", _describe_sampling(by_site)),
        ("δ", delta),
        ("accountant", f"{accountant}, over every step of every round"),
        ("clipping norm", f"{_clipping_norm(privacy):g}"),
    ]


def _describe_sampling(by_site: Mapping[str, Spent]) -> str:
    for spent in by_site.values():
        for _, rate, _ in spent["history"]:
            if rate < 1:
                return "Poisson: each unit is in a step by its own coin"
    return "none: every unit is in every step"


def _clipping_norm(privacy: PrivacySection) -> float:
    if privacy.mode == "sample":
        return privacy.max_grad_norm
    return privacy.max_update_norm


# ── by site ───────────────────────────────────────────────────────────────────────────────────────
def _budget_table(by_site: Mapping[str, Spent]) -> str:
    head = ["site", "ε (upper bound)", "δ", "noise multiplier", "sample rate", "steps"]
    rows = []
    for site, spent in by_site.items():
        history: Sequence[Steps] = spent["history"]
        rows.append(
            [
                site,
                shown(spent["epsilon"]),
                f"{spent['delta']:g}",
                _join_distinct(history, 0),
                _join_distinct(history, 1),
                f"{_count_steps(history):,}",
            ]
        )
    return page.table(head, rows)


def _sums_table(by_site: Mapping[str, Spent]) -> str:
    head = ["site", "ε (upper bound)", "δ", "noise multiplier", "releases"]
    rows = []
    for site, spent in by_site.items():
        history: Sequence[Steps] = spent["history"]
        epsilon = shown(spent["epsilon"])
        delta = f"{spent['delta']:g}"
        releases = f"{_count_steps(history):,}"
        rows.append([site, epsilon, delta, _join_distinct(history, 0), releases])
    return page.table(head, rows)


def _budget_picture(privacy: PrivacySection, by_site: Mapping[str, Spent]) -> str:
    budget = {site: spent["epsilon"] for site, spent in by_site.items()}
    picture = draw_budget(budget, privacy.target_epsilon)
    return page.figure(picture, "Budget spent by each site.")


def _join_distinct(history: Sequence[Steps], column: int) -> str:
    distinct = {f"{row[column]:.3g}" for row in history}
    return ", ".join(sorted(distinct))


def _count_steps(history: Sequence[Steps]) -> int:
    return sum(int(row[2]) for row in history)
