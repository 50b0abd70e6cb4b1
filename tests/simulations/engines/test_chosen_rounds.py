"""A round that is chosen by validation records: which one is kept, when training ends, and that no
test record has a say in it.
"""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict

from fedgraft.client.app import make_client_app
from fedgraft.client.node_task import open_data
from fedgraft.common.errors import RunFailed, UserError
from fedgraft.common.model.shared_model import load_shared_model
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.simulations.engines.simulated_node import load_simulated_node, simulation_desk
from fedgraft.simulations.engines.together import train_together
from fedgraft.simulations.simulated_nodes import write_nodes
from tests.simulations.conftest import DESK, Tiny, client_app

# too many steps for few rows: the loss on other rows falls until round 2, then it rises
OVERFITS = (
    "train.rounds=7",
    "train.local_epochs=5",
    "train.optimizer.lr=0.02",
    "evaluate.validation_fraction=0.3",
)
BEST = (*OVERFITS, "train.keep=best")
KEPT = 2


def shared_bytes(run: Path) -> bytes:
    return (run / "shared_model" / "adapter_model.safetensors").read_bytes()


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def rounds_of(result: dict[str, Any]) -> list[int]:
    return [measured["round"] for measured in result["validation"]["rounds"]]


# ── which round ───────────────────────────────────────────────────────────────────────────────────
def test_the_best_round_is_kept_and_not_the_last(tiny, tmp_path):
    """The last round's model under the best one's name; or a best round whose checkpoint was
    removed.
    """
    federation = tiny(3)
    result, _ = federation.run(tmp_path / "best", BEST)
    federation.run(tmp_path / "last", OVERFITS)
    short, _ = federation.run(tmp_path / "short", (*OVERFITS, f"train.rounds={KEPT}"))

    losses = [measured["metrics"]["loss"] for measured in result["validation"]["rounds"]]
    assert rounds_of(result) == [1, 2, 3, 4, 5, 6, 7]
    assert int(np.argmin(losses)) + 1 == result["validation"]["best"] == KEPT
    assert result["rounds_done"] == 7
    assert shared_bytes(tmp_path / "best") == shared_bytes(tmp_path / "short")
    assert shared_bytes(tmp_path / "best") != shared_bytes(tmp_path / "last")
    assert result["final"] == short["final"]
    # it opens as the model of its round
    load_shared_model(tmp_path / "best")


def test_training_ends_where_rounds_bring_nothing_better(tiny, tmp_path):
    """Rounds that nobody needs; or an end that comes too early, or is not told."""
    federation = tiny(3)
    result, grid = federation.run(tmp_path / "out", (*BEST, "train.patience=2"))
    assert result["status"] == "completed"
    assert rounds_of(result) == [1, 2, 3, 4]
    assert result["rounds_done"] == 4
    assert result["validation"]["ended_early"]
    assert result["validation"]["best"] == KEPT
    trained = {m.metadata.group_id for m in grid.down if m.metadata.message_type == "train"}
    assert trained == {"1", "2", "3", "4"}

    federation.run(tmp_path / "short", (*OVERFITS, f"train.rounds={KEPT}"))
    assert shared_bytes(tmp_path / "out") == shared_bytes(tmp_path / "short")

    # without `keep` the last of the rounds that were run is shared
    last, _ = federation.run(tmp_path / "last", (*OVERFITS, "train.patience=2"))
    federation.run(tmp_path / "four", (*OVERFITS, "train.rounds=4"))
    assert last["validation"]["keep"] == "last"
    assert shared_bytes(tmp_path / "last") == shared_bytes(tmp_path / "four")


def test_another_measure_is_gone_by_where_the_plan_says_so(tiny, tmp_path):
    """A loss where an accuracy was asked for, or the worst accuracy for the best."""
    result, _ = tiny(3).run(tmp_path / "out", (*BEST, "train.choose_by=accuracy"))
    values = [measured["metrics"]["accuracy"] for measured in result["validation"]["rounds"]]
    # of equals the first
    assert result["validation"]["best"] == int(np.argmax(values)) + 1
    assert result["validation"]["by"] == "accuracy"


