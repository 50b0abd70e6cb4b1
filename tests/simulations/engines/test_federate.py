"""The whole federation in one process: what travels, who is left out, what survives a kill, what is
repeatable.
"""

from __future__ import annotations

import errno
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from safetensors.numpy import load_file
from sklearn import metrics as sk

from fedgraft.client.node.node_file import load_node
from fedgraft.client.node_task import open_splits
from fedgraft.common.errors import RunFailed, UserErrors
from fedgraft.common.model.assembly import plan_backbone, plan_model
from fedgraft.common.model.shared_model import load_shared_model
from fedgraft.common.result import Result
from fedgraft.common.tasks.classification_sums import sums_of
from fedgraft.common.wire.layout import ADAPTER
from fedgraft.server.papers.run_folder import Checkpoint, RunFolder
from fedgraft.simulations.engines.inprocess import InProcessGrid
from fedgraft.simulations.results_in_words import describe_results
from tests.simulations.conftest import client_app

STRATEGIES = (
    "fedavg",
    "fedprox",
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "median",
    "trimmed-mean",
    "krum",
)


def shared_bytes(run: Path) -> bytes:
    return (run / "shared_model" / "adapter_model.safetensors").read_bytes()


def metric_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(value: Any) -> Any:
    """Without what a clock says."""
    if isinstance(value, dict):
        return {
            key: timeless(each)
            for key, each in value.items()
            if key not in ("seconds", "peak_rss_bytes")
        }
    return [timeless(each) for each in value] if isinstance(value, list) else value


# ── what travels ──────────────────────────────────────────────────────────────────────────────────
def test_only_adapters_travel_after_the_hand_out(tiny, tmp_path):
    """A backbone sent twice, a name or value of the data in a reply, or an adapter larger than
    said.
    """
    result, grid = tiny(3).run(tmp_path / "out")
    values = result["adapter"]["values"]

    offers = [m for m in grid.down if m.metadata.message_type == "query.offer"]
    sent = [m for m in grid.down if m.metadata.message_type == "query.backbone"]
    assert [sorted(m.metadata.dst_node_id for m in kind) for kind in (offers, sent)] == [
        [2, 3, 4],
        [2, 3, 4],
    ]
    assert all(set(m.content) == {"offer"} and not m.content.array_records for m in offers)

    later = [m for m in grid.down if not m.metadata.message_type.startswith("query")]
    assert len(later) == 3 * (3 + 1)  # rounds, and the last evaluation
    assert {m.metadata.message_type for m in later} == {"train", "evaluate"}
    for message in later:
        assert set(message.content) == {ADAPTER, "about"}
        assert set(message.content["about"]) == {"plan-hash", "round", "layout"}
    replies = {m.metadata.reply_to_message_id: m for m in grid.up}
    for message in grid.down:
        back = replies[message.metadata.message_id].content
        match message.metadata.message_type:
            case "train":
                assert set(back) == {ADAPTER, "train", "about", "received"}
                assert set(back["train"]) == {"num-examples", "steps", "train-loss", "seconds"}
                assert set(back["about"]) == {"round", "layout"}
            case "evaluate":
                assert set(back) == {"received"}
            case _:
                assert set(back) == {"about"}
    for message in [*later, *(replies[m.metadata.message_id] for m in later)]:
        for record in message.content.array_records.values():
            (array,) = record.values()
            assert array.dtype == "float32"
            assert array.shape == (values,)
            assert array.numpy().nbytes == 4 * values == result["bytes"]["adapter"]


