"""One federation as one script: the ServerApp.

    plan → backbone → hand-out → rounds (cohort, training, validation, aggregation) → last
    evaluation → shared model

The run config names the plan and the folder (absolute paths on the coordinator's machine); nothing
else is read.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fedgraft.common.backbones.backbone import Backbone, backbone_state, fingerprint_of
from fedgraft.common.errors import RunFailed, UserError
from fedgraft.common.model.assembly import (
    backbone_bytes,
    full_model_bytes,
    plan_backbone,
    plan_model,
)
from fedgraft.common.model.shared_model import save_shared_model
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import find_plan, load_plan, plan_hash
from fedgraft.common.tasks.classification_sums import Sums, zero
from fedgraft.common.wire.update import (
    ADAPTER,
    AdapterUpdate,
    BadUpdate,
    Layout,
    pack,
    read_groups,
    read_sums,
)
from fedgraft.server.aggregation.aggregation import begin_aggregation
from fedgraft.server.aggregation.merged_groups import MergedGroups
from fedgraft.server.exchange import Replies, exchange
from fedgraft.server.handout import Roster, gather
from fedgraft.server.papers.model_card import model_card, not_covered
from fedgraft.server.papers.run_folder import Checkpoint, RunFolder
from fedgraft.server.rounds import Round

app = ServerApp()
log = logging.getLogger("fedgraft.server")


@dataclass(frozen=True)
class Federation:
    """What a run needs before its first message."""

    plan: Plan
    backbone: Backbone
    expected: int  # nodes to wait for
    patience: float = 120.0  # seconds to wait for them
    seeded_noise: bool = False  # central noise that can be repeated: for simulations only


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's entry: read the run config, federate. An error is written to the run's folder and
    raised.
    """
    config = context.run_config
    if not config.get("plan") or not config.get("out"):
        remedy = (
            'flwr run . --run-config \'plan="digits" out="/absolute/folder"'
            ' nodes="/absolute/nodes"\''
        )
        raise UserError("the run config names no plan or no out", where="run-config", remedy=remedy)
    plan_path, out = find_plan(str(config["plan"])), Path(str(config["out"]))
    plan = load_plan(plan_path)
    backbone = plan_backbone(plan, plan_path.parent, weights=str(config.get("weights", "")) or None)
    expected = int(config.get("nodes-expected", 0)) or plan.aggregate.min_nodes
    federation = Federation(plan, backbone, expected, seeded_noise=bool(config.get("seeded-noise")))
    plan_model(backbone, plan)  # targets that match nothing are told before a folder is made
    if config.get("resume"):
        federate(grid, federation, RunFolder.open_existing(out, plan), resume=True)
    else:
        federate(grid, federation, RunFolder.open_new(out, plan))


