"""Whole federations under central, local and sample-level privacy, and under each way to combine
LoRA.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from scipy import stats
from torch import Tensor

from fedgraft.client.app import make_client_app
from fedgraft.client.desk import Desk
from fedgraft.client.node.node_file import load_node
from fedgraft.client.privacy.ledger import Ledger
from fedgraft.common.errors import RunFailed
from fedgraft.common.model.shared_model import load_shared_model
from fedgraft.common.privacy.accounting import epsilon, shown
from fedgraft.common.privacy.clipping import norm_of, update_of
from fedgraft.common.wire.layout import ADAPTER
from fedgraft.common.wire.spent_record import read_spent
from fedgraft.server.round_replies import UpdateIntake
from fedgraft.simulations.engines.simulated_node import load_simulated_node, simulation_desk
from tests.simulations.conftest import client_app

CENTRAL = ("privacy.mode=central", "privacy.noise_multiplier=1.0", "privacy.max_update_norm=0.05")
LOCAL = ("privacy.mode=local", "privacy.noise_multiplier=2.0")
SAMPLE = (
    "privacy.mode=sample",
    "privacy.target_epsilon=4",
    "privacy.accountant=rdp",
    "privacy.delta=1.0e-4",
)


def adapter_of(message: Message) -> np.ndarray:
    return message.content.array_records[ADAPTER][ADAPTER].numpy().astype(np.float64)


def shared(run: Path) -> dict[str, Tensor]:
    return load_shared_model(run).model.adapter_state()


# ── central ───────────────────────────────────────────────────────────────────────────────────────
def test_updates_are_clipped_before_they_leave_and_tell_no_size(tiny, tmp_path) -> None:
    """A node that leaves the clipping to the server, or tells how many examples it has: tables of
    40, 50, 60 rows.
    """
    result, grid = tiny().run(tmp_path / "run", [*CENTRAL, "train.optimizer.lr=0.5"])
    sent = {
        m.metadata.group_id: adapter_of(m) for m in grid.down if m.metadata.message_type == "train"
    }
    trained = [m for m in grid.up if m.metadata.message_type == "train"]
    assert len(trained) == 9
    for reply in trained:
        norm = np.linalg.norm(adapter_of(reply) - sent[reply.metadata.group_id])
        assert norm == pytest.approx(0.05, rel=1e-3)  # far longer before
        numbers = dict(reply.content.metric_records["train"])
        assert (numbers["num-examples"], numbers["steps"]) == (1, 1)
        assert set(numbers) == {"num-examples", "steps", "seconds"}
    spent = result["privacy"]
    assert set(spent) == {"h0", "h1", "h2"}
    for entry in spent.values():
        assert entry["unit"] == "node"
        assert entry["neighbours"] == "all data of one node replaced by any other"
        # two updates are twice the clipping norm apart
        assert entry["history"] == [[0.5, 1.0, 3]]
        assert entry["epsilon"] == pytest.approx(epsilon([(0.5, 1.0, 3)], 1e-5))
    assert result["not_covered_by_epsilon"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["privacy"] == spent


def test_a_node_that_drops_out_leaves_the_denominator(tiny, tmp_path) -> None:
    """A sum over two nodes divided by two: each would weigh more than the noise is scaled for.

    Hardly any noise, an update of norm 0.05 from each of the two that answer: their mean over
    three.
    """

    def one_refuses(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == 4:
            raise ValueError("lost")
        return client_app(message, context)

    setup = [
        *CENTRAL[:1],
        CENTRAL[2],
        "privacy.noise_multiplier=1.0e-6",
        "train.optimizer.lr=0.5",
        "train.rounds=1",
    ]
    result, grid = tiny().run(tmp_path / "run", setup, handle=one_refuses)
    sent = next(adapter_of(m) for m in grid.down if m.metadata.message_type == "train")
    moved = [
        adapter_of(m) - sent
        for m in grid.up
        if m.metadata.message_type == "train" and not m.has_error()
    ]
    last = next(adapter_of(m) for m in grid.down if m.metadata.message_type == "evaluate")
    assert len(moved) == 2
    np.testing.assert_allclose(last - sent, (moved[0] + moved[1]) / 3, atol=1e-6)
    assert next(row["node"] for row in result["refused"] if row["round"] == 1) == "h2"


def test_a_round_that_few_answered_fails_and_an_empty_cohort_does_not(tiny, tmp_path) -> None:
    """Noise instead of a round that was lost; or a failure that depends on the coins."""
    nobody = [*CENTRAL, "aggregate.fraction=1.0e-6"]
    result, grid = tiny().run(tmp_path / "nobody", nobody)
    assert result["status"] == "completed"
    assert not [m for m in grid.down if m.metadata.message_type == "train"]

    def all_refuse(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            raise ValueError("lost")
        return client_app(message, context)

    with pytest.raises(RunFailed, match="0 valid updates, 2 are needed"):
        tiny().run(tmp_path / "lost", CENTRAL, handle=all_refuse)


def test_a_node_that_does_not_clip_gains_nothing(tiny, tmp_path) -> None:
    """Sensitivity that rests on the nodes' good will."""

    def greedy(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == 4:
            from flwr.app import Array

            values = adapter_of(reply).astype(np.float32)
            reply.content.array_records[ADAPTER][ADAPTER] = Array(values + np.float32(50.0))
        return reply

    setup = [*CENTRAL[:1], CENTRAL[2], "privacy.noise_multiplier=1.0e-6", "train.rounds=1"]
    _, grid = tiny().run(tmp_path / "run", setup, handle=greedy)
    sent = next(adapter_of(m) for m in grid.down if m.metadata.message_type == "train")
    last = next(adapter_of(m) for m in grid.down if m.metadata.message_type == "evaluate")
    assert np.linalg.norm(last - sent) <= 0.05 * (1 + 1e-3)


@pytest.mark.parametrize("more", [(), ("privacy.clipping=adaptive", "aggregate.strategy=fedavgm")])
def test_a_killed_central_run_resumes_as_if_nothing_had_happened(
    tiny, tmp_path, more: tuple[str, ...]
) -> None:
    """A clipping norm, a denominator or a strategy's memory that a restart forgets; rounds counted
    twice.
    """
    setup = [*CENTRAL, "aggregate.fraction=0.7", *more]
    federation = tiny()
    whole, _ = federation.run(tmp_path / "whole", setup, seeded_noise=True)
    with pytest.raises(KeyboardInterrupt):
        federation.run(tmp_path / "cut", setup, seeded_noise=True, stop_before=2)
    resumed, _ = federation.run(tmp_path / "cut", setup, seeded_noise=True, resume=True)
    one, two = shared(tmp_path / "whole"), shared(tmp_path / "cut")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert resumed["privacy"] == whole["privacy"]


def test_noise_is_on_the_disk_before_it_is_sent(tiny, tmp_path, monkeypatch) -> None:
    """A power cut that takes a round's checkpoint away after its model was sent: resumed, the round
    draws other noise for the same updates, and counts them once.
    """
    happened: list[str] = []
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        happened.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        flush(descriptor)

    def sent(messages: list[Message]) -> None:
        happened.append(f"{messages[0].metadata.message_type} is sent")

    monkeypatch.setattr(os, "fsync", fsync)
    tiny().run(tmp_path / "run", [*CENTRAL, "train.rounds=1"], on_push=sent)
    saved = happened[happened.index("train is sent") : happened.index("evaluate is sent")]
    # each file, the names in its folder, and the folder's own name
    for name in ("adapter.safetensors", "strategy.safetensors", "so_far.json"):
        assert any(file.startswith(f".{name}") for file in saved)
    assert saved.count("round-0001.part") == 3
    assert saved[-1] == "checkpoints"


def test_noise_of_a_deployment_is_fresh(tiny, tmp_path) -> None:
    """The plan's seed must not reach the server's noise where no simulation says so."""
    federation = tiny()
    for name in ("one", "two"):
        federation.run(tmp_path / name, CENTRAL)
    one, two = shared(tmp_path / "one"), shared(tmp_path / "two")
    assert not any(torch.equal(one[name], two[name]) for name in one)


# ── local ─────────────────────────────────────────────────────────────────────────────────────────
def test_moments_of_the_noise_of_a_local_update(tiny, tmp_path) -> None:
    """Noise for a sensitivity of C: two updates of norm C may be 2C apart, so a value's deviation
    is 2σC = 4.

    What is learnt moves a value by C = 1 at most, all of them together: it is not seen in k =
    34,022 values.
    """
    setup = [*LOCAL, "adapter.method=full", "backbone.hidden=[180, 180]", "train.rounds=1"]
    result, grid = tiny().run(tmp_path / "run", setup)
    sent = next(adapter_of(m) for m in grid.down if m.metadata.message_type == "train")
    for reply in (m for m in grid.up if m.metadata.message_type == "train"):
        noise = adapter_of(reply) - sent
        k = len(noise)
        assert k > 30_000
        assert abs(noise.mean()) < 5 * 4 / math.sqrt(k)
        assert abs(noise.var() - 16) < 5 * 16 * math.sqrt(2 / k)
        assert abs(stats.kurtosis(noise)) < 5 * math.sqrt(24 / k)
        assert stats.kstest(noise / 4, "norm").pvalue > 1e-6
        spent = read_spent(reply.content.config_records["privacy"])
        assert (spent.unit, spent.history) == ("node", ((2.0, 1.0, 1),))
    assert result["privacy"]["h0"]["neighbours"] == "all data of one node replaced by any other"


def test_local_rounds_are_in_the_ledger_and_end_at_the_ceiling(tiny, tmp_path) -> None:
    """Noise that the ledger does not count, or counts as if the server had added it."""
    federation = tiny()
    result, _ = federation.run(tmp_path / "run", LOCAL)
    ledger = Ledger(load_node(federation.nodes[0]).ledger_path)
    lines = ledger.book().lines
    assert [(line.unit, line.row, line.settled) for line in lines] == [
        ("node", (2.0, 1.0, 1), True)
    ] * 3
    assert result["privacy"]["h0"]["epsilon"] == pytest.approx(epsilon([(2.0, 1.0, 3)], 1e-5))
    clauses = "policy:\n  dp_required: true\n  max_delta: 1.0e-3\n  max_epsilon_run: 1.0e-3"
    text = federation.nodes[0].read_text()
    federation.nodes[0].write_text(text.replace("policy:", clauses))
    desk = simulation_desk()
    restarted = make_client_app(lambda: desk)
    result, _ = federation.run(tmp_path / "again", [*LOCAL, "seed=8"], handle=restarted)
    refused = [row for row in result["refused"] if row["round"] == 0]
    assert [row["node"] for row in refused] == ["h0"]
    assert "ceiling of 0.001" in refused[0]["reason"]
    assert len(ledger.book().lines) == 3


@pytest.mark.parametrize("mode", [SAMPLE, LOCAL], ids=["sample", "local"])
def test_a_private_run_whose_server_was_killed_goes_on(
    tiny, tmp_path, monkeypatch, mode: tuple[str, ...]
) -> None:
    """Killed when all had answered, before the round's checkpoint: the nodes refused the round that
    they had run, and the run's ε was gone without a model. Now the same bytes come again.
    """
    federation = tiny()
    for path in federation.nodes:
        path.write_text(path.read_text().replace("replays: count", "replays: refuse"))
    # noise of a deployment: a second answer would be another one
    desk = Desk(open_node=load_simulated_node)
    handle = make_client_app(lambda: desk)
    seen: list[np.ndarray] = []
    close = UpdateIntake.close

    def is_killed(*args: Any) -> Any:
        answers = close(*args)
        if answers.traffic.round == 2:
            seen.extend(update.state["head.weight"].numpy() for update in answers.updates.values())
            raise KeyboardInterrupt
        return answers

    with monkeypatch.context() as patched:
        patched.setattr(UpdateIntake, "close", is_killed)
        with pytest.raises(KeyboardInterrupt):
            federation.run(tmp_path / "run", mode, handle=handle)
    again: list[np.ndarray] = []

    def is_watched(*args: Any) -> Any:
        answers = close(*args)
        if answers.traffic.round == 2:
            again.extend(update.state["head.weight"].numpy() for update in answers.updates.values())
        return answers

    monkeypatch.setattr(UpdateIntake, "close", is_watched)
    result, _ = federation.run(tmp_path / "run", mode, handle=handle, resume=True)
    assert result["status"] == "completed"
    assert result["refused"] == []
    assert len(seen) == len(again) == 3
    assert all(map(np.array_equal, seen, again))
    for name, path in zip(("h0", "h1", "h2"), federation.nodes, strict=True):
        lines = Ledger(load_node(path).ledger_path).book().lines
        assert [line.round for line in lines] == [1, 2, 3]
        rows = [line.row for line in lines]
        told = result["privacy"][name]
        assert told["epsilon"] == pytest.approx(epsilon(rows, told["delta"], told["accountant"]))


# ── counts ────────────────────────────────────────────────────────────────────────────────────────
def test_noised_counts_are_told_and_paid_for(tiny, tmp_path) -> None:
    """Metrics whose cost nobody counts, or that tell more than the counts of right and wrong
    answers.
    """
    federation = tiny()
    for path in federation.nodes:
        path.write_text(path.read_text().replace("report_metrics: true", "metrics_noise: 6.0"))
    result, grid = federation.run(tmp_path / "run", SAMPLE)
    for reply in (m for m in grid.up if m.metadata.message_type == "train"):
        told = dict(reply.content.metric_records["received"])
        assert (told["loss"], told["positives"], told["negatives"], told["calibration-count"]) == (
            0.0,
            [],
            [],
            [],
        )
    assert result["final"]["global"]["accuracy"] is not None
    assert result["final"]["global"]["auroc"] is None
    lines = Ledger(load_node(federation.nodes[0]).ledger_path).book().lines
    assert [line.purpose for line in lines].count("metrics") == 3
    assert [line.row for line in lines if line.purpose == "evaluation"] == [(6.0, 1.0, 1)]
    whole = epsilon([line.row for line in lines], 1e-4, "rdp")
    trained = epsilon([line.row for line in lines if line.purpose == "training"], 1e-4, "rdp")
    assert trained < whole <= 4.0
    assert whole > 3.9, "the target is for training and metrics together, and is used up"
    # as the ledger counts it, the last evaluation too
    assert result["privacy"]["h0"]["epsilon"] == pytest.approx(whole)
    card = (tmp_path / "run" / "shared_model" / "MODEL_CARD.md").read_text()
    assert f"ε ≤ {shown(whole)}" in card


# ── LoRA ──────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("privacy", [(), SAMPLE], ids=["plain", "private"])
def test_with_a_frozen_only_b_travels(tiny, tmp_path, privacy: tuple[str, ...]) -> None:
    """A that is trained after all, sent after all, or not saved; and an average that is no update
    of averages.
    """
    setup = ["aggregate.lora_aggregation=freeze-a", *privacy]
    federation = tiny()
    result, grid = federation.run(tmp_path / "run", setup)
    plain, _ = federation.run(tmp_path / "plain", ["train.rounds=1"])
    a_values = 2 * (
        6 + 8
    )  # rank 2 on layers of 6 inputs (three columns, and whether each is missing) and 8
    assert result["adapter"]["values"] == plain["adapter"]["values"] - a_values
    assert result["backbone"]["fingerprint_before"] == result["backbone"]["fingerprint_after"]
    opened = load_shared_model(tmp_path / "run").model
    drawn = opened.drawn_state()
    assert sum(tensor.numel() for tensor in drawn.values()) == a_values
    saved = load_shared_model(tmp_path / "plain").model
    assert set(opened.adapter_state()) | set(drawn) == set(saved.adapter_state())
    last = next(adapter_of(m) for m in grid.down if m.metadata.message_type == "evaluate")
    assert np.array_equal(
        np.concatenate([t.numpy().reshape(-1) for t in shared(tmp_path / "run").values()]), last
    )


def test_sides_that_draw_another_a_find_out(tiny) -> None:
    """A is not on the wire: two sides with different ones would train and serve different
    models.
    """
    from fedgraft.common.model.assembly import plan_backbone, plan_model
    from fedgraft.common.wire.layout import Layout

    federation = tiny()
    plan = federation.plan("aggregate.lora_aggregation=freeze-a")
    model = plan_model(plan_backbone(plan, federation.path.parent), plan)
    before = Layout.of(model.adapter_state(), model.drawn_state())
    next(iter(model.drawn_state().values())).add_(1e-3)
    after = Layout.of(model.adapter_state(), model.drawn_state())
    assert before.shapes == after.shapes
    assert before.digest != after.digest


def test_svd_gives_the_mean_of_the_products(tiny, tmp_path) -> None:
    """With two nodes of rank 2 the mean product has rank 4; what is shared is its best of rank 2,
    by NumPy.
    """
    setup = ["aggregate.lora_aggregation=svd", "train.rounds=1", "train.optimizer.lr=0.05"]
    result, grid = tiny(2).run(tmp_path / "run", setup)
    from fedgraft.common.model.assembly import plan_backbone, plan_model
    from fedgraft.common.wire.layout import Layout, unpack

    federation = tiny(2)
    plan = federation.plan(*setup)
    layout = Layout.of(
        plan_model(plan_backbone(plan, federation.path.parent), plan).adapter_state()
    )
    replies = [m for m in grid.up if m.metadata.message_type == "train"]
    states = [unpack(m.content.array_records[ADAPTER], layout) for m in replies]
    weights = [float(m.content.metric_records["train"]["num-examples"]) for m in replies]  # type: ignore[arg-type]
    model = shared(tmp_path / "run")
    for a in (name for name in model if ".lora_A." in name):
        b = a.replace("lora_A", "lora_B")
        dense = sum(
            w * (s[b] @ s[a]).double().numpy() for w, s in zip(weights, states, strict=True)
        ) / sum(weights)
        u, s, v = np.linalg.svd(dense, full_matrices=False)
        np.testing.assert_allclose(
            (model[b] @ model[a]).numpy(), u[:, :2] * s[:2] @ v[:2], atol=1e-5
        )
    assert result["status"] == "completed"
    assert norm_of(update_of(states[0], states[1])) > 0


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        (CENTRAL, "all data of one node replaced by any other"),
        (LOCAL, "all data of one node replaced"),
        (SAMPLE, "one example added or removed"),
    ],
    ids=["central", "local", "sample"],
)
def test_a_shared_model_says_what_its_privacy_is(
    tiny, tmp_path, setup: tuple[str, ...], words: str
) -> None:
    """ε without unit, δ, neighbours or accountant, and what it does not cover left unsaid."""
    result, _ = tiny().run(tmp_path / "run", [*setup, "train.rounds=1"])
    card = (tmp_path / "run" / "shared_model" / "MODEL_CARD.md").read_text()
    assert words in card
    assert f"δ = {result['privacy']['h0']['delta']:g}" in card
    assert result["privacy"]["h0"]["accountant"].upper() in card
    assert result["not_covered_by_epsilon"]
    for line in result["not_covered_by_epsilon"]:
        assert line in card
