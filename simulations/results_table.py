"""The table at the end of a simulation: the shared model beside its baselines, over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fedgraft.common.privacy.accounting import shown

SPREAD = (("accuracy", "accuracy"), ("auroc", "AUROC"))  # for a terminal of 80 columns
MEAN = (("loss", "loss"), ("calibration_error", "ECE"))
COLUMNS = (
    ("accuracy", "accuracy"),
    ("auroc", "AUROC"),
    ("f1", "F1"),
    ("loss", "loss"),
    ("calibration_error", "ECE"),
)
Finder = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]


def rows_of(
    results: Sequence[Mapping[str, Any]],
) -> list[tuple[str, list[Mapping[str, Any]], list[int] | None]]:
    """One row for each model that was measured: its name, its metrics by seed, its bytes by
    seed.
    """

    def baseline(name: str) -> Finder:
        return lambda result: result["baselines"].get(name)

    finders: list[tuple[str, Finder]] = [
        (
            "shared model",
            lambda result: result["final"]["global"] | {"bytes": round_bytes(result["bytes"])},
        ),
        ("head only", baseline("head")),
        ("random backbone", baseline("random-backbone")),
        ("alone, mean", baseline("alone")),
        ("alone, best", lambda result: result["baselines"].get("alone", {}).get("best")),
        ("full fine-tuning", baseline("full")),
        ("pooled data", baseline("pooled")),
    ]
    rows = []
    for name, find in finders:
        found = [row for result in results if (row := find(result))]
        if found:
            spent = [row["bytes"] for row in found if "bytes" in row]
            rows.append((name, found, spent or None))
    return rows


def print_table(results: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Mean ± standard deviation over seeds; `sent` is what crossed the wire in the rounds, both
    ways.
    """
    first = results[0]
    seeds = ", ".join(str(result["seed"]) for result in results)
    title = f"{first['name']}, seeds {seeds}: mean ± standard deviation"
    table = Table(
        title=title if len(results) > 1 else f"{first['name']}, seed {seeds}", title_justify="left"
    )
    table.add_column("model", no_wrap=True)
    for _, head in (*SPREAD, *MEAN):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("sent", justify="right", no_wrap=True)
    for name, found, spent in rows_of(results):
        cells = [spread([row.get(key) for row in found]) for key, _ in SPREAD]
        cells += [spread([row.get(key) for row in found]).split(" ±")[0] for key, _ in MEAN]
        table.add_row(name, *cells, size(float(np.mean(spent))) if spent else "–")
    console.print(table)
    for line in sayings(results):
        console.print(line, soft_wrap=True)


def sayings(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the table means, in sentences with numbers."""
    said = []
    first = results[0]
    spent = first["bytes"]
    times = spent["full_model"] / spent["adapter"]
    said.append(
        f"one update is {size(spent['adapter'])}; full fine-tuning would send"
        f" {size(spent['full_model'])}, {times:.0f} times as much; the backbone"
        f" ({size(spent['backbone'])}) went out once to each of {spent['handout']['nodes']} nodes"
    )
    pairs = [
        (result["final"]["global"], result["baselines"]["random-backbone"])
        for result in results
        if "random-backbone" in result["baselines"]
    ]
    for key, head in COLUMNS[:2]:
        gains = [
            ours[key] - theirs[key] for ours, theirs in pairs if ours.get(key) and theirs.get(key)
        ]
        if gains:
            said.append(
                f"what the pre-trained backbone brings: {100 * np.mean(gains):+.1f} points of"
                f" {head} over a random one"
                + (
                    f" (least {100 * min(gains):+.1f} over {len(gains)} seeds)"
                    if len(gains) > 1
                    else ""
                )
            )
    said += _privacy(results)
    said += dict.fromkeys(note for result in results for note in result.get("notes", []))
    for result in results:
        for refusal in result["refused"]:
            said.append(
                f"seed {result['seed']}, round {refusal['round']}: {refusal['node']} left out:"
                f" {refusal['reason']}"
            )
    return said


def _privacy(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The largest ε of any node and seed, with all that it needs to mean something, and where it is
    counted.
    """
    spent = [entry for result in results for entry in result["privacy"].values()]
    if not spent:
        return []
    worst = max(spent, key=lambda entry: entry["epsilon"])
    said = (
        f"privacy: ε ≤ {shown(worst['epsilon'])} at δ = {worst['delta']:g} at every node, for"
        f" {worst['neighbours']}; all rounds composed, {worst['accountant'].upper()} accountant;"
        " report.html lists what ε does not cover"
    )
    ledger = results[0].get("ledger")
    return [said, f"ledger: {ledger}"] if ledger else [said]


def spread(values: Sequence[float | None]) -> str:
    """`0.861 ± 0.004`; one value alone; a dash where a metric is undefined."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    if len(known) == 1:
        return f"{known[0]:.3f}"
    return f"{np.mean(known):.3f} ± {np.std(known, ddof=1):.3f}"


def round_bytes(spent: Mapping[str, Any]) -> int:
    """Bytes of all rounds, down and up; without the hand-out and the last evaluation."""
    return sum(row["down"] + row["up"] for row in spent["rounds"])


def size(count: float) -> str:
    """Bytes for people: 203 kB, 1.1 MB (powers of 1,000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return ""