def federate(
    grid: Grid, federation: Federation, folder: RunFolder, *, resume: bool = False
) -> dict[str, Any]:
    """Run a plan over the nodes of a grid and leave the run's folder behind.

    Returns:
        The content of result.json.

    Raises:
        RunFailed: too few nodes joined, or too few valid updates in a round. What was finished is
            kept.
    """
    plan, backbone = federation.plan, federation.backbone
    started = time.perf_counter()

    # ── the shared model before any training ──────────────────────────────────────────────────────
    model = plan_model(backbone, plan)
    state = model.adapter_state()
    layout = Layout.of(state, model.drawn_state())
    first_round, memory = 1, {}
    result = opening(federation, layout)
    if resume:  # from the last finished round; a run that was cut off before it starts anew
        if (checkpoint := folder.latest()) is not None:
            state, result, first_round = checkpoint.adapter, checkpoint.so_far, checkpoint.round + 1
            memory = checkpoint.memory
        folder.drop_lines_after(first_round - 1)

    seconds = result["seconds"]
    earlier = seconds.get("total", 0.0)
    try:
        # ── the backbone, once to every node that lacks it ────────────────────────────────────────
        clock = time.perf_counter()
        roster = gather(
            grid, plan, backbone, expected=federation.expected, patience=federation.patience
        )
        note_handout(result, roster)
        seconds["handout"] = seconds.get("handout", 0.0) + time.perf_counter() - clock

        aggregation = begin_aggregation(
            plan, len(roster.nodes), seeded_noise=federation.seeded_noise
        )
        if memory:
            aggregation.restore(memory)

        # ── rounds ────────────────────────────────────────────────────────────────────────────────
        clock, before = time.perf_counter(), seconds.get("rounds", 0.0)
        for round_ in range(first_round, plan.train.rounds + 1):
            roster.refresh(grid, plan, backbone)  # nodes that came later
            note_handout(result, roster)
            names = aggregation.choose_cohort(list(roster.nodes), round_)
            sent = Round(plan, round_, layout, state, names, aggregation.clip)
            replies = exchange(
                grid,
                "train",
                message_content(state, layout, plan, round_, clip=sent.clip),
                {name: roster.nodes[name] for name in names},
                group=str(round_),
                timeout=plan.aggregate.round_timeout,
            )
            updates = read_round(
                result,
                folder,
                plan,
                round_,
                names,
                replies,
                layout=layout,
                offered=roster.examples,
                sent=state,
            )
            combined = aggregation.aggregate(sent, updates)
            if (spent := aggregation.spent(round_)) is not None:
                result["privacy"] = dict.fromkeys(sorted(result["nodes"]), spent.to_json())
            must_be_finite(combined, round_)
            seconds["rounds"] = before + time.perf_counter() - clock
            seconds["total"] = earlier + time.perf_counter() - started
            memory = aggregation.memory()
            folder.save_round(
                Checkpoint(round_, combined, memory, result | {"rounds_done": round_})
            )
            state = combined  # only now: a round that is run again must not have been seen

        # ── the last evaluation, on every node ────────────────────────────────────────────────────
        clock = time.perf_counter()
        evaluate_everywhere(grid, roster, plan, state, layout, result, folder)
        seconds["evaluate"] = time.perf_counter() - clock
        result["status"] = "completed"
        return result
    except Exception as error:
        result["status"], result["error"] = "failed", str(error)
        raise
    except KeyboardInterrupt:
        result["status"] = "interrupted"
        raise
    finally:
        # ── the shared model and its papers: of the last finished round, whatever happened ────────
        if (
            checkpoint := folder.latest()
        ) is not None:  # Ctrl-C falls between any two lines above: the folder knows
            state, result["rounds_done"] = checkpoint.adapter, checkpoint.round
            if (
                plan.privacy.mode == "central"
            ):  # noise that was never sent; what a node itself spent is spent
                result["privacy"] = checkpoint.so_far["privacy"]
        model.load_adapter_state(state)
        result["backbone"]["fingerprint_after"] = fingerprint_of(backbone_state(backbone))
        seconds["total"] = earlier + time.perf_counter() - started
        result["bytes"]["total"] = total_bytes(result["bytes"])
        result["peak_rss_bytes"] = peak_rss()
        if result["rounds_done"]:
            card = model_card(plan, result, backbone.preprocess.to_json())
            save_shared_model(folder.path / "shared_model", model, backbone, plan, card)
        folder.result(result)


# ── messages ──────────────────────────────────────────────────────────────────────────────────────
def message_content(
    state: dict[str, Tensor], layout: Layout, plan: Plan, round_: int, *, clip: float | None = None
) -> RecordDict:
    """What a train or evaluate message carries: the adapter, the plan's hash, the round; in mode
    central the clip.
    """
    about: dict[str, Any] = {"plan-hash": plan_hash(plan), "round": round_, "layout": layout.digest}
    if clip is not None:
        about["clip"] = clip
    return RecordDict({ADAPTER: pack(state, layout), "about": ConfigRecord(about)})


