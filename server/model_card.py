"""MODEL_CARD.md of a shared model: facts of the run, under the field's usual headings (Mitchell et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.plan import Plan


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

{"No differential privacy: the updates may reveal training data." if plan.privacy.mode == "none" else plan.privacy.mode}

## Limitations

{"Updates left out:" if refused else "No update was left out."}
{refused}"""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
