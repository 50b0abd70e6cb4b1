"""MODEL_CARD.md of a shared model: facts of the run, under the field's usual headings (Mitchell et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.accounting import shown
from common.plan import Plan

NOT_COVERED = (  # what else is learnt about a node under differential privacy
    "metrics on the nodes' test splits, where a node reports them without noise",
    "that a node takes part, and when and how fast it answers",
    "the names of the classes, and what the plan says",
    "that a refusal was given, and its reason",
)
NOT_COVERED_BY_MODE = {
    "sample": ("the number of training examples or patients, rounded down, by the sample rate",),
    "local": (),
    "central": (
        "the coordinator sees each node's clipped update: this ε is for all others, who see the shared model",
        "who was in each cohort: where fraction is below 1, ε holds for those who do not know (metrics.jsonl tells)",
        "what other runs of the same nodes give away: this ε is of one run",
    ),
}


def not_covered(plan: Plan) -> list[str]:
    """What ε does not cover, in sentences; nothing where there is no ε."""
    mode = plan.privacy.mode
    return [] if mode == "none" else [*NOT_COVERED_BY_MODE[mode], *NOT_COVERED]


def model_card(plan: Plan, result: Mapping[str, Any]) -> str:
    """The card as Markdown. Nothing in it is a guess: what the run does not know is said not to be known."""
    final, spent, adapter = result["final"], result["bytes"], plan.adapter
    nodes = final["nodes"]
    rows = "".join(
        f"| {name} | {metrics.get('examples', '–')} | "
        f"{_number(metrics.get('accuracy'))} | {_number(metrics.get('auroc'))} |\n"
        for name, metrics in (("all nodes together", final["global"]), *sorted(nodes.items()))
        if metrics
    )
    refused = "".join(f"- round {row['round']}, {row['node']}: {row['reason']}\n" for row in result["refused"])
    return f"""# Model card: {plan.name}

## Model details

- What: `{result["backbone"]["name"]}`, frozen, with a `{adapter.method}` adapter and a head for
  {len(plan.task.classes)} classes: {", ".join(plan.task.classes)}
- Backbone: `{result["backbone"]["fingerprint_before"]}`
- Plan: `{result["plan_hash"]}` (in full in `model.json`)
- Made with: {", ".join(f"{name} {number}" for name, number in result["versions"].items())}
- Status of the run: {result["status"]}, {result["rounds_done"]} of {plan.train.rounds} rounds, seed {plan.seed}

## Intended use

{plan.task.kind} of the classes above, on inputs of the kind the nodes trained on. It has not been validated for
clinical use.

## Training data

Data stayed at {len(nodes)} nodes; this run knows their number and sizes, not their contents.

## Training procedure

{plan.train.rounds} rounds of {plan.train.local_epochs} local epochs, batch size {plan.train.batch_size},
{plan.train.optimizer.name} at {plan.train.optimizer.lr:g}; combined by {plan.aggregate.strategy}.
An update is {spent["adapter"]:,} bytes; full fine-tuning would send {spent["full_model"]:,}.

## Evaluation

On each node's own test split:

| node | examples | accuracy | AUROC |
|---|---|---|---|
{rows}
## Privacy

{_privacy(plan, result)}

## Limitations

{"Updates left out:" if refused else "No update was left out."}
{refused}"""


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