def read_round(
    result: dict[str, Any],
    folder: RunFolder,
    plan: Plan,
    round_: int,
    names: list[str],
    replies: Replies,
    *,
    layout: Layout,
    offered: Mapping[str, int],
    sent: Mapping[str, Tensor],
) -> dict[str, AdapterUpdate]:
    """The updates that may be averaged; a line for each node of the cohort, the round's bytes, and
    refusals.

    Of a reply that was read only what is averaged stays in memory: sums of metrics take more than a
    small adapter.

    Args:
        offered: the weight that each node said it would have, before the first round.
        sent: the adapter that the updates were made of.
    """
    updates: dict[str, AdapterUpdate] = {}
    lines = []
    for name in names:
        line: dict[str, Any] = {
            "round": round_,
            "node": name,
            "bytes": {"down": replies.down.get(name, 0), "up": replies.up.get(name, 0)},
        }
        if (content := replies.contents.pop(name, None)) is not None:
            try:
                update = checked(content, plan, round_, layout, offered[name], sent)
            except BadUpdate as error:
                replies.refused[name] = str(error)
            else:
                note_update(result, line, update)
                updates[name] = replace(update, received=None)
        if name not in updates:
            line["refused"] = replies.refused.get(name, "")
        lines.append(line)
    for line in lines:
        folder.line(line)
    result["bytes"]["rounds"].append(
        {
            "round": round_,
            "nodes": len(names),
            "down": sum(replies.down.values()),
            "up": sum(replies.up.values()),
        }
    )
    result["refused"] += [
        {"node": name, "round": round_, "reason": reason}
        for name, reason in sorted(replies.refused.items())
    ]
    return updates


def checked(
    content: RecordDict,
    plan: Plan,
    round_: int,
    layout: Layout,
    offered: int,
    sent: Mapping[str, Tensor],
) -> AdapterUpdate:
    """The update in a reply. Raises `BadUpdate` with the reason why it may not be averaged."""
    encoding = plan.aggregate.encoding
    update = AdapterUpdate.from_record(
        content, layout, round_, len(plan.task.classes), encoding=encoding, sent=sent
    )
    if (update.spent is not None) != plan.privacy.at_node:
        raise BadUpdate(
            f"privacy.mode is {plan.privacy.mode}, and the reply was made under another"
        )
    if update.examples > offered:
        raise BadUpdate(f"claims a weight of {update.examples} examples; it joined with {offered}")
    # under differential privacy all nodes weigh the same, whatever they say
    return update if plan.privacy.mode == "none" else replace(update, examples=1)


def evaluate_everywhere(
    grid: Grid,
    roster: Roster,
    plan: Plan,
    state: dict[str, Tensor],
    layout: Layout,
    result: dict[str, Any],
    folder: RunFolder,
) -> None:
    """Measure the final model at every node; fill `final` with each node's metrics, the merged
    ones, and groups'.
    """
    round_ = plan.train.rounds
    replies = exchange(
        grid,
        "evaluate",
        message_content(state, layout, plan, round_),
        roster.nodes,
        group="evaluate",
        timeout=plan.aggregate.round_timeout,
    )
    merged = zero(len(plan.task.classes))
    groups = MergedGroups(plan)
    for name in sorted(replies.contents):
        record = replies.contents[name].metric_records.get("received", MetricRecord())
        try:
            sums = read_sums(record, len(plan.task.classes))
            groups.add(read_groups(replies.contents[name], groups.sizes, sums))
        except BadUpdate as error:
            replies.refused[name] = str(error)
            continue
        merged = merged + sums
        result["final"]["nodes"][name] = chosen(sums, plan)
        folder.line({"round": round_, "node": name, "final": chosen(sums, plan)})
    result["final"]["global"] = chosen(merged, plan)
    if plan.evaluate.subgroups:
        result["final"]["subgroups"] = groups.told(lambda sums: chosen(sums, plan))
    result["bytes"]["evaluate"] = {
        "nodes": len(replies.down),
        "down": sum(replies.down.values()),
        "up": sum(replies.up.values()),
    }
    result["refused"] += [
        {"node": name, "round": round_, "reason": f"evaluation: {reason}"}
        for name, reason in sorted(replies.refused.items())
    ]


