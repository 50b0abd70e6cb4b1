"""The page's part on what left each building: every tensor by name, bytes by site and round, under
which approval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgraft.common.plan.plan import Plan
from fedgraft.common.wire.update import BESIDE
from fedgraft.simulations.report import page, pictures
from fedgraft.simulations.results_table import size

Result = Mapping[str, Any]


def section(plan: Plan, result: Result, run: Path, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tensors, bytes and rounds by site; the approval they left under; updates that were left out.

    Args:
        result: the run's result.json.
        lines: of its metrics.jsonl.
    """
    spent, tensors = result["bytes"], _tensors(run)
    sent: dict[str, list[int]] = {}
    for line in lines:
        if "bytes" in line:
            sent.setdefault(line["node"], []).append(line["bytes"]["up"])
    names = page.table(
        ["tensor", "shape", "bytes in each round"],
        [[name, " × ".join(map(str, shape)), f"{count:,}"] for name, shape, count in tensors],
        texts=[1],
    )
    by_site = page.table(
        ["site", "rounds", "bytes sent", "in each round"],
        [
            [name, str(len(each)), f"{sum(each):,}", f"{sum(each) / len(each):,.0f}"]
            for name, each in sorted(sent.items())
        ],
    )
    metrics = "No metrics left a site."
    if any(line.get("received") or line.get("final") for line in lines):
        metrics = (
            "For the metrics on this page it sent sums over its test data: answers by true and"
            " given class, histograms of scores, losses."
        )
    if result["final"].get("subgroups"):
        metrics += " After the last round the same sums for the groups of people above."
    refused = [f"round {row['round']}, {row['node']}: {row['reason']}" for row in result["refused"]]
    return [
        page.heading("What left each building"),
        page.paragraph(
            f"In each round a site sent its adapter, {len(tensors)} tensors (tables of numbers) of"
            f" {size(spent['adapter'])} in all, and {BESIDE[plan.privacy.mode]}. {metrics} No"
            " image, no table row, no file name. Nothing else is accepted by the code that writes"
            " and reads the messages; bytes below are with their framing."
        ),
        page.details(f"The {len(tensors)} tensors", names) if len(tensors) > 12 else names,
        page.details(f"Bytes by site ({len(sent)})", by_site) if len(sent) > 12 else by_site,
        page.figure(
            pictures.bytes_sent(
                [
                    ("this adapter, one update", spent["adapter"]),
                    ("full fine-tuning, one update", spent["full_model"]),
                    ("the backbone, sent once", spent["backbone"]),
                    ("this run, everything", spent["total"]),
                ]
            ),
            "Bytes on a log axis: an update of this plan, one of full fine-tuning, and all that"
            " crossed the wire.",
        ),
        page.facts(
            [
                ("under which approval", _approval(result)),
                ("plan", result["plan_hash"]),
                ("backbone", result["backbone"]["fingerprint_before"]),
            ]
        ),
        (
            page.heading("Left out", 3) + page.bullets(refused)
            if refused
            else page.paragraph("No update was left out.", "quiet")
        ),
    ]


def _approval(result: Result) -> str:
    if "engine" in result:
        return (
            "a simulation: the nodes were made for it and their policies approve any plan and"
            " backbone"
        )
    return (
        "each site's own node file approves plans and backbones by these hashes; who did not is"
        " listed as left out"
    )


def _tensors(run: Path) -> list[tuple[str, list[int], int]]:
    """What travels, from the last checkpoint: name, shape, bytes."""
    from safetensors import safe_open

    files = sorted((run / "checkpoints").glob("round-????/adapter.safetensors"))
    if not files:
        return []
    with safe_open(files[-1], framework="numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
    sizes = {name: 4 for name in shapes}
    for name, shape in shapes.items():
        for length in shape:
            sizes[name] *= length
    return [(name, shapes[name], sizes[name]) for name in sorted(shapes)]
