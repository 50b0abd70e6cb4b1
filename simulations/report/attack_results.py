"""What attacks.json of a run holds, as the page's parts on attacks read it; of several runs by what
tells them apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.common import run_files
from fedgraft.simulations.report import page

Measured = Mapping[str, Any]
# attacks.json of one run: what was measured, by the attack's name
AttackResults = Mapping[str, Measured]
# of several runs by their plan; one run has the plan ""
ByPlan = Mapping[str, AttackResults]
# a row of a table, after the name of its plan
PlanRow = tuple[str, list[str]]

NAMES = {"loss-threshold": "by the loss", "lira": "LiRA"}


@dataclass(frozen=True)
class View:
    """What one membership attack measured on one thing that an attacker may see."""

    plan: str
    attack: str
    seen: str
    measured: Measured
    # the most that ε leaves to any attack: area, and hits by false-positive rate
    limit: Measured | None = None

    @property
    def title(self) -> str:
        """The attack and what it saw: `LiRA, shared model`."""
        return f"{NAMES.get(self.attack, self.attack)}, {self.seen}"


def read_attack_results(run: Path) -> dict[str, Measured]:
    """Return what each attack measured on a run, by its name; nothing where none was made."""
    try:
        return json.loads((run / run_files.ATTACKS).read_text())
    except FileNotFoundError:
        return {}


def list_views(results: ByPlan) -> Iterator[View]:
    """Yield every view of every membership attack."""
    for plan, attack, measured in list_attacks(results):
        if measured.get("kind") == "membership":
            for seen, view in measured["views"].items():
                yield View(plan, attack, seen, view, measured.get("limit"))


def list_attacks(results: ByPlan) -> Iterator[tuple[str, str, Measured]]:
    """Yield plan, attack and what was measured."""
    for plan, attacks in results.items():
        for attack, measured in attacks.items():
            yield plan, attack, measured


def join_title(plan: str, words: str) -> str:
    """Return `plan: words`, or the words alone for the one run."""
    if not plan:
        return words
    return f"{plan}: {words}"


def table_by_plan(head: Sequence[str], rows: Sequence[PlanRow], texts: Sequence[int]) -> str:
    """Return a table; where plans have names they stand in a first column.

    Args:
        texts: columns that hold words, not counting the plan's.
    """
    plain = []
    named = []
    for plan, cells in rows:
        plain.append(cells)
        named.append([plan, *cells])
    several = any(plan for plan, _ in rows)
    if not several:
        return page.table(head, plain, texts=texts)
    shifted = [number + 1 for number in texts]
    return page.table(["plan", *head], named, texts=[0, *shifted])