def test_rounds_between_measurements_are_not_chosen(tiny, tmp_path):
    """A round that nobody measured kept as the best one; or the last one never measured."""
    result, _ = tiny(3).run(tmp_path / "out", (*BEST, "evaluate.every=3"))
    assert rounds_of(result) == [3, 6, 7]
    assert result["validation"]["best"] in (3, 6, 7)


def test_a_share_alone_measures_the_last_round_and_chooses_nothing(tiny, tmp_path):
    """A study without numbers to choose by; or rounds that are chosen unasked."""
    result, grid = tiny(3).run(tmp_path / "out", OVERFITS)
    asked = [m for m in grid.down if m.metadata.message_type == "evaluate.validation"]
    assert len(asked) == 3
    assert rounds_of(result) == [7]
    assert result["validation"]["keep"] == "last"
    assert result["rounds_done"] == 7


def test_plans_that_choose_nothing_send_nothing_more(tiny, tmp_path):
    """A message, a line or a key of result.json that older readers do not know."""
    result, grid = tiny(3).run(tmp_path / "out")
    assert {m.metadata.message_type for m in grid.down} <= {
        "query.offer",
        "query.backbone",
        "train",
        "evaluate",
    }
    assert "validation" not in result
    assert "validation" not in result["bytes"]
    assert not any("validation" in line for line in lines_of(tmp_path / "out"))


# ── tests have no say ─────────────────────────────────────────────────────────────────────────────
def with_rows(federation: Tiny, folder: Path) -> None:
    """Write down which rows each node trains on, chooses by and tests on: its own splits."""
    plan = federation.plan(*OVERFITS)
    for number, file in enumerate(federation.nodes):
        splits = open_data(load_simulated_node(file), plan).splits
        rows = folder / f"rows-{number}.npz"
        np.savez(rows, train=splits["train"], val=splits["val"], test=splits["test"])
        file.write_text(file.read_text().replace("data:\n", f"data:\n  rows: {rows}\n"))


def flip(table: Path, rows: np.ndarray) -> None:
    """Give rows of a table the other class."""
    with table.open() as file:
        head, *records = csv.reader(file)
    for row in rows.tolist():
        records[row][-1] = str(1 - int(records[row][-1]))
    text = "\n".join(",".join(record) for record in [head, *records])
    table.write_text(f"{text}\n")


@pytest.mark.parametrize("split", ["test", "val"])
def test_no_test_record_has_a_say(tiny, tmp_path, split):
    """A round chosen on tests: every test label is changed, and nothing but the tests' own metrics
    moves. Of the validation records it must.
    """
    federation = tiny(3)
    with_rows(federation, tmp_path)
    sets = (*BEST, "train.patience=3", "train.calibrate=temperature")
    before, _ = federation.run(tmp_path / "before", sets)
    for number in range(3):
        with np.load(tmp_path / f"rows-{number}.npz") as rows:
            flip(tmp_path / f"h{number}.csv", rows[split])
    # another process, that has none of the data open
    desk = simulation_desk()
    handle = make_client_app(lambda: desk)
    after, _ = federation.run(tmp_path / "after", sets, handle=handle)

    if split == "test":
        assert after["validation"] == before["validation"]
        assert after["calibration"] == before["calibration"]
        assert shared_bytes(tmp_path / "after") == shared_bytes(tmp_path / "before")
        assert after["final"]["global"] != before["final"]["global"]
    else:
        assert after["validation"]["rounds"] != before["validation"]["rounds"]
        assert after["calibration"] != before["calibration"]


# ── the same everywhere ───────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("stop", [2, 4])
def test_a_killed_run_keeps_the_same_round(tiny, tmp_path, stop):
    """A best round that is forgotten, or a round of patience that is counted anew, over a kill."""
    federation = tiny(3)
    sets = (*BEST, "train.patience=3")
    whole, _ = federation.run(tmp_path / "whole", sets)
    with pytest.raises(KeyboardInterrupt):
        federation.run(tmp_path / "out", sets, stop_before=stop)
    # what was finished is shared, and the best of it
    cut = json.loads((tmp_path / "out" / "result.json").read_text())
    assert cut["rounds_done"] == stop - 1
    assert cut["validation"]["best"] == min(KEPT, stop - 1)

    resumed, _ = federation.run(tmp_path / "out", sets, resume=True)
    assert resumed["validation"] == whole["validation"]
    assert resumed["final"] == whole["final"]
    assert resumed["rounds_done"] == whole["rounds_done"]
    assert shared_bytes(tmp_path / "out") == shared_bytes(tmp_path / "whole")

    # a run that has ended is not trained on
    again, grid = federation.run(tmp_path / "out", sets, resume=True)
    assert not [m for m in grid.down if m.metadata.message_type == "train"]
    assert again["validation"] == whole["validation"]
    assert shared_bytes(tmp_path / "out") == shared_bytes(tmp_path / "whole")