def test_bytes_are_those_of_the_serialised_messages(tiny, tmp_path):
    """Bytes that were estimated, or counted for one node and multiplied, or a phase that was left
    out.
    """

    def size(
        part: Any, seen: set[str]
    ) -> int:  # Flower's objects, walked by hand; each object of a message once
        if part.object_id in seen:
            return 0
        seen.add(part.object_id)
        return len(part.deflate()) + sum(
            size(child, seen) for child in (part.children or {}).values()
        )

    result, grid = tiny(3).run(tmp_path / "out")
    kinds = {
        m.metadata.message_id: (m.metadata.message_type, m.metadata.group_id) for m in grid.down
    }
    down: dict[tuple[str, str], int] = {}
    up: dict[tuple[str, str], int] = {}
    for message in grid.down:
        key = kinds[message.metadata.message_id]
        down[key] = down.get(key, 0) + size(message, set())
    for message in grid.up:
        key = kinds[message.metadata.reply_to_message_id]
        up[key] = up.get(key, 0) + size(message, set())

    spent = result["bytes"]
    tolerance = 3 * 200  # a message's header holds ids and times whose lengths vary
    for row in spent["rounds"]:
        assert row["nodes"] == 3
        assert abs(row["down"] - down["train", str(row["round"])]) < tolerance
        assert row["up"] == pytest.approx(up["train", str(row["round"])], abs=tolerance)
        assert row["up"] > 3 * spent["adapter"]
    assert spent["evaluate"]["down"] == pytest.approx(down["evaluate", "evaluate"], abs=tolerance)
    assert spent["handout"]["nodes"] == 3
    wanted = down["query.offer", "0"] + down["query.backbone", "0"]
    assert spent["handout"]["down"] == pytest.approx(wanted, abs=2 * tolerance)
    assert spent["total"] == sum(
        part["down"] + part["up"]
        for part in (spent["handout"], spent["evaluate"], *spent["rounds"])
    )
    per_line = [
        row["bytes"]
        for row in metric_lines(tmp_path / "out")
        if "bytes" in row and row["round"] == 1
    ]
    assert sum(row["up"] for row in per_line) == spent["rounds"][0]["up"]


def test_a_backbone_that_is_there_is_not_sent_again(tiny, tmp_path):
    """A second run that hands out the backbone again: its full size for every node."""
    federation = tiny(2)
    first, _ = federation.run(tmp_path / "one")
    second, grid = federation.run(tmp_path / "two")
    assert first["bytes"]["handout"]["nodes"] == 2
    assert second["bytes"]["handout"]["nodes"] == 0
    assert not [m for m in grid.down if m.metadata.message_type == "query.backbone"]
    assert shared_bytes(tmp_path / "one") == shared_bytes(tmp_path / "two")


def test_the_backbone_does_not_move(tiny, tmp_path):
    """Frozen values or buffers that training changed."""
    result, _ = tiny(2).run(tmp_path / "out")
    assert result["backbone"]["fingerprint_before"] == result["backbone"]["fingerprint_after"]
    saved = load_shared_model(tmp_path / "out")
    assert saved.model.frozen_fingerprint() == result["backbone"]["fingerprint_before"]


# ── bad nodes ─────────────────────────────────────────────────────────────────────────────────────
def tampered(
    change: Callable[[RecordDict], RecordDict], node: int = 3
) -> Callable[[Message, Any], Message]:
    """A ClientApp that is good but for one node's train replies. Node 3 is h1."""

    def handle(message: Message, context: Any) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type != "train" or message.metadata.dst_node_id != node:
            return reply
        return Message(change(reply.content), reply_to=message)

    return handle


def with_values(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[RecordDict], RecordDict]:
    def apply(content: RecordDict) -> RecordDict:
        flat = np.array(content.array_records[ADAPTER][ADAPTER].numpy())
        content[ADAPTER] = ArrayRecord({ADAPTER: Array(change(flat))})
        return content

    return apply


