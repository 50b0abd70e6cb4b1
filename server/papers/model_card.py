"""MODEL_CARD.md of a shared model: facts of the run, under the field's usual headings (Mitchell et
al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.accounting import shown

NOT_COVERED = (  # what else is learnt about a node under differential privacy
    "metrics on the nodes' test splits, where a node reports them without noise",
    "that a node takes part, and when and how fast it answers",
    "the names of the classes, and what the plan says",
    "that a refusal was given, and its reason",
)
NOT_COVERED_BY_MODE = {
    "sample": (
        (
            "statistics of a whole node, such as its share of sick patients: ε hides one example or"
            " patient, not what all of a node's data have in common; only mode local hides that"
        ),
        "the number of training examples or patients, rounded down, by the sample rate",
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


def not_covered(plan: Plan) -> list[str]:
    """What ε does not cover, in sentences; nothing where there is no ε."""
    mode = plan.privacy.mode
    return [] if mode == "none" else [*NOT_COVERED_BY_MODE[mode], *NOT_COVERED]


def model_card(plan: Plan, result: Mapping[str, Any], preprocess: Mapping[str, Any]) -> str:
    """The card as Markdown. Nothing in it is a guess: what the run does not know is said not to be
    known.

    Args:
        preprocess: the backbone's preprocessing as JSON values.
    """
    final, spent, adapter = result["final"], result["bytes"], plan.adapter
    nodes = {name: row for name, row in sorted(final["nodes"].items()) if row}
    return f"""# Model card: {plan.name}

Headings as in Mitchell et al., "Model cards for model reporting" (FAT* 2019). Every line is a fact of the run.

## Model details

- What: `{result["backbone"]["name"]}`, frozen, with a `{adapter.method}` adapter and a head for
  {len(plan.task.classes)} classes: {", ".join(plan.task.classes)}
- Size: {result["adapter"]["values"]:,} trained values ({spent["adapter"]:,} bytes) on a backbone of
  {spent["backbone"]:,} bytes
- Backbone: `{result["backbone"]["fingerprint_before"]}`
- Plan: `{result["plan_hash"]}` (in full in `model.json`)
- Made with: {", ".join(f"{name} {number}" for name, number in result["versions"].items())}
- Training: {plan.train.rounds} rounds of {plan.train.local_epochs} local epochs, batch size {plan.train.batch_size},
  {plan.train.optimizer.name} at {plan.train.optimizer.lr:g}; combined by {plan.aggregate.strategy}
- Status of the run: {result["status"]}, {result["rounds_done"]} of {plan.train.rounds} rounds, seed {plan.seed}
- License and contact: not stated in the plan; ask the coordinator of the run

## Intended use

- Primary use: {plan.task.kind} of the classes above, on inputs of the kind the nodes trained on
- Users: those who can compare its answers with their own before relying on them
- Out of scope: clinical decisions. It has not been validated for clinical use, nor on any site but those below

## Factors

- Sites: each node is a site with its own patients, devices and habits; results are given for each of them
- People: {_people(plan, final)}
- Instruments: what made the inputs is known at the nodes only

## Metrics

- Measures: {", ".join(plan.evaluate.metrics)}; AUROC from histograms of scores, which merge across sites
- Decision threshold: the most probable class; none was tuned
- Variation: accuracy with 95 % score intervals (Wilson 1927) over test examples; of one run and one seed

## Evaluation data

- Each node's own test split, which no training saw: {final["global"].get("examples", 0):,} examples, {len(nodes)} nodes
- Preprocessing: {_preprocessing(preprocess)}

## Training data

Data stayed at {len(result.get("nodes") or nodes)} nodes; this run knows their number and weights, not their contents.

## Quantitative analyses

| node | examples | accuracy | 95 % interval | AUROC |
|---|---|---|---|---|
{_row("all nodes together", final["global"])}{"".join(_row(name, row) for name, row in nodes.items())}
{_gap(nodes)}

