"""The page's part on differential privacy: what is promised, how it was counted, what was tried
against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.accounting import shown, statement
from fedgraft.simulations.report import attacks_part as attacks
from fedgraft.simulations.report import page, pictures

NO_PRIVACY = (
    "No differential privacy was asked for: the updates may reveal training data, and nothing below"
    " limits how much."
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
    "The network under the adapter was trained on other data: ε says nothing about that.",
)


SEEN = {  # what an attacker has, by the plan's mode
    "sample": "all that a site sent as its update",
    "local": "all that a site sent as its update",
    "central": "the shared model; the coordinator itself sees more",
}


def card(spent: Sequence[float]) -> tuple[str, str, bool]:
    """The box at the top of a page."""
    if not spent:
        return "none", "differential privacy: updates may reveal training data", True
    return (
        f"ε ≤ {shown(max(spent)).rstrip('0').rstrip('.')}",
        "differential privacy, the largest of all sites",
        False,
    )


def section(plan: Plan, result: Mapping[str, Any], found: attacks.Found) -> list[str]:
    """ε as stated and as proved, with unit, relation, sampling, δ, accountant and assumptions."""
    proved = attacks.empirical([("", found)])
    if plan.privacy.mode == "none":
        return [page.heading("Privacy"), page.note(NO_PRIVACY, warn=True), proved]
    if not result["privacy"]:
        return [
            page.heading("Privacy"),
            page.note("No round was finished: nothing was spent."),
            proved,
        ]
    spent = dict(sorted(result["privacy"].items()))
    name = max(spent, key=lambda node: spent[node]["epsilon"])
    first = spent[name]
    asked = plan.privacy
    rates = {rate < 1 for each in spent.values() for _, rate, _ in each["history"]}
    sampling = (
        "Poisson: each unit is in a step by its own coin"
        if True in rates
        else "none: every unit is in every step"
    )
    ceiling = asked.target_epsilon
    return [
        page.heading("Privacy"),
        page.paragraph(
            f"ε limits what can be told, from {SEEN[asked.mode]}, about whether one {first['unit']} took part: no "
            f"conclusion becomes more than e^ε = {math.exp(first['epsilon']):.3g} times as likely. The smaller ε, the "
            "better; below 1 is strong, above 10 is little."
        ),
        page.note(f"{name}, which spent most: {_sentence(first)}"),
        page.facts(
            [
                ("kind", {"sample": "noise on every step at each site (DP-SGD)", "central": "noise at the server",
                          "local": "noise on each site's update"}.get(asked.mode, asked.mode)),
                ("unit", first["unit"]),
                ("neighbours", first.get("neighbours") or f"one {first['unit']} added or removed"),
                ("sampling", sampling),
                ("δ", f"{first['delta']:g}: the chance that the promise does not hold"),
                ("accountant", f"{first['accountant'].upper()}, an upper bound, over every step of every round"),
                ("clipping norm", f"{asked.max_grad_norm if asked.mode == 'sample' else asked.max_update_norm:g}"),
            ]
        ),
        page.table(
            ["site", "ε (upper bound)", "δ", "noise multiplier", "sample rate", "steps"],
            [
                [node, shown(each["epsilon"]), f"{each['delta']:g}", *_history(each["history"])]
                for node, each in spent.items()
            ],
        ),
        page.figure(
            pictures.budget({node: each["epsilon"] for node, each in spent.items()}, ceiling),
            "Budget spent by each site.",
        ),
        page.heading("What this rests on", 3),
        page.bullets(ASSUMPTIONS),
        proved or page.paragraph("Not audited in this run: the ε above is what mathematics promises.", "quiet"),
    ]  # fmt: skip


def not_protected(plan: Plan, result: Mapping[str, Any]) -> list[str]:
    """What ε does not cover, in the result's own words."""
    if plan.privacy.mode == "none":
        lines = [
            "anything: without differential privacy the updates and the shared model may reveal"
            " training records"
        ]
    else:
        lines = list(result.get("not_covered_by_epsilon", ()))
    return [
        page.heading("What is not protected"),
        page.bullets(
            [
                *lines,
                (
                    "what a group of people have in common: a model that learns it tells it,"
                    " whoever took part"
                ),
                "mistakes of the model, and what people do with its answers",
            ]
        ),
    ]


def _sentence(spent: Mapping[str, Any]) -> str:
    rows = [(float(sigma), float(rate), int(steps)) for sigma, rate, steps in spent["history"]]
    return statement(
        rows,
        spent["delta"],
        unit=spent["unit"],
        accountant=spent["accountant"],
        neighbours=spent.get("neighbours", ""),
    )


def _history(rows: Sequence[Sequence[float]]) -> list[str]:
    sigmas, rates = {f"{row[0]:.3g}" for row in rows}, {f"{row[1]:.3g}" for row in rows}
    return [
        ", ".join(sorted(sigmas)),
        ", ".join(sorted(rates)),
        f"{sum(int(row[2]) for row in rows):,}",
    ]