def one(index: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(flat: np.ndarray) -> np.ndarray:
        flat[index] = value
        return flat

    return change


def wrong_round(content: RecordDict) -> RecordDict:
    content["about"]["round"] = 99  # type: ignore[index]
    return content


def refuses(content: RecordDict) -> RecordDict:
    return RecordDict({"refused": ConfigRecord({"reason": "policy: not today"})})


def raises(content: RecordDict) -> RecordDict:
    raise ZeroDivisionError("a fault at the node")


def with_secret(content: RecordDict) -> RecordDict:
    content["patients"] = MetricRecord({"age": 63})
    return content


def without_weight(content: RecordDict) -> RecordDict:
    content["train"] = MetricRecord({"steps": 1})
    return content


def boasts(content: RecordDict) -> RecordDict:
    content["train"]["num-examples"] = 10**12  # type: ignore[index]
    return content


def bad_metrics(content: RecordDict) -> RecordDict:
    content["received"] = MetricRecord({"examples": -5})
    return content


BAD = {
    "nan": (with_values(one(0, np.nan)), "not finite"),
    "infinity": (with_values(one(-1, np.inf)), "not finite"),
    "huge": (with_values(one(3, 1e30)), "1e+30"),
    "short": (with_values(lambda flat: flat[:-1]), "was agreed on"),
    "empty": (with_values(lambda flat: flat[:0]), "was agreed on"),
    "double": (with_values(lambda flat: flat.astype(np.float64)), "float64"),
    "text": (with_values(lambda flat: np.array(["x"] * len(flat))), "was agreed on"),
    "shape": (with_values(lambda flat: flat[None]), "was agreed on"),
    "wrong round": (wrong_round, "round 99"),
    "refuses": (refuses, "policy: not today"),
    "raises": (raises, "fault at the node"),
    "nothing": (lambda content: RecordDict(), "missing"),
    "extra record": (with_secret, "patients"),
    "no weight": (without_weight, "missing"),
    "a weight beyond its own": (boasts, "it joined with"),
    "bad metrics": (bad_metrics, "metrics"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_node_is_left_out_and_named(tiny, tmp_path, kind):
    """A bad reply that is averaged, stops the others, or goes by unseen. The model is that of the
    other two.
    """
    change, words = BAD[kind]
    federation = tiny(3)
    result, _ = federation.run(tmp_path / "out", handle=tampered(change))
    assert result["status"] == "completed"
    assert [(row["node"], row["round"]) for row in result["refused"]] == [
        ("h1", 1),
        ("h1", 2),
        ("h1", 3),
    ]
    assert all(words in row["reason"] for row in result["refused"])
    assert len(result["final"]["nodes"]) == 3  # it may still measure the model

    good = federation.nodes
    federation.nodes = [good[0], good[2]]
    federation.run(tmp_path / "without")
    assert shared_bytes(tmp_path / "out") == shared_bytes(tmp_path / "without")


def test_too_few_good_nodes_end_the_run_and_keep_what_was_done(tiny, tmp_path):
    """A round averaged over fewer than `min_nodes`, or finished rounds lost with it."""
    federation = tiny(2)
    spoil = with_values(one(0, np.nan))

    def handle(message: Message, context: Any) -> Message:
        late = message.metadata.group_id == "3"
        return (tampered(spoil) if late else client_app)(message, context)

    with pytest.raises(RunFailed, match="round 3: 1 valid updates, 2 are needed"):
        federation.run(tmp_path / "out", handle=handle)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "round 3" in result["error"]
    assert result["rounds_done"] == 2
    assert [(row["node"], row["round"]) for row in result["refused"]] == [("h1", 3)]

    federation.run(tmp_path / "short", ["train.rounds=2"])
    kept, wanted = (
        load_file(tmp_path / run / "shared_model" / "adapter_model.safetensors")
        for run in ("out", "short")
    )
    assert all(np.array_equal(kept[name], wanted[name]) for name in wanted)

    mended, _ = federation.run(tmp_path / "out", resume=True)  # the node is well again
    federation.run(tmp_path / "well")
    assert mended["status"] == "completed"
    assert "error" not in mended
    assert shared_bytes(tmp_path / "out") == shared_bytes(tmp_path / "well")


def test_a_node_that_left_between_listing_and_sending_is_left_out(tiny, tmp_path):
    """A whole run ended by one message that the SuperLink could not take, or bytes counted that
    were never sent.
    """
    result, _ = tiny(3).run(tmp_path / "out", unreachable=3)
    assert result["status"] == "completed"
    assert [(row["node"], row["round"]) for row in result["refused"]] == [
        ("h1", 1),
        ("h1", 2),
        ("h1", 3),
    ]
    assert "not be delivered" in result["refused"][0]["reason"]
    line = next(row for row in metric_lines(tmp_path / "out") if row["node"] == "h1")
    assert line["bytes"] == {"down": 0, "up": 0}


def test_nodes_that_do_not_join_are_named(tiny, tmp_path):
    """A run that starts with too few nodes, or that hides who refused and why."""
    federation = tiny(2)
    text = federation.nodes[1].read_text()
    federation.nodes[1].write_text(text.replace("min_examples: 10", "min_examples: 1000"))
    with pytest.raises(
        RunFailed, match=r"1 of 2 nodes joined(.|\n)*h1: policy: fewer than 1000 training examples"
    ):
        federation.run(tmp_path / "out")
    result, _ = federation.run(tmp_path / "alone", ["aggregate.min_nodes=1"])
    assert [(row["node"], row["round"]) for row in result["refused"]] == [("h1", 0)]
    assert list(result["final"]["nodes"]) == ["h0"]


def test_a_node_that_was_lost_comes_back_under_its_old_id(tiny, tmp_path, monkeypatch):
    """A hospital with a key keeps its id: one that was away for a round would be left out for the
    rest of the run.
    """
    federation = tiny(3)
    everybody, asked = InProcessGrid.get_node_ids, []

    def without_one_in_round_two(grid):
        asked.append(None)  # the first two calls gather, then one for each round
        return [node for node in everybody(grid) if len(asked) != 4 or node != 3]

    monkeypatch.setattr(InProcessGrid, "get_node_ids", without_one_in_round_two)
    federation.run(tmp_path / "out")
    rounds = [
        {row["node"] for row in metric_lines(tmp_path / "out") if row["round"] == n}
        for n in (1, 2, 3)
    ]
    assert rounds == [{"h0", "h1", "h2"}, {"h0", "h2"}, {"h0", "h1", "h2"}]


def test_two_nodes_of_one_name_do_not_replace_each_other(tiny, tmp_path):
    """A hospital that pushes another one out by taking its name."""
    federation = tiny(3)
    federation.nodes[2].write_text(federation.nodes[2].read_text().replace("name: h2", "name: h0"))
    for out in ("first", "again"):  # with and without the backbone in the store
        result, grid = federation.run(tmp_path / out)
        assert sorted(result["final"]["nodes"]) == ["h0", "h1"]
        assert {
            m.metadata.dst_node_id for m in grid.down if m.metadata.message_type == "train"
        } == {2, 3}
        assert [row["round"] for row in result["refused"]] == [0]
        assert "h0" in result["refused"][0]["reason"]


def test_a_node_that_joins_later_does_not_replace_one_of_its_name(tiny, tmp_path, monkeypatch):
    """A hospital that goes away and comes back with another one's name; or one that is never let in
    again.

    Node 4 comes in the first round, with the name of node 2, which leaves in the last.
    """
    federation = tiny(3)
    federation.nodes[2].write_text(federation.nodes[2].read_text().replace("name: h2", "name: h0"))
    everybody, asked = InProcessGrid.get_node_ids, []

    def those_connected(grid):
        asked.append(None)  # the first two calls gather, then one for each round
        gone = [4] if len(asked) < 3 else [2] if len(asked) > 4 else []
        return [node for node in everybody(grid) if node not in gone]

    monkeypatch.setattr(InProcessGrid, "get_node_ids", those_connected)
    result, grid = federation.run(tmp_path / "out", ["aggregate.missing=allow"])
    trained = [
        (m.metadata.group_id, m.metadata.dst_node_id)
        for m in grid.down
        if m.metadata.message_type == "train"
    ]
    assert sorted(trained) == [("1", 2), ("1", 3), ("2", 2), ("2", 3), ("3", 3), ("3", 4)]
    assert [row["round"] for row in result["refused"]] == [
        0,
        0,
    ]  # of the hand-outs in rounds 1 and 2
    assert all("taken name 'h0'" in row["reason"] for row in result["refused"])


# ── kill and resume ───────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam"])
@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_run_resumes_as_if_nothing_had_happened(tiny, tmp_path, strategy, after):
    """A strategy's memory, a round, its lines or its bytes lost or counted twice over a kill."""
    federation = tiny(2)
    sets = [f"aggregate.strategy={strategy}", "train.rounds=4"]
    federation.run(tmp_path / "whole", sets)
    with pytest.raises(KeyboardInterrupt):
        federation.run(tmp_path / "cut", sets, stop_before=after + 1)
    cut = json.loads((tmp_path / "cut" / "result.json").read_text())
    assert cut["status"] == "interrupted"
    assert cut["rounds_done"] == after
    federation.run(tmp_path / "cut", sets, resume=True)

    assert shared_bytes(tmp_path / "cut") == shared_bytes(tmp_path / "whole")
    names = {"round", "node", "train", "received", "final"}
    lines = [
        [
            timeless({key: row[key] for key in names & set(row)})
            for row in metric_lines(tmp_path / run)
        ]
        for run in ("cut", "whole")
    ]
    assert lines[0] == lines[1]
    cut, whole = (
        json.loads((tmp_path / run / "result.json").read_text()) for run in ("cut", "whole")
    )
    assert cut["final"] == whole["final"]
    assert cut["status"] == "completed"
    assert [row["round"] for row in cut["bytes"]["rounds"]] == [1, 2, 3, 4]
    assert cut["refused"] == whole["refused"] == []


@pytest.mark.parametrize("mode", ["none", "central"])
@pytest.mark.parametrize(("when", "kept"), [("just before", 1), ("just after", 2)])
def test_ctrl_c_beside_a_checkpoint(tiny, tmp_path, monkeypatch, when, kept, mode):
    """A result, a shared model and a checkpoint that do not speak of the same round, or ε of a
    round that is not there.

    Ctrl-C falls between any two lines, also between the writing of a round and what is next to it.
    """
    save = RunFolder.save_round

    def cut_off(folder: RunFolder, checkpoint: Checkpoint, **options: bool) -> None:
        if checkpoint.round == 2 and when == "just before":
            raise KeyboardInterrupt
        save(folder, checkpoint, **options)
        if checkpoint.round == 2:
            raise KeyboardInterrupt

    federation = tiny(2)
    central = [
        "privacy.mode=central",
        "privacy.noise_multiplier=1.0",
        "privacy.max_update_norm=0.05",
    ]
    sets = central if mode == "central" else []
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_round", cut_off)
        with pytest.raises(KeyboardInterrupt):
            federation.run(tmp_path / "cut", sets, seeded_noise=True)
    cut = json.loads((tmp_path / "cut" / "result.json").read_text())
    checkpoint = RunFolder(tmp_path / "cut").latest()
    assert (cut["status"], cut["rounds_done"]) == ("interrupted", kept)
    assert checkpoint is not None
    assert (checkpoint.round, checkpoint.so_far.rounds_done) == (kept, kept)
    assert cut["privacy"] == checkpoint.so_far.to_json()["privacy"]
    shared = load_file(tmp_path / "cut" / "shared_model" / "adapter_model.safetensors")
    kept_values = np.concatenate([tensor.numpy().ravel() for tensor in checkpoint.adapter.values()])
    shared_values = np.concatenate([array.ravel() for array in shared.values()])
    assert np.array_equal(
        np.sort(shared_values), np.sort(kept_values)
    )  # the two name their tensors differently
    assert (
        f"interrupted, {kept} of 3 rounds"
        in (tmp_path / "cut" / "shared_model" / "MODEL_CARD.md").read_text()
    )

    federation.run(tmp_path / "cut", sets, seeded_noise=True, resume=True)
    federation.run(tmp_path / "whole", sets, seeded_noise=True)
    assert shared_bytes(tmp_path / "cut") == shared_bytes(tmp_path / "whole")


def test_a_disk_that_is_full_at_the_first_checkpoint(tiny, tmp_path, monkeypatch):
    """A result that counts a round of which nothing is kept, or an untrained model handed out as
    the shared one.
    """

    def full(folder: RunFolder, checkpoint: Checkpoint, **options: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "save_round", full)
    with pytest.raises(OSError, match="No space left"):
        tiny(2).run(tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["rounds_done"]) == ("failed", 0)
    assert not (tmp_path / "run" / "shared_model").exists()


def test_a_checkpoint_that_does_not_fit(tmp_path):
    """A library's own error, which the command does not know, so that a full disk ends in a
    traceback.
    """
    so_far = Result.model_construct()
    checkpoint = Checkpoint(1, {"weight": torch.zeros(10_000)}, {}, so_far)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (4096, hard)
    )  # a longer file is refused as by a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            RunFolder(tmp_path).save_round(checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert RunFolder(tmp_path).latest() is None


def test_a_run_cut_off_in_its_last_evaluation(tiny, tmp_path):
    """The last evaluation's lines there twice, once of the run that was cut off, once of the one
    that went on.
    """
    federation = tiny(2)
    federation.run(tmp_path / "run")
    before = [timeless(row) for row in metric_lines(tmp_path / "run")]
    federation.run(tmp_path / "run", resume=True)
    assert [timeless(row) for row in metric_lines(tmp_path / "run")] == before


def test_fewer_nodes_than_expected_are_an_error_or_said(tiny, tmp_path):
    """2 of 5 hospitals, `completed`, and a better score than all five have."""
    federation = tiny(2)
    with pytest.raises(RunFailed, match="2 of 5 nodes are there"):
        federation.run(tmp_path / "refused", expected=5)
    result = json.loads((tmp_path / "refused" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "missing: allow" in result["error"]

    result, _ = federation.run(tmp_path / "allowed", ["aggregate.missing=allow"], expected=5)
    assert (result["status"], result["missing"]) == ("completed", 3)
    assert any("3 were expected and not there" in line for line in describe_results([result]))
    result, _ = federation.run(tmp_path / "all", ["aggregate.missing=allow"])
    assert "missing" not in result


def test_a_resumed_run_does_not_count_its_nodes_twice(tiny, tmp_path):
    """16 nodes that the backbone was sent to, of 8: those of a simulation keep nothing."""
    federation = tiny(3)
    federation.run(tmp_path / "run")
    for path in federation.nodes:
        shutil.rmtree(load_node(path).store, ignore_errors=True)
    result, _ = federation.run(tmp_path / "run", resume=True)
    assert result["bytes"]["handout"]["nodes"] == 3


def test_lines_of_an_unfinished_round_are_run_again(tiny, tmp_path):
    """Half a line, or lines of a round without a checkpoint, left in metrics.jsonl after a power
    cut.
    """
    federation = tiny(2)
    with pytest.raises(KeyboardInterrupt):
        federation.run(tmp_path / "out", stop_before=2)
    with (tmp_path / "out" / "metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "node": "h0"}\n{"round": 2, "no')
    federation.run(tmp_path / "out", resume=True)
    rounds = [row["round"] for row in metric_lines(tmp_path / "out")]
    assert rounds == [1, 1, 2, 2, 3, 3, 3, 3]  # the last two are the final evaluation


def test_a_run_cut_off_before_its_first_round_can_go_on(tiny, tmp_path):
    """A folder that neither the same command nor --resume accepts."""
    federation = tiny(2)
    with pytest.raises(KeyboardInterrupt):
        federation.run(tmp_path / "cut", stop_before=1)
    federation.run(tmp_path / "cut", resume=True)
    federation.run(tmp_path / "whole")
    assert shared_bytes(tmp_path / "cut") == shared_bytes(tmp_path / "whole")


# ── repeatable ────────────────────────────────────────────────────────────────────────────────────
def test_a_seed_gives_the_same_model_whatever_the_workers(tiny, tmp_path):
    """Sums in the order of arrival, or randomness shared between nodes."""
    federation = tiny(4)
    for out, workers, seed in (("a", 1, 5), ("b", 2, 5), ("c", 4, 5), ("other", 2, 6)):
        federation.run(tmp_path / out, [f"seed={seed}"], workers=workers)
    assert (
        shared_bytes(tmp_path / "a") == shared_bytes(tmp_path / "b") == shared_bytes(tmp_path / "c")
    )
    assert shared_bytes(tmp_path / "a") != shared_bytes(tmp_path / "other")


def test_a_cohort_is_drawn_by_the_seed(tiny, tmp_path):
    """A cohort that differs between two runs of a seed, is always the same, or not of the size
    asked for.
    """
    federation = tiny(4)
    sets = ["aggregate.fraction=0.5", "train.rounds=6"]

    def cohorts(out: str, *more: str) -> list[tuple[str, ...]]:
        result, _ = federation.run(tmp_path / out, [*sets, *more])
        assert [row["nodes"] for row in result["bytes"]["rounds"]] == [2] * 6
        assert len(result["final"]["nodes"]) == 4
        lines = [row for row in metric_lines(tmp_path / out) if "final" not in row]
        return [tuple(row["node"] for row in lines if row["round"] == k) for k in range(1, 7)]

    first = cohorts("a")
    assert first == cohorts("b")
    assert len(set(first)) > 1
    assert first != cohorts("c", "seed=1")


# ── the run's folder ──────────────────────────────────────────────────────────────────────────────
def test_the_folder_is_as_agreed(tiny, tmp_path):
    """A key of result.json or a file that others rely on is missing, or is no number."""
    federation = tiny(3)
    result, _ = federation.run(tmp_path / "out")
    on_disk = json.loads((tmp_path / "out" / "result.json").read_text())
    assert timeless(on_disk) == timeless(json.loads(json.dumps(result)))
    wanted = {
        "schema",
        "status",
        "plan_hash",
        "seed",
        "versions",
        "backbone",
        "final",
        "baselines",
        "bytes",
    }
    assert wanted | {"privacy", "refused", "seconds", "peak_rss_bytes"} <= set(result)
    assert {"fedgraft", "torch", "flwr"} <= set(result["versions"])
    assert {"name", "fingerprint_before", "fingerprint_after"} <= set(result["backbone"])
    assert {"adapter", "full_model", "backbone", "total", "rounds"} <= set(result["bytes"])
    assert [set(row) for row in result["bytes"]["rounds"]] == [{"round", "nodes", "down", "up"}] * 3
    assert set(result["final"]["nodes"]) == {"h0", "h1", "h2"}
    for row in (result["final"]["global"], *result["final"]["nodes"].values()):
        assert set(row) == {"accuracy", "auroc", "f1", "loss", "calibration_error", "examples"}
    assert {"handout", "rounds", "evaluate", "total"} <= set(result["seconds"])
    assert all(isinstance(value, float) for value in result["seconds"].values())
    # 13 columns would be 26 inputs; here 6 inputs, two hidden layers of 8 and a head of 2
    assert result["bytes"]["full_model"] == 4 * ((6 * 8 + 8) + (8 * 8 + 8) + (8 * 2 + 2))
    assert result["peak_rss_bytes"] > 10**7
    # where each node computed, with what last bits depend on
    assert set(result["devices"]) == set(result["nodes"])
    assert all(text.startswith("cpu, ") for text in result["devices"].values())
    assert result["precision"] == "float32"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "plan.yaml", "result.json", "metrics.jsonl", "shared_model", "checkpoints"
    }  # fmt: skip
    assert {"adapter_model.safetensors", "adapter_config.json", "MODEL_CARD.md"} <= {
        path.name for path in (tmp_path / "out" / "shared_model").iterdir()
    }
    assert RunFolder.open_existing(tmp_path / "out", federation.plan())


def test_the_metrics_file_grows_while_it_runs(tiny, tmp_path):
    """Metrics written at the end only, so that nobody can follow a run."""
    seen: dict[str, int] = {}
    file = tmp_path / "out" / "metrics.jsonl"

    def look(messages: list[Message]) -> None:
        about = messages[0].metadata
        if not about.message_type.startswith("query"):
            seen[f"{about.message_type} {about.group_id}"] = (
                len(file.read_text().splitlines()) if file.exists() else 0
            )

    tiny(3).run(tmp_path / "out", on_push=look)
    assert seen == {"train 1": 0, "train 2": 3, "train 3": 6, "evaluate evaluate": 9}
    assert len(metric_lines(tmp_path / "out")) == 12
    for row in metric_lines(tmp_path / "out")[:9]:
        assert set(row) == {"round", "node", "bytes", "train", "received"}


def test_the_shared_model_reloads_and_its_metrics_are_those_of_pooled_predictions(tiny, tmp_path):
    """A saved model with other outputs than the one in memory, or merged sums that are not the
    pooled metrics.
    """
    federation = tiny(3)
    result, _ = federation.run(tmp_path / "out", ["train.rounds=6"])
    plan = federation.plan("train.rounds=6")
    backbone = plan_backbone(plan, federation.path.parent)
    checkpoint = RunFolder.open_existing(tmp_path / "out", plan).latest()
    assert checkpoint is not None
    in_memory = plan_model(backbone, plan)
    in_memory.load_adapter_state(checkpoint.adapter)

    shared = load_shared_model(tmp_path / "out")
    probabilities, labels = [], []
    for path in federation.nodes:
        _, test = open_splits(load_node(path), plan, backbone.preprocess)
        raw = test.records.read(test.rows)
        ours = shared.predict(raw)
        with torch.inference_mode():
            assert torch.equal(ours, in_memory(raw).softmax(dim=1))
        probabilities.append(ours.double().numpy())
        labels.append(test.labels.numpy())
        mine = result["final"]["nodes"][load_node(path).name]
        assert mine["accuracy"] == pytest.approx(
            sk.accuracy_score(labels[-1], probabilities[-1].argmax(1))
        )
    truth, scores = np.concatenate(labels), np.concatenate(probabilities)
    scores /= scores.sum(axis=1, keepdims=True)  # float32 sums to one only nearly
    found = result["final"]["global"]
    assert found["examples"] == len(truth)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, scores.argmax(1)))
    assert found["f1"] == pytest.approx(sk.f1_score(truth, scores.argmax(1)))
    resolution = sums_of(torch.from_numpy(scores).log(), torch.from_numpy(truth)).auroc_resolution()
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth, scores[:, 1]), abs=resolution)
    assert found["loss"] == pytest.approx(sk.log_loss(truth, scores), rel=1e-5)


