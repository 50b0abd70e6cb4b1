"""MODEL_CARD.md of a shared model: facts of the run, under the field's usual headings.

Mitchell et al. 2019, "Model cards for model reporting" (FAT*). Nothing in a card is a guess: what
the run does not know is said not to be known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedgraft.common.files.foreign_text import as_markdown
from fedgraft.common.plan.phases import begins_with_texts, rounds_for, trains_nothing
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.train_section import TrainSection
from fedgraft.common.privacy.accounting import shown
from fedgraft.common.result import Metrics, Result
from fedgraft.common.tasks import TASKS
from fedgraft.common.tasks.measures import Measure, main_measures, measures_in
from fedgraft.server.papers.validation_words import (
    describe_calibration,
    describe_operating_point,
    describe_validation,
)

# what else is learnt about a node under differential privacy
NOT_COVERED = (
    "metrics on the nodes' test splits, where a node reports them without noise",
    "that a node takes part, and when and how fast it answers",
    "the names of the classes, and what the plan says",
    "that a refusal was given, and its reason",
)
# of steps: sums are over all records, and their count has noise
COUNT_BY_RATE = "the number of training examples or patients, rounded down, by the sample rate"
NOT_COVERED_BY_MODE = {
    "sample": (
        (
            "statistics of a whole node, such as its share of sick patients: ε hides one example or"
            " patient, not what all of a node's data have in common; only mode local hides that"
        ),
        COUNT_BY_RATE,
    ),
    "local": (),
    "central": (
        (
            "the coordinator sees each node's clipped update: this ε is for all others, who see the"
            " shared model"
        ),
        (
            "who was in each cohort: where fraction is below 1, ε holds for those who do not know"
            " (metrics.jsonl tells)"
        ),
        "what other runs of the same nodes give away: this ε is of one run",
    ),
}
UNKNOWN = "–"
OF_TEXTS = (
    "The head was made of texts, not of records: metrics are of records, and so is a temperature or"
    " a threshold where one was chosen."
)


def not_covered(plan: Plan) -> list[str]:
    """Return what ε does not cover, in sentences; nothing where there is no ε."""
    mode = plan.privacy.mode
    if mode == "none":
        return []
    lines = [*NOT_COVERED_BY_MODE[mode], *NOT_COVERED]
    if plan.train.method == "closed-form":
        lines = [line for line in lines if line != COUNT_BY_RATE]
    return lines


def model_card(plan: Plan, result: Result, preprocess: Mapping[str, Any]) -> str:
    """Return the card as Markdown.

    Args:
        preprocess: the backbone's preprocessing as JSON values.
    """
    nodes = {name: row for name, row in sorted(result.final.nodes.items()) if row}
    lines = [
        f"# Model card: {plan.name}",
        "",
        'Headings as in Mitchell et al., "Model cards for model reporting" (FAT* 2019).'
        " Every line is a fact of the run.",
        *_details(plan, result),
        *_intended_use(plan),
        *_factors(plan, result),
        *_metrics(plan, result),
        *_evaluation_data(result, nodes, preprocess),
        *_training_data(result, nodes),
        *_analyses(result, nodes),
        *_ethics(plan, result),
        *_caveats(result),
    ]
    return "\n".join(lines) + "\n"


# ── its parts, in their order ─────────────────────────────────────────────────────────────────────
def _details(plan: Plan, result: Result) -> list[str]:
    train = plan.train
    sizes = result.bytes
    versions = [f"{name} {number}" for name, number in result.versions.items()]
    method = f"`{plan.adapter.method}`"
    each = f"{train.local_epochs} local epochs"
    if train.local_steps is not None:
        each = f"{train.local_steps} local steps"
    combined = plan.aggregate.strategy
    if plan.aggregate.weighting == "equal":
        combined += ", every site of the same weight"
    training = [
        f"- Training: {train.rounds} rounds of {each}, batch size {train.batch_size},",
        f"  {train.optimizer.name} at {train.optimizer.lr:g}; combined by {combined}",
    ]
    if train.method == "closed-form":
        training = ["- Training: one round; the head is solved from sums over all sites' records"]
    if begins_with_texts(train):
        training.append(f"- First head: {_name_texts(plan)}, by a pair of encoders")
    if trains_nothing(train):
        training = [f"- Training: none; the head is {_name_texts(plan)}, by a pair of encoders"]
    rounds = f"{result.rounds_done} of {train.rounds} rounds"
    return [
        *_heading("## Model details"),
        f"- What: `{result.backbone.name}`, frozen, with a {method} adapter and a head",
        f"- Question: {as_markdown(TASKS[plan.task.question].describe(plan.task))}",
        f"- Size: {result.adapter.values:,} {_name_values(train)} ({sizes.adapter:,} bytes) on a"
        " backbone of",
        f"  {sizes.backbone:,} bytes",
        f"- Backbone: `{result.backbone.fingerprint_before}`",
        f"- Plan: `{result.plan_hash}` (in full in `model.json`)",
        f"- Made with: {', '.join(versions)}",
        *_name_devices(result),
        *training,
        f"- Status of the run: {result.status}, {rounds}, seed {plan.seed}",
        *_choice(result),
        "- License and contact: not stated in the plan; ask the coordinator of the run",
    ]


def _name_devices(result: Result) -> list[str]:
    """Return where sites computed, and the frozen part's precision."""
    devices = sorted(set(filter(None, result.devices.values())))
    if not devices:
        return []
    listed = as_markdown("; ".join(devices))
    return [f"- Computed on: {listed}; the frozen part in {result.precision}"]


