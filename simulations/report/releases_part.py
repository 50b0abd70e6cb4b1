"""The page's part on what left each building: every tensor by name, bytes by site and round, under
which approval.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedgraft.common import run_files
from fedgraft.common.model.solve_head import closed_form_of, releases_products, sums_products
from fedgraft.common.plan.phases import has_sums, rounds_for, trains_nothing
from fedgraft.common.plan.plan import Plan
from fedgraft.common.tasks import TASKS
from fedgraft.common.wire.update import BESIDE
from fedgraft.simulations.readable import show_bytes
from fedgraft.simulations.report import page
from fedgraft.simulations.report.pictures import draw_bytes
from fedgraft.simulations.results_in_words import count_largest_reply

Result = Mapping[str, Any]
# lines of a run's metrics.jsonl
Lines = Sequence[Mapping[str, Any]]

NO_METRICS = "No metrics left a site."
METRICS = "For the metrics on this page it sent sums over its test data: {}."
OF_VALIDATION = (
    " The same sums over its validation data, which are neither trained nor tested on, told which"
    " round to keep or how plans compare."
)
OF_GROUPS = " After the last round the same sums for the groups of people above."
BYTES_BELOW = (
    "Nothing else is accepted by the code that writes and reads the messages; bytes below are with"
    " their framing."
)
OF_TEXTS = (
    "The model was made of texts, at the server: no update and no sum of features left a site."
)
HISTOGRAMS = (
    "In the first round a site sent how often each value of its columns of numbers occurs, rounded"
    " to eight significant bits: values that a single person has are among them."
)
CAPTION = (
    "Bytes on a log axis: what a site sent at once, an update of full fine-tuning, and all that"
    " crossed the wire."
)
SIMULATED = (
    "a simulation: the nodes were made for it and their policies approve any plan and backbone"
)
DEPLOYED = (
    "each site's own node file approves plans and backbones by these hashes; who did not is listed"
    " as left out"
)

# longer tables are folded up
MOST_ROWS = 12
FLOAT32_BYTES = 4


class SentTensor(NamedTuple):
    """A tensor that travels in each round."""

    name: str
    shape: Sequence[int]

    @property
    def bytes(self) -> int:
        """Its size on the wire, without framing."""
        return FLOAT32_BYTES * math.prod(self.shape)


def show_releases(plan: Plan, result: Result, run: Path, lines: Lines) -> list[str]:
    """Return tensors, bytes and rounds by site; the approval they left under; updates that were
    left out.

    Args:
        result: the run's result.json.
        lines: of its metrics.jsonl.
    """
    tensors = _read_tensors(run)
    sent = _collect_bytes(lines)
    update = _describe_update(plan, result, lines, len(tensors))
    names = _fold(f"The {len(tensors)} tensors", _tensors_table(tensors), len(tensors))
    if not rounds_for(plan.train, "steps"):
        # the head is solved at the server, or made of texts: its tensors left no site
        names = ""
    by_site = ""
    if sent:
        by_site = _fold(f"Bytes by site ({len(sent)})", _sites_table(sent), len(sent))
    sizes = page.figure(_draw_sizes(result), CAPTION)
    hashes = page.facts(_list_hashes(result))
    refusals = _show_refusals(result["refused"])
    return [
        page.heading("What left each building"),
        page.paragraph(update),
        names,
        by_site,
        sizes,
        hashes,
        refusals,
    ]


def _describe_update(plan: Plan, result: Result, lines: Lines, tensors: int) -> str:
    adapter = show_bytes(result["bytes"]["adapter"])
    beside = BESIDE[plan.privacy.mode]
    metrics = _describe_metrics(plan, result, lines)
    if has_sums(plan.train):
        metrics = f"{_describe_sums(plan)} {metrics}"
    if rounds_for(plan.train, "histograms"):
        metrics = f"{HISTOGRAMS} {metrics}"
    if trains_nothing(plan.train):
        metrics = f"{OF_TEXTS} {metrics}"
    if not rounds_for(plan.train, "steps"):
        return f"{metrics} No image, no table row, no file name. {BYTES_BELOW}"
    return (
        f"In each round a site sent its adapter, {tensors} tensors (tables of numbers) of"
        f" {adapter} in all, and {beside}. {metrics} No image, no table row, no file name."
        f" {BYTES_BELOW}"
    )


def _describe_sums(plan: Plan) -> str:
    """Return what leaves a site in a round of sums."""
    closed = closed_form_of(plan)
    if plan.privacy.at_node:
        products = ""
        if releases_products(plan):
            products = " sums of the features' products with one another,"
        return (
            f"Once, a site sent sums of features of its training records {closed.by},{products} and"
            f" {closed.counts}, with noise; what was spent of its privacy budget; and the"
            " seconds that it took."
        )
    products = "their products with one another"
    if not sums_products(plan):
        products = "their squares"
    return (
        f"Once, a site sent sums over its training records: of features, of {products}, and of"
        f" features {closed.by}; {closed.counts}; how many records there are; and the seconds that"
        " it took. Of few records such sums can give records away."
    )


def _describe_metrics(plan: Plan, result: Result, lines: Lines) -> str:
    measured = any(line.get("received") or line.get("final") for line in lines)
    words = NO_METRICS
    if measured:
        words = METRICS.format(TASKS[plan.task.question].reports)
    if any("validation" in line for line in lines):
        words += OF_VALIDATION
    if result["final"].get("subgroups"):
        words += OF_GROUPS
    return words


def _draw_sizes(result: Result) -> bytes:
    spent = result["bytes"]
    one: dict[str, float] = {}
    if result.get("closed_form"):
        one = {"the sums of one site": round(count_largest_reply(result))}
    elif spent["rounds"]:
        one = {"this adapter, one update": spent["adapter"]}
    return draw_bytes(
        {
            **one,
            "full fine-tuning, one update": spent["full_model"],
            "the backbone, sent once": spent["backbone"],
            "this run, everything": spent["total"],
        }
    )


def _list_hashes(result: Result) -> list[tuple[str, str]]:
    approval = SIMULATED if "engine" in result else DEPLOYED
    return [
        ("under which approval", approval),
        ("plan", result["plan_hash"]),
        ("backbone", result["backbone"]["fingerprint_before"]),
    ]


def _show_refusals(refused: Sequence[Mapping[str, Any]]) -> str:
    if not refused:
        return page.paragraph("Nothing that a site sent was left out.", "quiet")
    lines = []
    for row in refused:
        lines.append(f"round {row['round']}, {row['node']}: {row['reason']}")
    return page.heading("Left out", 3) + page.bullets(lines)


def _fold(summary: str, table: str, rows: int) -> str:
    if rows <= MOST_ROWS:
        return table
    return page.details(summary, table)


# ── tensors ───────────────────────────────────────────────────────────────────────────────────────
def _tensors_table(tensors: Sequence[SentTensor]) -> str:
    rows = []
    for tensor in tensors:
        shape = " × ".join(map(str, tensor.shape))
        rows.append([tensor.name, shape, f"{tensor.bytes:,}"])
    return page.table(["tensor", "shape", "bytes in each round"], rows, texts=[1])


def _read_tensors(run: Path) -> list[SentTensor]:
    """Return what travels, from the last checkpoint, by name."""
    from safetensors import safe_open

    checkpoints = run_files.checkpoints_of(run)
    if not checkpoints:
        return []
    tensors = []
    with safe_open(checkpoints[-1] / run_files.ADAPTER, framework="numpy") as file:
        # the file is no mapping: its keys must be asked for
        for name in sorted(file.keys()):
            tensors.append(SentTensor(name, file.get_slice(name).get_shape()))
    return tensors


# ── sites ─────────────────────────────────────────────────────────────────────────────────────────
def _collect_bytes(lines: Lines) -> dict[str, list[int]]:
    """Return the bytes that each site sent, by round."""
    sent: dict[str, list[int]] = defaultdict(list)
    for line in lines:
        if "bytes" in line:
            sent[line["node"]].append(line["bytes"]["up"])
    return sent


def _sites_table(sent: Mapping[str, Sequence[int]]) -> str:
    rows = []
    for site, by_round in sorted(sent.items()):
        total = sum(by_round)
        rounds = len(by_round)
        rows.append([site, str(rounds), f"{total:,}", f"{total / rounds:,.0f}"])
    return page.table(["site", "rounds", "bytes sent", "in each round"], rows)
