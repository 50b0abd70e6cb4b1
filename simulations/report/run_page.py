"""The page of one run, from its folder: what was done, what left, what it may reveal, how to repeat
it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.simulations.report import attacks_part as attacks
from fedgraft.simulations.report import fairness_part as fairness
from fedgraft.simulations.report import page, pictures
from fedgraft.simulations.report import privacy_part as privacy
from fedgraft.simulations.report import releases_part as left
from fedgraft.simulations.report.intervals import Interval, of_area, of_share, said
from fedgraft.simulations.results_table import rows_of, sayings, size, spread

Result = Mapping[str, Any]
TRAINED = {
    "head": "a new classifier only (head)",
    "lora": "low-rank updates beside the weights (LoRA), and a classifier",
    "bottleneck": "narrow layers after every block (bottleneck), and a classifier",
    "scale-shift": "a scale and a shift for every channel, and a classifier",
    "bias": "added biases, and a classifier",
    "full": "the whole network",
}
COMBINED = {name: f"the average of the sites' updates ({name})" for name in ("fedavg", "fedprox")}
COARSE = 10  # under differential privacy, counts are told in tens


def run_page(run: Path, result: Result, plan_text: str) -> str:
    """The page as HTML.

    Args:
        run: the run's folder.
        result: its result.json.
        plan_text: its plan.yaml.
    """
    plan = load_plan(run / "plan.yaml")
    found = (
        json.loads((run / "attacks.json").read_text()) if (run / "attacks.json").is_file() else {}
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    sections = [
        page.heading(result["name"], 1),
        *_opening(plan, result, found),
        *_trained(plan, result),
        *_good(plan, result, lines),
        *fairness.section(plan, result),
        *left.section(plan, result, run, lines),
        *privacy.section(plan, result, found),
        *_attacked(found, result),
        *privacy.not_protected(plan, result),
        *_repeat(result, plan_text, run),
    ]
    return page.page(f"{result['name']}: report", sections)


# ── in short ──────────────────────────────────────────────────────────────────────────────────────
def _opening(plan: Plan, result: Result, found: attacks.Found) -> list[str]:
    final, nodes = result["final"]["global"], len(result["final"]["nodes"])
    ended = (
        f"{result['rounds_done']} rounds, seed {result['seed']},"
        f" {result['seconds'].get('total', 0):.0f} s"
    )
    status = (
        ""
        if result["status"] == "completed"
        else f"This run is {result['status']}: what follows is of its last round. "
    )
    kind = "X-rays or other images" if plan.task.kind == "image-classification" else "table rows"
    spent = [each["epsilon"] for each in result["privacy"].values()]
    boxes = []
    if final.get("accuracy") is not None:
        boxes.append(
            (
                f"{100 * final['accuracy']:.1f} %",
                f"of {final['examples']} test examples told rightly",
                False,
            )
        )
    boxes.append(privacy.card(spent))
    boxes.append((size(result["bytes"]["adapter"]), "left each building in each round", False))
    if strongest := attacks.worst(found):
        auc = strongest["auc"]
        boxes.append(
            (
                f"{auc:.2f}",
                (
                    "how well the best attack tells who was in the data (AUC; guessing: 0.50,"
                    " always right: 1)"
                ),
                attacks.verdict(strongest)[0] == "l",
            )
        )
    return [
        page.paragraph(
            f"{status}{nodes} sites trained one model together to tell"
            f" {page.listed(plan.task.classes)} apart. Their {kind} stayed where they are; a small"
            " adapter travelled.",
            "lead",
        ),
        page.cards(boxes),
        page.paragraph(ended, "quiet"),
    ]


# ── what was trained, on whose data ───────────────────────────────────────────────────────────────
def _trained(plan: Plan, result: Result) -> list[str]:
    counts, words = told_counts(plan, result)
    adapter = result["adapter"]
    epochs = "one pass" if plan.train.local_epochs == 1 else f"{plan.train.local_epochs} passes"
    unchanged = (
        "the same before and after the run" if _same(result) else "it CHANGED during the run"
    )
    parts = [
        page.heading("What was trained, and on whose data"),
        page.facts(
            [
                (
                    "frozen network",
                    (
                        f"{result['backbone']['name']}, {size(result['bytes']['backbone'])};"
                        f" {unchanged}"
                    ),
                ),
                (
                    "what was trained",
                    f"{TRAINED[adapter['method']]}: {adapter['values']:,} numbers",
                ),
                ("training", f"{plan.train.rounds} rounds of {epochs} over each site's data"),
                ("combined by", COMBINED.get(plan.aggregate.strategy, plan.aggregate.strategy)),
                ("classes", ", ".join(plan.task.classes)),
                ("sites", str(len(result["final"]["nodes"]))),
            ]
        ),
    ]
    if counts:
        parts += [
            page.figure(
                pictures.labels(counts, result["data"]["classes"]),
                "Training examples of each class at each site.",
            ),
            page.paragraph(words, "quiet"),
        ]
    return parts


def told_counts(plan: Plan, result: Result) -> tuple[dict[str, list[int]], str]:
    """Training examples by site and class as they may be told, and the sentence that says how."""
    known = result.get("data", {}).get("labels", {})
    if plan.privacy.mode == "none":
        return (
            known,
            (
                "A simulation on one machine: in a deployment only each site's total is sent, not"
                " its classes."
            ),
        )
    coarse = {name: [count - count % COARSE for count in row] for name, row in known.items()}
    return (
        coarse,
        (
            f"Rounded down to {COARSE}s: exact counts are not covered by ε, and no site sent any by"
            " class."
        ),
    )


# ── how good ──────────────────────────────────────────────────────────────────────────────────────
def _good(plan: Plan, result: Result, lines: list[dict[str, Any]]) -> list[str]:
    tests = _test_labels(result)
    rows = []
    for name, models, spent in rows_of([result]):
        (row,) = models
        accuracy, area = row.get("accuracy"), row.get("auroc")
        rows.append(
            [
                name,
                "–" if accuracy is None else said(of_share(accuracy, row["examples"])),
                "–" if area is None else said(_area(area, tests)),
                *(spread([row.get(key)]) for key in ("f1", "loss", "calibration_error")),
                size(spent[0]) if spent else "–",
            ]
        )
    examples = result["final"]["global"].get("examples", 0)
    head = ["model", "accuracy", "AUROC", "F1", "loss", "calibration error", "sent in all rounds"]
    return [
        page.heading("How good is the shared model?"),
        page.paragraph(
            f"Every row is measured on the same {examples} test examples, those of all sites"
            " together. In brackets: 95 % intervals, for what other test examples of the same kind"
            " would show. One run tells nothing of another seed; a study does. AUROC: how often a"
            " case of one class is scored above one of another (guessing: 0.5). Calibration error:"
            " how far the stated certainty is from how often it is right."
        ),
        page.table(head, rows, strong=0),
        page.bullets(
            line for line in sayings([result]) if not line.startswith(("privacy:", "ledger:"))
        ),
        page.figure(
            _rounds(lines),
            "Accuracy of the shared model, round by round, on the sites' own test data.",
        ),
    ]


def _test_labels(result: Result) -> list[int] | None:
    by_node = list(result.get("data", {}).get("test_labels", {}).values())
    return [sum(column) for column in zip(*by_node, strict=True)] if by_node else None


def _area(area: float, tests: list[int] | None) -> Interval:
    return of_area(area, tests[1], tests[0]) if tests and len(tests) == 2 else Interval(area)


def _rounds(lines: list[dict[str, Any]]) -> bytes | None:
    """From metrics.jsonl: after how many rounds each site measured what."""
    by_node: dict[str, list[tuple[int, float, int]]] = {}
    for line in lines:
        row, after = (
            (line["final"], line["round"])
            if "final" in line
            else (line.get("received"), line["round"] - 1)
        )
        if row and row.get("accuracy") is not None:
            by_node.setdefault(line["node"], []).append((after, row["accuracy"], row["examples"]))
    return pictures.accuracy_by_round(by_node) if by_node else None


# ── the rest ──────────────────────────────────────────────────────────────────────────────────────
def _attacked(found: attacks.Found, result: Result) -> list[str]:
    parts = [attacks.membership([("", found)]), attacks.others([("", found)])]
    if not any(parts):
        what = (
            "No attack was run against this model. `fedgraft study membership` runs some on a plan"
            " like this."
        )
        return [page.heading("What attackers found"), page.paragraph(what)]
    return [page.heading("What attackers found"), *parts]


def _repeat(result: Result, plan_text: str, run: Path) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    command = shlex.join(["fedgraft", "reproduce", f"{run.name}/manifest.json"])
    return [
        page.heading("How to repeat it"),
        page.paragraph(
            "manifest.json beside this page holds the hashes of the plan, the code, the data, the"
            " backbone, the packages, the ledgers and every file. This runs everything again and"
            " says what agrees:"
        ),
        page.listing(command),
        page.paragraph(
            "Whoever answers for this page signs the manifest (fedgraft manifest … --sign KEY)."
            " Whoever receives it checks that no byte was changed since, and by whom it was signed:"
        ),
        page.listing(shlex.join(["fedgraft", "manifest", run.name, "--verify"])),
        page.facts(
            [("plan", result["plan_hash"]), ("seed", str(result["seed"])), ("made with", versions)]
        ),
        page.details("plan.yaml, every default written out", page.listing(plan_text)),
    ]


def _same(result: Result) -> bool:
    return result["backbone"]["fingerprint_before"] == result["backbone"]["fingerprint_after"]