# ── strategies ────────────────────────────────────────────────────────────────────────────────────
def by_hand(strategy: str, updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The papers' formulas, value by value, in double precision. `updates` (nodes, values)."""
    nodes, values = updates.shape
    if strategy == "fedavg":  # McMahan et al. 2017, algorithm 1
        return np.array(
            [sum(w * u for w, u in zip(weights, updates[:, j], strict=True)) for j in range(values)]
        ) / sum(weights)
    if strategy == "krum":  # Blanchard et al. 2017, section 4, f = 0: the n − 2 nearest others
        scores = []
        for i in range(nodes):
            distances = sorted(
                float(((updates[i] - updates[k]) ** 2).sum()) for k in range(nodes) if k != i
            )
            scores.append(sum(distances[: nodes - 2]))
        return updates[int(np.argmin(scores))]
    cut = {"median": (nodes - 1) // 2, "trimmed-mean": int(0.2 * nodes)}[
        strategy
    ]  # Yin et al. 2018
    return np.array([np.mean(sorted(updates[:, j])[cut : nodes - cut]) for j in range(values)])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs_and_the_plain_ones_follow_their_formulas(tiny, tmp_path, strategy):
    """A name that leads to another rule, or updates that are weighted wrongly."""
    sets = [f"aggregate.strategy={strategy}", "train.rounds=2"]
    if strategy == "fedprox":
        sets.append("train.proximal=0.1")
    result, grid = tiny(5).run(tmp_path / "out", sets)
    assert result["status"] == "completed"
    assert result["refused"] == []
    if strategy not in ("fedavg", "median", "trimmed-mean", "krum"):
        return
    kinds = {
        m.metadata.message_id: (m.metadata.message_type, m.metadata.group_id) for m in grid.down
    }
    received = {
        key: next(
            m.content.array_records[ADAPTER][ADAPTER].numpy()
            for m in grid.down
            if kinds[m.metadata.message_id] == key
        )
        for key in (("train", "2"), ("evaluate", "evaluate"))
    }
    for round_, became in ((1, received["train", "2"]), (2, received["evaluate", "evaluate"])):
        replies = [
            m for m in grid.up if kinds[m.metadata.reply_to_message_id] == ("train", str(round_))
        ]
        updates = np.stack(
            [m.content.array_records[ADAPTER][ADAPTER].numpy() for m in replies]
        ).astype(np.float64)
        weights = np.array(
            [m.content.metric_records["train"]["num-examples"] for m in replies], np.float64
        )
        np.testing.assert_allclose(
            became, by_hand(strategy, updates, weights), rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize(("encoding", "most"), [("fp16", 0.55), ("int8", 0.32)])
def test_encoded_updates_are_smaller_and_arrive(tiny, tmp_path, encoding, most):
    """Updates that are as large as before, or a model that went elsewhere."""
    wide = ["backbone.hidden=[256, 256]", "adapter.rank=16", "train.rounds=4"]
    plain, _ = tiny(3).run(tmp_path / "plain", wide)
    short, _ = tiny(3).run(tmp_path / encoding, [*wide, f"aggregate.encoding={encoding}"])
    assert short["bytes"]["rounds"][0]["up"] / plain["bytes"]["rounds"][0]["up"] < most
    assert short["encoding"]["kind"] == encoding
    assert 0 < short["encoding"]["relative_error"] < {"fp16": 1e-3, "int8": 0.1}[encoding]
    assert short["final"]["global"]["loss"] == pytest.approx(
        plain["final"]["global"]["loss"], abs=0.01
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["aggregate.lora_aggregation=svd"],
        [
            "privacy={mode: central, unit: node, noise_multiplier: 1.0, delta: 1e-3, clipping:"
            " adaptive}"
        ],
    ],
)
def test_an_encoding_that_would_break_something_is_refused(tiny, overrides):
    with pytest.raises(UserErrors, match="encoding"):
        tiny(3).plan("aggregate.encoding=int8", *overrides)