def _name_values(train: TrainSection) -> str:
    return "values of texts" if trains_nothing(train) else "trained values"


def _name_texts(plan: Plan) -> str:
    """Return what a head is made of where texts make it, with the first of them."""
    texts = plan.task.texts
    first = as_markdown(texts[0][0])
    return f"what {sum(map(len, texts)):,} texts say of the classes, such as “{first}”"


def _intended_use(plan: Plan) -> list[str]:
    kind = "the kind the nodes trained on"
    if trains_nothing(plan.train):
        kind = "the kind the nodes measured it on"
    return [
        *_heading("## Intended use"),
        f"- Primary use: {plan.task.kind}, the question above, on inputs of {kind}",
        "- Users: those who can compare its answers with their own before relying on them",
        "- Out of scope: clinical decisions. It has not been validated for clinical use, nor on any"
        " site but those below",
    ]


def _factors(plan: Plan, result: Result) -> list[str]:
    return [
        *_heading("## Factors"),
        "- Sites: each node is a site with its own patients, devices and habits; results are given"
        " for each of them",
        f"- People: {_people(plan, result)}",
        "- Instruments: what made the inputs is known at the nodes only",
    ]


def _metrics(plan: Plan, result: Result) -> list[str]:
    return [
        *_heading("## Metrics"),
        f"- Measures: {_list_measures(plan)}",
        f"- Decision threshold: {_describe_threshold(plan, result)}",
        "- Variation: shares of test examples with 95 % score intervals (Wilson 1927); of one run"
        " and one seed",
    ]


def _choice(result: Result) -> list[str]:
    """Return which round the model is of, and its temperature, where they were chosen."""
    sentences = []
    if result.validation is not None:
        sentences += describe_validation(result.validation, result.rounds_done)
    if result.calibration is not None:
        sentences.append(describe_calibration(result.calibration))
    return [f"- {sentence[0].upper()}{sentence[1:]}" for sentence in sentences]


def _list_measures(plan: Plan) -> str:
    """Return what is measured, and how areas under curves merge across sites."""
    measured = ", ".join(plan.evaluate.metrics)
    if {"auroc", "auprc"}.isdisjoint(plan.evaluate.metrics):
        return f"{measured}, from sums that merge across sites"
    return f"{measured}; areas under curves from histograms of scores, which merge across sites"


