"""The page of a study, from its folder: the question, the answer in pictures and tables, and how to
repeat it.

    write_study_page(Path("runs/study-membership"))
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedgraft.common import run_files
from fedgraft.common.errors import UserError
from fedgraft.common.files.yaml_file import read_yaml, validate
from fedgraft.common.plan.phases import trains_nothing
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.common.tasks import TASKS
from fedgraft.simulations.report import page
from fedgraft.simulations.report.attack_results import AttackResults
from fedgraft.simulations.report.membership_part import show_membership
from fedgraft.simulations.report.page import Card
from fedgraft.simulations.report.privacy_part import make_privacy_card, show_not_protected
from fedgraft.simulations.report.sums_part import show_sums
from fedgraft.simulations.report.updates_part import show_other_attacks
from fedgraft.simulations.study.comparison import Ranking, rank_groups
from fedgraft.simulations.study.study_answer import count_seeds, show_answer
from fedgraft.simulations.study.study_file import Study
from fedgraft.simulations.study.study_groups import Group, Row, group_cells, merge_attacks
from fedgraft.simulations.study.study_parts import (
    show_against_baselines,
    show_against_first_case,
    show_bytes_sent,
    show_study_privacy,
    show_worst_sites,
)

ONE_SEED = "Of one seed. Intervals are over the records that were attacked."
FILES = (
    "table.csv and table.parquet beside this page hold every number; manifest.json holds the hashes"
    " of the plans, the code, the data, the packages and every file. This runs every cell again and"
    " says what agrees:"
)


def write_study_page(folder: Path) -> Path:
    """Write `report.html` into the folder of a study; return its path.

    Raises:
        UserError: no cell is finished.
    """
    return page.write_page(folder / "report.html", render_study_page(folder))


def render_study_page(folder: Path) -> str:
    """Return the page as HTML. Raise `UserError` where no cell is finished."""
    # here, since Parquet takes half a second to import and the page of a run needs none
    from pyarrow import parquet

    data, lines = read_yaml(folder / "study.yaml")
    study = validate(Study, data, lines, str(folder / "study.yaml"))
    table = folder / "table.parquet"
    if not table.is_file():
        raise UserError("no cell is finished", where=str(folder), remedy="run it: fedgraft study")

    rows = parquet.read_table(table).to_pylist()
    groups = group_cells(study, rows)
    attacks = {group.name: merge_attacks(folder, group) for group in groups}
    sections = [page.heading(study.question, 1)]
    sections += _show_summary(study, groups, folder)
    sections += show_answer(study, groups)
    sections += show_against_first_case(study, groups)
    sections += show_against_baselines(study, groups)
    sections += show_worst_sites(groups)
    sections += show_study_privacy(groups, attacks)
    sections += _show_attacks(study, attacks)
    sections += show_bytes_sent(groups)
    sections += _show_not_protected(folder, rows)
    sections += _show_how_to_repeat(study, folder, rows)
    return page.page(f"{study.name}: a study", sections)


# ── in short ──────────────────────────────────────────────────────────────────────────────────────
def _show_summary(study: Study, groups: Sequence[Group], folder: Path) -> list[str]:
    plan = load_plan(folder / "cells" / groups[0].rows[0]["cell"] / run_files.PLAN)
    question = TASKS[plan.task.question].describe(plan.task)
    trained = "adapters"
    if plan.train.method == "closed-form":
        trained = "a head solved from sums"
    if trains_nothing(plan.train):
        trained = "a head made of texts"
    lead = (
        f"The plan {plan.name}: {plan.backbone.name} with {trained}: {question}. Each"
        " cell of the study is a whole federation on one machine; no cell saw another's data or"
        " model."
    )
    return [page.paragraph(lead, "lead"), page.cards(_make_cards(study, groups))]


def _make_cards(study: Study, groups: Sequence[Group]) -> list[Card]:
    rows = _all_rows(groups)
    meaning = f"federations: {len(groups)} plans, {count_seeds(study)} each"
    cards = [Card(str(len(rows)), meaning)]

    ranking = rank_groups(groups, "accuracy")
    is_choice = not (study.cases and study.grid)
    if ranking is not None and is_choice and len(study.seeds) > 1:
        meaning = _describe_highest(ranking)
        if ranking.alike:
            meaning += f"; {len(ranking.alike)} more cannot be told from it"
        cards.append(Card(f"{100 * ranking.mean.value:.1f} %", meaning))

    limits = [row["epsilon"] for row in rows if row.get("epsilon") is not None]
    if limits:
        strongest = make_privacy_card([min(limits)])
        cards.append(Card(strongest.figure, "the strongest protection tried"))

    seconds = sum(row["seconds"] or 0 for row in rows)
    cards.append(Card(_show_seconds(seconds), "of computing in the federations"))
    return cards


def _describe_highest(ranking: Ranking) -> str:
    on = "validation data"
    if ranking.column == "accuracy":
        on = "test data, by which no plan is chosen"
    return f"highest mean accuracy on {on}: {ranking.best.name}"


def _show_seconds(seconds: float) -> str:
    if seconds > 90:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s"


def _all_rows(groups: Sequence[Group]) -> list[Row]:
    rows = []
    for group in groups:
        rows += group.rows
    return rows


# ── the rest ──────────────────────────────────────────────────────────────────────────────────────
def _show_attacks(study: Study, attacks: Mapping[str, AttackResults]) -> list[str]:
    membership = show_membership(attacks)
    others = show_sums(attacks) + show_other_attacks(attacks)
    if not membership and not others:
        return []
    words = ONE_SEED
    if len(study.seeds) > 1:
        words = (
            f"Means over {count_seeds(study)}, with the widest interval of any of them; curves of"
            " the first seed."
        )
    return [
        page.heading("What attackers found"),
        page.paragraph(words, "quiet"),
        membership,
        others,
    ]


def _show_not_protected(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Return it in the words of the most protected cell's result."""
    most_protected = min(rows, key=_epsilon_of)
    run = folder / "cells" / most_protected["cell"]
    result = json.loads((run / run_files.RESULT).read_text())
    return show_not_protected(load_plan(run / run_files.PLAN), result)


def _epsilon_of(row: Row) -> float:
    epsilon = row.get("epsilon")
    return math.inf if epsilon is None else epsilon


def _show_how_to_repeat(study: Study, folder: Path, rows: Sequence[Row]) -> list[str]:
    hashes = [[row["cell"], row["plan_hash"]] for row in rows]
    plans = page.table(["cell", "plan"], hashes, texts=[1])
    text = (folder / "study.yaml").read_text()
    command = page.listing(f"fedgraft reproduce {folder.name}/manifest.json")
    study_text = page.details("study.yaml, every default written out", page.listing(text))
    return [
        page.heading("How to repeat it"),
        page.paragraph(FILES),
        command,
        study_text,
        page.details(f"The {len(rows)} plans by their hashes", plans),
    ]
