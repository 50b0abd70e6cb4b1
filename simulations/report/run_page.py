"""The page of one run, from its folder: what was done, what left, what it may reveal, how to repeat
it.

    write_run_page(Path("runs/digits-20261125-003032"))
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgraft.common import run_files
from fedgraft.common.errors import UserError
from fedgraft.common.inputs import INPUTS
from fedgraft.common.plan.phases import has_sums, trains_nothing
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.common.tasks import TASKS
from fedgraft.common.tasks.measures import Measure, shown_measures
from fedgraft.simulations.answers import question_of, read_answers
from fedgraft.simulations.readable import show_bytes
from fedgraft.simulations.report import page
from fedgraft.simulations.report.attack_results import AttackResults, read_attack_results
from fedgraft.simulations.report.fairness_part import show_fairness
from fedgraft.simulations.report.membership_part import find_strongest, is_leak, show_membership
from fedgraft.simulations.report.page import Card
from fedgraft.simulations.report.privacy_part import (
    make_privacy_card,
    show_not_protected,
    show_privacy,
)
from fedgraft.simulations.report.quality_part import show_quality
from fedgraft.simulations.report.releases_part import show_releases
from fedgraft.simulations.report.sums_part import show_sums
from fedgraft.simulations.report.training_part import show_training
from fedgraft.simulations.report.updates_part import show_other_attacks
from fedgraft.simulations.results_in_words import count_largest_reply

Result = Mapping[str, Any]

NO_ATTACK = (
    "No attack was run against this model. `fedgraft study membership` runs some on a plan like"
    " this."
)
NOT_TRAINED = "No attack was run: the model learnt of no record here, so there is none to tell of."
BEST_ATTACK = (
    "how well the best attack tells who was in the data (AUC; guessing: 0.50, always right: 1)"
)
MANIFEST = (
    "manifest.json beside this page holds the hashes of the plan, the code, the data, the backbone,"
    " the packages, the ledgers and every file. This runs everything again and says what agrees:"
)
SIGNATURE = (
    "Whoever answers for this page signs the manifest (fedgraft manifest … --sign KEY). Whoever"
    " receives it checks that no byte was changed since, and by whom it was signed:"
)


def write_run_page(run: Path) -> Path:
    """Write `report.html` into the folder of a run; return its path.

    Raises:
        UserError: the folder holds no run.
    """
    try:
        result = json.loads((run / run_files.RESULT).read_text())
        plan_text = (run / run_files.PLAN).read_text()
        if "seeds" in result:
            raise KeyError("seeds")
    except (OSError, ValueError, KeyError) as error:
        remedy = "give the folder of one run, such as runs/NAME-TIME/seed-7, or of a study"
        raise UserError("holds no run", where=str(run), remedy=remedy) from error
    return page.write_page(run / "report.html", render_run_page(run, result, plan_text))


def render_run_page(run: Path, result: Result, plan_text: str) -> str:
    """Return the page as HTML.

    Args:
        run: the run's folder.
        result: its result.json.
        plan_text: its plan.yaml.
    """
    plan = load_plan(run / run_files.PLAN)
    attacks = read_attack_results(run)
    lines = [json.loads(line) for line in (run / run_files.METRICS).read_text().splitlines()]
    sections = [page.heading(result["name"], 1)]
    sections += _show_summary(plan, result, attacks)
    sections += show_training(plan, result)
    sections += show_quality(result, lines)
    sections += show_fairness(plan, result)
    sections += show_releases(plan, result, run, lines)
    sections += show_privacy(plan, result, attacks)
    sections += _show_attacks(plan, attacks)
    sections += show_not_protected(plan, result)
    sections += _show_how_to_repeat(result, plan_text, run)
    return page.page(f"{result['name']}: report", sections)


# ── in short ──────────────────────────────────────────────────────────────────────────────────────
def _show_summary(plan: Plan, result: Result, attacks: AttackResults) -> list[str]:
    lead = _describe_status(result) + _describe_federation(plan, result)
    return [
        page.paragraph(lead, "lead"),
        page.cards(_make_cards(plan, result, attacks)),
        page.paragraph(_describe_length(result), "quiet"),
    ]


def _describe_status(result: Result) -> str:
    if result["status"] == "completed":
        return ""
    return f"This run is {result['status']}: what follows is of its last round. "


def _describe_federation(plan: Plan, result: Result) -> str:
    nodes = len(result["final"]["nodes"])
    question = TASKS[plan.task.question].describe(plan.task)
    material = INPUTS[plan.task.material].plural
    travelled = "a small adapter"
    if plan.train.method == "closed-form":
        travelled = "sums over them"
    if trains_nothing(plan.train):
        return (
            f"{nodes} sites measured one model that was made of texts: {question}. Their {material}"
            " stayed where they are; nothing was trained on them."
        )
    return (
        f"{nodes} sites trained one model together: {question}. Their {material} stayed where they"
        f" are; {travelled} travelled."
    )


def _describe_length(result: Result) -> str:
    seconds = result["seconds"].get("total", 0)
    rounds = "1 round" if result["rounds_done"] == 1 else f"{result['rounds_done']} rounds"
    return f"{rounds}, seed {result['seed']}, {seconds:.0f} s"


def _make_cards(plan: Plan, result: Result, attacks: AttackResults) -> list[Card]:
    cards = []
    final = result["final"]["global"]
    for measure in shown_measures(question_of(result))[:2]:
        value = final.get(measure.key)
        if value is not None:
            cards.append(_make_measure_card(measure, value, result))

    spent = [row["epsilon"] for row in result["privacy"].values()]
    protection = make_privacy_card(spent)
    sent = Card(show_bytes(result["bytes"]["adapter"]), "left each building in each round")
    if trains_nothing(plan.train):
        protection = Card(
            "none", "differential privacy: the model was made of texts, not of records"
        )
        sent = Card("0 B", "of updates left any building: metrics alone did")
    if has_sums(plan.train):
        largest = show_bytes(count_largest_reply(result))
        sent = Card(largest, "left each building in a round, at most")
    cards += [protection, sent]

    strongest = find_strongest(attacks)
    if strongest is not None:
        area = strongest["auc"]
        cards.append(Card(f"{area:.2f}", BEST_ATTACK, warn=is_leak(strongest)))
    return cards


def _make_measure_card(measure: Measure, value: float, result: Result) -> Card:
    """Return a metric with what it means; a warning where a model that knows nothing has it."""
    if measure.key == "accuracy":
        return _make_accuracy_card(value, result)
    is_chance = measure.chance is not None and value <= measure.chance
    return Card(f"{value:.3f}", f"{measure.words}: {measure.meaning}", warn=is_chance)


def _make_accuracy_card(accuracy: float, result: Result) -> Card:
    """Return how often the model is right, beside what the commonest class would be."""
    meaning = f"of {result['final']['global']['examples']} test examples told rightly"
    answers = read_answers(result)
    if answers is None:
        return Card(f"{100 * accuracy:.1f} %", meaning)
    meaning += f"; always “{answers.commonest}” would be right for {answers.majority:.1%}"
    return Card(f"{100 * accuracy:.1f} %", meaning, warn=accuracy <= answers.majority)


# ── the rest ──────────────────────────────────────────────────────────────────────────────────────
def _show_attacks(plan: Plan, attacks: AttackResults) -> list[str]:
    by_plan = {"": attacks}
    membership = show_membership(by_plan)
    others = show_sums(by_plan) + show_other_attacks(by_plan)
    heading = page.heading("What attackers found")
    if not membership and not others:
        words = NOT_TRAINED if trains_nothing(plan.train) else NO_ATTACK
        return [heading, page.paragraph(words)]
    return [heading, membership, others]


def _show_how_to_repeat(result: Result, plan_text: str, run: Path) -> list[str]:
    reproduce = shlex.join(["fedgraft", "reproduce", f"{run.name}/manifest.json"])
    verify = shlex.join(["fedgraft", "manifest", run.name, "--verify"])
    made_of = [
        ("plan", result["plan_hash"]),
        ("seed", str(result["seed"])),
        ("made with", _list_versions(result)),
    ]
    return [
        page.heading("How to repeat it"),
        page.paragraph(MANIFEST),
        page.listing(reproduce),
        page.paragraph(SIGNATURE),
        page.listing(verify),
        page.facts(made_of),
        page.details("plan.yaml, every default written out", page.listing(plan_text)),
    ]


def _list_versions(result: Result) -> str:
    return ", ".join(f"{name} {number}" for name, number in result["versions"].items())