def _describe_threshold(plan: Plan, result: Result) -> str:
    point = result.operating_point
    if not plan.task.classes:
        return "none: the answer is what is told"
    if point is None:
        return "even odds, or the most probable class; none was tuned"
    return describe_operating_point(point, as_markdown(plan.task.classes[1]))


def _evaluation_data(
    result: Result, nodes: Mapping[str, Metrics], preprocess: Mapping[str, Any]
) -> list[str]:
    examples = result.final.global_.get("examples", 0)
    steps = [f"{key} {value}" for key, value in preprocess.items() if value not in (None, [], {})]
    return [
        *_heading("## Evaluation data"),
        f"- Each node's own test split, which no training saw: {examples:,} examples,"
        f" {len(nodes)} nodes",
        f"- Preprocessing: {', '.join(steps) or 'none'}",
    ]


def _training_data(result: Result, nodes: Mapping[str, Metrics]) -> list[str]:
    count = len(result.nodes or nodes)
    return [
        *_heading("## Training data"),
        f"Data stayed at {count} nodes; this run knows their number and weights, not their"
        " contents.",
    ]


def _analyses(result: Result, nodes: Mapping[str, Metrics]) -> list[str]:
    measures = main_measures(result.question)
    return [
        *_heading("## Quantitative analyses"),
        *_head("node", measures),
        _row("all nodes together", result.final.global_, measures),
        *(_row(name, row, measures) for name, row in nodes.items()),
        "",
        _gap(nodes, measures[0]),
        "",
        *_groups(result.final.subgroups, measures),
        *_labels(result.final.labels),
    ]


def _ethics(plan: Plan, result: Result) -> list[str]:
    return [
        *_heading("## Ethical considerations"),
        f"- Records never left the nodes. What left them: {_name_sent(plan)}, and what the privacy"
        " part lists",
        "- Mistakes harm those whom they concern; the run does not weigh one kind of mistake"
        " against another",
        *_heading("### Privacy"),
        *_privacy(plan, result),
    ]


def _name_sent(plan: Plan) -> str:
    """Return what nodes sent of their training."""
    sent: list[str] = []
    if rounds_for(plan.train, "histograms"):
        sent.append("histograms of their columns")
    if rounds_for(plan.train, "sums"):
        sent.append("sums over their records")
    if rounds_for(plan.train, "steps"):
        sent.append("the adapter's values in each round of steps")
    return " and ".join(sent) or "nothing of any training"


def _caveats(result: Result) -> list[str]:
    return [
        *_heading("## Caveats and recommendations"),
        *_left_out(result),
        "- Measure it on your own data before use, and again when patients, devices or habits"
        " change",
        "- Repeat it before you build on it: `fedgraft reproduce` says what agrees",
    ]


# ── what a part says ──────────────────────────────────────────────────────────────────────────────
def _heading(text: str) -> list[str]:
    return ["", text, ""]


def _head(what: str, measures: Sequence[Measure]) -> list[str]:
    """Return a table's head: shares have an interval beside them."""
    cells = [what, "examples"]
    for measure in measures:
        cells.append(measure.words)
        if measure.is_share:
            cells.append("95 % interval")
    return [f"| {' | '.join(cells)} |", "|---" * len(cells) + "|"]


def _row(name: str, metrics: Metrics, measures: Sequence[Measure]) -> str:
    count = metrics.get("examples")
    cells = [as_markdown(name), UNKNOWN if count is None else f"{count:,}"]
    for measure in measures:
        value = metrics.get(measure.key)
        cells.append(_number(value))
        if measure.is_share:
            cells.append(_interval(value, count))
    return f"| {' | '.join(cells)} |"