def test_nodes_together_keep_the_same_round(tiny, tmp_path):
    """Nodes that are trained at once, and measured by nobody."""
    federation = tiny(3)
    sets = (*BEST, "adapter={method: head}", "train.optimizer.lr=0.2", "train.patience=3")
    apart, _ = federation.run(tmp_path / "apart", sets)
    at_once, _ = federation.run(
        tmp_path / "at_once", sets, together=functools.partial(train_together, DESK)
    )
    assert at_once["validation"]["best"] == apart["validation"]["best"]
    assert rounds_of(at_once) == rounds_of(apart)


# ── nodes that cannot, or will not ────────────────────────────────────────────────────────────────
def test_without_validation_records_nothing_is_chosen(tiny, tmp_path):
    """A round that is chosen by nothing; told before training where the data is at hand."""
    federation = tiny(3)
    sets = (*BEST, "evaluate.validation_fraction=0")
    with pytest.raises(RunFailed, match="round 1: no node measured validation records"):
        federation.run(tmp_path / "out", sets)
    with pytest.raises(UserError, match="by validation records, and the data has none") as caught:
        write_nodes(load_plan(federation.path, sets), federation.path, tmp_path / "others")
    assert "validation_fraction" in caught.value.remedy


def test_a_node_that_measures_nothing_stops_nobody(tiny, tmp_path):
    """One node's silence, or its secrets, in everybody's choice."""

    def handle(message: Message, context: Any) -> Message:
        reply = client_app(message, context)
        node = message.metadata.dst_node_id
        if message.metadata.message_type != "evaluate.validation" or node == 2:
            return reply
        content = reply.content
        if node == 3:
            content["patients"] = MetricRecord({"age": 63})
        else:
            content = RecordDict({"validation": MetricRecord({"examples": -5})})
        return Message(content, reply_to=message)

    result, _ = tiny(3).run(tmp_path / "out", BEST, handle=handle)
    assert result["status"] == "completed"
    told = {(row["node"], row["reason"].split(":")[0]) for row in result["refused"]}
    assert told == {("h1", "validation"), ("h2", "validation")}
    assert {line["node"] for line in lines_of(tmp_path / "out") if "validation" in line} == {"h0"}


def test_a_node_keeps_its_metrics_where_its_policy_says_so(tiny, tmp_path):
    """Sums over validation records that leave a hospital which reports no metrics."""
    federation = tiny(3)
    text = federation.nodes[1].read_text()
    file = federation.nodes[1]
    file.write_text(text.replace("report_metrics: true", "report_metrics: false"))
    result, _ = federation.run(tmp_path / "out", BEST)
    assert {line["node"] for line in lines_of(tmp_path / "out") if "validation" in line} == {
        "h0",
        "h2",
    }
    assert any("reports no metrics" in row["reason"] for row in result["refused"])


def test_a_server_that_asks_out_of_turn_is_refused(tiny, tmp_path):
    """Looks at validation records under a plan that nobody approved them for."""
    asked: list[Message] = []

    def handle(message: Message, context: Any) -> Message:
        if message.metadata.message_type == "evaluate":
            # the same content under another name
            message.metadata.message_type = "evaluate.validation"
        reply = client_app(message, context)
        asked.append(reply)
        return reply

    result, _ = tiny(2).run(tmp_path / "out", handle=handle)
    reasons = [row["reason"] for row in result["refused"]]
    assert len(reasons) == 2
    assert all("measures nothing on validation records" in reason for reason in reasons)
