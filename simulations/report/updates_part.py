"""The page's part on what a hospital's update gives away: what each attack found beside what
guessing finds.

An attack of a kind that is not known here is shown as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fedgraft.simulations.flatten import flatten_numbers
from fedgraft.simulations.report import page
from fedgraft.simulations.report.attack_results import (
    ByPlan,
    Measured,
    PlanRow,
    join_title,
    list_attacks,
    table_by_plan,
)

# what must not be concluded from an attack
CAVEATS = {
    "inversion": (
        "An image that does not come back is no proof that it cannot. This attack rebuilds images"
        " of 8 × 8 and 12 × 12 pixels; at 28 × 28 it does about as well as the mean image, which"
        " anybody has. A better one may do more."
    ),
    "properties": (
        "An ε for an example or a patient does not promise to hide what is true of a whole"
        " hospital. Only noise on its whole update does (privacy.mode: local)."
    ),
}
HEAD = ("what was tried", "measure", "found", "guessing", "in words")
NO_LEAK = "not told from guessing"
# kinds that have parts of their own
ELSEWHERE = ("membership", "audit", "reconstruction")

Cells = list[str]


def show_other_attacks(results: ByPlan) -> str:
    """Return what attacks of other kinds found, each with what it must not be taken for."""
    rows: list[PlanRow] = []
    unknown: list[str] = []
    kinds = set()
    for plan, attack, measured in list_attacks(results):
        kind = measured.get("kind", "")
        kinds.add(kind)
        if kind in KINDS:
            rows += [(plan, cells) for cells in KINDS[kind](measured)]
        elif kind not in ELSEWHERE:
            unknown.append(_show_as_it_is(join_title(plan, attack.replace("-", " ")), measured))
    if not rows:
        return "".join(unknown)

    caveats = [words for kind, words in CAVEATS.items() if kind in kinds]
    title = page.heading("What does a hospital's update give away?", 3)
    table = table_by_plan(HEAD, rows, texts=[0, 1, 4])
    return "".join([title, table, page.bullets(caveats), *unknown])


# ── kinds ─────────────────────────────────────────────────────────────────────────────────────────
def _inversion_rows(measured: Measured) -> list[Cells]:
    """Return images rebuilt from an update, beside the mean image, which anybody has."""
    images = measured["images"]
    return [
        [
            f"rebuild {images} images, {measured['together']} to a step",
            "similarity (SSIM; 1: the same image)",
            f"{measured['ssim']:.3f}",
            f"{measured['ssim_mean']:.3f}",
            f"{measured['better']} of {images} closer than the mean image",
        ]
    ]


def _label_rows(measured: Measured) -> list[Cells]:
    """Return labels read from the head's gradient."""
    return [_counted_labels(measured), _named_label(measured)]


def _counted_labels(measured: Measured) -> Cells:
    share = measured["counts"]
    chance = measured["counts_chance"]
    low, high = measured["counts_interval"]
    return [
        f"count the labels in steps of {measured['together']}",
        "share counted rightly",
        f"{share:.3f} ({low:.3f} to {high:.3f})",
        f"{chance:.3f}",
        _judge(low > chance),
    ]


def _named_label(measured: Measured) -> Cells:
    share = measured["single"]
    chance = measured["single_chance"]
    return [
        "name the label of a step of one record",
        "share named rightly",
        f"{share:.3f}",
        f"{chance:.3f}",
        _judge(share > chance + 0.1),
    ]


def _property_rows(measured: Measured) -> list[Cells]:
    """Return a hospital's share of a class, read from its update."""
    error = measured["error"]
    chance = measured["error_chance"]
    return [
        [
            f"the share of {measured['share_of']} at each of {measured['nodes']} hospitals",
            "mean error of the share",
            f"{error:.3f}",
            f"{chance:.3f}",
            _judge(error < 0.8 * chance, "leaks: ε does not promise to hide it"),
        ]
    ]


KINDS: Mapping[str, Callable[[Measured], list[Cells]]] = {
    "inversion": _inversion_rows,
    "labels": _label_rows,
    "properties": _property_rows,
}


def _judge(leaks: bool, words: str = "leaks") -> str:
    return words if leaks else NO_LEAK


# ── any other ─────────────────────────────────────────────────────────────────────────────────────
def _show_as_it_is(title: str, measured: Measured) -> str:
    rows = []
    for key, value in flatten_numbers(measured).items():
        if not key.endswith("seconds"):
            rows.append([key.replace("_", " "), _show_number(value)])
    if not rows:
        return ""
    return page.heading(title, 3) + page.table(["measured", "value"], rows)


def _show_number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if math.isfinite(value) else "∞"