# ── the result ────────────────────────────────────────────────────────────────────────────────────
def opening(federation: Federation, layout: Layout) -> dict[str, Any]:
    """result.json before anything happened."""
    plan, backbone = federation.plan, federation.backbone
    return {
        "schema": 1,
        "status": "running",
        "name": plan.name,
        "plan_hash": plan_hash(plan),
        "seed": plan.seed,
        "versions": (
            {name: version(name) for name in ("fedgraft", "torch", "flwr")}
            | {"python": sys.version.split()[0]}
        ),
        "backbone": {
            "name": backbone.name,
            "fingerprint_before": backbone.fingerprint,
            "fingerprint_after": None,
        },
        "adapter": {
            "method": plan.adapter.method,
            "values": layout.values,
            "tensors": len(layout.shapes),
        },
        "rounds_done": 0,
        "final": {"global": {}, "nodes": {}},
        "baselines": {},
        "bytes": {
            "adapter": 4 * layout.values,
            "full_model": full_model_bytes(backbone, len(plan.task.classes)),
            "backbone": backbone_bytes(backbone),
            "handout": {"nodes": 0, "down": 0, "up": 0},
            "rounds": [],
        },
        # at most this part of an update was rounded away by its encoding, to come with the next
        "encoding": {"kind": plan.aggregate.encoding, "relative_error": 0.0},
        "privacy": {},
        "not_covered_by_epsilon": not_covered(plan),
        "refused": [],
        "seconds": {},
    }


def note_handout(result: dict[str, Any], roster: Roster) -> None:
    """Who was handed the backbone, at what cost, and who did not join."""
    handout = result["bytes"]["handout"]
    handout["nodes"] += len(roster.sent)
    handout["down"] += sum(roster.down.values())
    handout["up"] += sum(roster.up.values())
    result["refused"] += [
        {"node": node, "round": 0, "reason": reason} for node, reason in roster.refused
    ]
    result["nodes"] = {name: {"examples": count} for name, count in sorted(roster.examples.items())}
    roster.forget_noted()


def note_update(result: dict[str, Any], line: dict[str, Any], update: AdapterUpdate) -> None:
    """What an update tells, in its node's line and in the result."""
    line["train"] = {
        "examples": update.examples,
        "steps": update.steps,
        "loss": update.train_loss,
        "seconds": update.seconds,
    }
    told = result.setdefault("encoding", {"kind": "none", "relative_error": 0.0})
    told["relative_error"] = max(told["relative_error"], update.rounding)
    if update.spent is not None:
        result["privacy"][line["node"]] = update.spent.to_json()
    # of the model as this node received it: the shared model after the round before
    line["received"] = None if update.received is None else update.received.summary()


def chosen(sums: Sums, plan: Plan) -> dict[str, Any]:
    """The metrics that the plan asks for, and the number of examples behind them."""
    summary = sums.summary()
    return {key: summary[key] for key in (*plan.evaluate.metrics, "examples")}


def total_bytes(spent: dict[str, Any]) -> int:
    """All bytes that crossed the wire: hand-out, rounds, last evaluation."""
    parts = [spent["handout"], *spent["rounds"], spent.get("evaluate", {"down": 0, "up": 0})]
    return sum(part["down"] + part["up"] for part in parts)


def must_be_finite(state: dict[str, Tensor], round_: int) -> None:
    """Raises `RunFailed` where the aggregate itself diverged."""
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise RunFailed(
                f"round {round_}: the aggregate of {name} is not finite; try a lower learning rate"
            )


def peak_rss() -> int:
    """Largest resident memory of this process so far, bytes (Linux counts in KiB, macOS in
    bytes).
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