{_groups(final.get("subgroups", {}))}

## Ethical considerations

- Records never left the nodes. What left them: the adapter's values in each round, and what the privacy part lists
- Mistakes harm those whom they concern; the run does not weigh one kind of mistake against another

### Privacy

{_privacy(plan, result)}

## Caveats and recommendations

{_caveats(result)}- Measure it on your own data before use, and again when patients, devices or habits change
- Repeat it before you build on it: `fedgraft reproduce` says what agrees
"""


def _row(name: str, metrics: Mapping[str, Any]) -> str:
    accuracy, count = metrics.get("accuracy"), metrics.get("examples")
    interval = "–"
    if accuracy is not None and count:
        low, high = wilson(accuracy, count)
        interval = f"{low:.3f}–{high:.3f}"
    shown_count = "–" if count is None else f"{count:,}"
    return (
        f"| {name} | {shown_count} | {_number(accuracy)} | {interval} |"
        f" {_number(metrics.get('auroc'))} |\n"
    )


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % score interval of a share of `count` examples (Wilson 1927, JASA 22:209–212)."""
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _gap(nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """The worst site, and how far it is from the best."""
    known = {
        name: row["accuracy"] for name, row in nodes.items() if row.get("accuracy") is not None
    }
    if len(known) < 2:
        return "Differences between sites: not known."
    worst, best = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
    gap = 100 * (known[best] - known[worst])
    return f"Worst site: {worst}; {gap:.1f} points of accuracy below the best, {best}."


def _people(plan: Plan, final: Mapping[str, Any]) -> str:
    """Which columns name groups of people, and whether anything was told of them."""
    if not plan.evaluate.subgroups:
        return (
            "the plan names no column such as sex, age or skin; whether results differ between"
            " groups is not known"
        )
    named = ", ".join(
        f"{each.column} ({', '.join(each.groups)})" for each in plan.evaluate.subgroups
    )
    told = any(final.get("subgroups", {}).values())
    return (
        f"{named}; {'see Quantitative analyses' if told else 'no node told of any of these groups'}"
    )


def _groups(subgroups: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the groups that nodes told of."""
    rows = [
        _row(f"{column}: {name}", row)
        for column, told in subgroups.items()
        for name, row in told.items()
    ]
    if not rows:
        return "Groups of people across sites: not known, see Factors."
    head = (
        "| group, over the nodes that told of it | examples | accuracy | 95 % interval | AUROC |\n"
    )
    return head + "|---|---|---|---|---|\n" + "".join(rows).rstrip("\n")


def _preprocessing(preprocess: Mapping[str, Any]) -> str:
    known = [f"{key} {value}" for key, value in preprocess.items() if value not in (None, [], {})]
    return ", ".join(known) or "none"


def _caveats(result: Mapping[str, Any]) -> str:
    refused = result["refused"]
    if not refused:
        return "- No update was left out\n"
    listed = "".join(
        f"  - round {row['round']}, {row['node']}: {row['reason']}\n" for row in refused
    )
    return f"- Updates left out:\n{listed}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _privacy(plan: Plan, result: Mapping[str, Any]) -> str:
    """ε with its unit, neighbours, δ and accountant, and what it does not cover."""
    spent, mode = result["privacy"], plan.privacy.mode
    if mode == "none":
        return "No differential privacy: the updates may reveal training data."
    if not spent:
        return f"Mode {mode}; no round was finished, so nothing was spent."
    worst = max(spent.values(), key=lambda entry: entry["epsilon"])
    listed = "".join(f"- {line}\n" for line in result["not_covered_by_epsilon"])
    return f"""Mode `{mode}`: ε ≤ {shown(worst["epsilon"])} at δ = {worst["delta"]:g} at each of {len(spent)} nodes,
unit {worst["unit"]} ({worst["neighbours"]}), counted over all {result["rounds_done"]} rounds of this run by the
{worst["accountant"].upper()} accountant. Not covered by it:

{listed}"""
