"""The page's part on what was trained, and on whose data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedgraft.common.adapters import METHODS
from fedgraft.common.plan.phases import begins_with_texts, has_sums, trains_nothing
from fedgraft.common.plan.plan import Plan
from fedgraft.common.tasks import TASKS
from fedgraft.simulations.readable import show_bytes
from fedgraft.simulations.report import page
from fedgraft.simulations.report.pictures import draw_label_counts

Result = Mapping[str, Any]

TRAINED = {
    "head": "a new classifier only (head)",
    "lora": "low-rank updates beside the weights (LoRA), and a classifier",
    "bottleneck": "narrow layers after every block (bottleneck), and a classifier",
    "scale-shift": "a scale and a shift for every channel, and a classifier",
    "bias": "added biases, and a classifier",
    "full": "the whole network",
}
MADE_OF_TEXTS = "nothing; the classifier was made of texts"
AVERAGES = ("fedavg", "fedprox")

# under differential privacy, counts are told in tens
COARSE = 10
EXACT_COUNTS = (
    "A simulation on one machine: in a deployment only each site's total is sent, not its classes."
)
COARSE_COUNTS = (
    f"Rounded down to {COARSE}s: exact counts are not covered by ε, and no site sent any by class."
)

# where sums by class leave a site
EXACT_SUMS = "A simulation on one machine; the sums that left each site tell the same."
COARSE_SUMS = (
    f"Rounded down to {COARSE}s: exact counts are not covered by ε; what sites sent by class had"
    " noise."
)


def show_training(plan: Plan, result: Result) -> list[str]:
    """Return the network, what of it was trained and how, and each site's examples by class."""
    parts = [
        page.heading("What was trained, and on whose data"),
        page.facts(_list_facts(plan, result)),
    ]
    counts, words = choose_counts(plan, result)
    if counts:
        picture = draw_label_counts(counts, result["data"]["classes"])
        parts.append(page.figure(picture, "Training examples of each class at each site."))
        parts.append(page.paragraph(words, "quiet"))
    return parts


def choose_counts(plan: Plan, result: Result) -> tuple[dict[str, list[int]], str]:
    """Return training examples by site and class as they may be told, and the sentence that says
    how.
    """
    counts = result.get("data", {}).get("labels", {})
    sums = has_sums(plan.train)
    if plan.privacy.mode == "none":
        return counts, EXACT_SUMS if sums else EXACT_COUNTS
    coarse = {}
    for name, row in counts.items():
        coarse[name] = [count - count % COARSE for count in row]
    return coarse, COARSE_SUMS if sums else COARSE_COUNTS


def _list_facts(plan: Plan, result: Result) -> list[tuple[str, str]]:
    values = result["adapter"]["values"]
    sites = len(result["final"]["nodes"])
    return [
        ("frozen network", _describe_backbone(result)),
        ("what was trained", f"{_describe_adapter(plan)}: {values:,} numbers"),
        ("training", _describe_rounds(plan, result)),
        ("combined by", _describe_combining(plan)),
        ("question", TASKS[plan.task.question].describe(plan.task)),
        ("sites", str(sites)),
    ]


def _describe_adapter(plan: Plan) -> str:
    """Return what a method trains, in words for people, or in its own words."""
    name = plan.adapter.method
    if trains_nothing(plan.train):
        return MADE_OF_TEXTS
    if name in TRAINED:
        return TRAINED[name]
    method = METHODS[name]
    return method.describe(method.read_options(plan.adapter.model_dump()))


def _describe_backbone(result: Result) -> str:
    backbone = result["backbone"]
    size = show_bytes(result["bytes"]["backbone"])
    same = backbone["fingerprint_before"] == backbone["fingerprint_after"]
    unchanged = "the same before and after the run" if same else "it CHANGED during the run"
    return f"{backbone['name']}, {size}; {unchanged}"


def _describe_rounds(plan: Plan, result: Result) -> str:
    if trains_nothing(plan.train):
        return "none: the head is what texts say of the classes (zero-shot)"
    if plan.train.method == "closed-form":
        return "one round: the head is solved from sums over each site's data"
    epochs = plan.train.local_epochs
    passes = "one pass" if epochs == 1 else f"{epochs} passes"
    if plan.train.local_steps is not None:
        passes = f"{plan.train.local_steps} steps"
    begun = ", from a head that is made of texts" if begins_with_texts(plan.train) else ""
    rounds = f"{plan.train.rounds} rounds"
    if result.get("validation", {}).get("ended_early"):
        rounds = f"{result['rounds_done']} rounds (at most {plan.train.rounds} were planned)"
    return f"{rounds} of {passes} over each site's data{begun}"


def _describe_combining(plan: Plan) -> str:
    if trains_nothing(plan.train):
        return "nothing was sent that could be combined"
    if plan.train.method == "closed-form":
        return "adding the sites' sums, exactly"
    strategy = plan.aggregate.strategy
    if strategy not in AVERAGES:
        return strategy
    if plan.aggregate.weighting == "equal":
        return f"the average of the sites' updates, each of the same weight ({strategy})"
    return f"the average of the sites' updates ({strategy})"