def _interval(share: float | None, count: int | None) -> str:
    if share is None or not count:
        return UNKNOWN
    low, high = wilson(share, count)
    return f"{low:.3f}–{high:.3f}"


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % score interval of a share of `count` examples (Wilson 1927, JASA 22:209)."""
    scale = 1 + z**2 / count
    middle = (share + z**2 / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _gap(nodes: Mapping[str, Metrics], measure: Measure) -> str:
    """Return the worst site, and how far it is from the best."""
    known = {}
    for name, row in nodes.items():
        if row.get(measure.key) is not None:
            known[name] = row[measure.key]
    if len(known) < 2:
        return "Differences between sites: not known."
    worst = min(known, key=known.__getitem__)
    best = max(known, key=known.__getitem__)
    if measure.lower:
        worst, best = best, worst
    apart = f"{measure.show_gap(abs(known[best] - known[worst]))} from the best"
    if not measure.lower:
        apart = f"{measure.show_gap(known[best] - known[worst])} below the best"
    return f"Worst site: {as_markdown(worst)}; {apart}, {as_markdown(best)}."


def _people(plan: Plan, result: Result) -> str:
    """Return which columns name groups of people, and whether anything was told of them."""
    columns = plan.evaluate.subgroups
    if not columns:
        return (
            "the plan names no column such as sex, age or skin; whether results differ between"
            " groups is not known"
        )
    names = [as_markdown(f"{each.column} ({', '.join(each.groups)})") for each in columns]
    results = "no node told of any of these groups"
    if any(result.final.subgroups.values()):
        results = "see Quantitative analyses"
    return f"{', '.join(names)}; {results}"


def _groups(
    subgroups: Mapping[str, Mapping[str, Metrics]], measures: Sequence[Measure]
) -> list[str]:
    """Return a table of the groups that nodes told of."""
    rows = []
    for column, groups in subgroups.items():
        for name, row in groups.items():
            rows.append(_row(f"{column}: {name}", row, measures))
    if not rows:
        return ["Groups of people across sites: not known, see Factors."]
    return [*_head("group, over the nodes that told of it", measures), *rows]


def _labels(labels: Mapping[str, Metrics]) -> list[str]:
    """Return a table of the labels, where a record has several."""
    if not labels:
        return []
    measures = measures_in(next(iter(labels.values())))
    titles = ["label", "there are, of those known", *(each.words for each in measures)]
    lines = ["", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, row in labels.items():
        there = f"{row['positives']:,} of {row['examples']:,}"
        values = [_number(row[each.key]) for each in measures]
        lines.append(f"| {' | '.join([as_markdown(name), there, *values])} |")
    return lines


def _left_out(result: Result) -> list[str]:
    if not result.refused:
        return ["- No update was left out"]
    lines = ["- Updates left out:"]
    for refusal in result.refused:
        why = as_markdown(f"{refusal.node}: {refusal.reason}")
        lines.append(f"  - round {refusal.round}, {why}")
    return lines


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"


def _privacy(plan: Plan, result: Result) -> Sequence[str]:
    """Return ε with its unit, neighbours, δ and accountant, and what it does not cover."""
    mode = plan.privacy.mode
    if mode == "none":
        if trains_nothing(plan.train):
            return [OF_TEXTS]
        sent = "sums" if plan.train.method == "closed-form" else "updates"
        return [f"No differential privacy: the {sent} may reveal training data."]
    if not result.privacy:
        return [f"Mode {mode}; no round was finished, so nothing was spent."]
    worst = max(result.privacy.values(), key=lambda spending: spending.epsilon)
    epsilon = f"ε ≤ {shown(worst.epsilon)} at δ = {worst.delta:g}"
    rounds = f"counted over all {result.rounds_done} rounds of this run by the"
    return [
        f"Mode `{mode}`: {epsilon} at each of {len(result.privacy)} nodes,",
        f"unit {worst.unit} ({worst.neighbours}), {rounds}",
        f"{worst.accountant.upper()} accountant. Not covered by it:",
        "",
        *(f"- {line}" for line in result.not_covered_by_epsilon),
        "",
    ]
