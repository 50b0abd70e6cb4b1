"""The audit log holds every message and nothing of the data; metrics are its sums."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.client.node.node_file import Connection, Data, Node
from fedgraft.client.site.condition import Condition
from fedgraft.client.site.node_metrics import Tally, serve
from fedgraft.client.store.audit_log import Audit, in_words
from fedgraft.client.store.journal import Journal
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.wire.layout import ADAPTER, Layout
from fedgraft.common.wire.update import AdapterUpdate

STATE = {"head.weight": torch.full((2, 3), 0.123456), "head.bias": torch.tensor([7.25, -3.5])}
LAYOUT = Layout.of(STATE)


def asked(seconds: float = 3600) -> Message:
    about = ConfigRecord(
        {
            "round": 3,
            "plan-hash": "sha256:" + "a" * 64,
            "layout": LAYOUT.digest,
            "secret": "name.png",
        }
    )
    content = RecordDict({"about": about, ADAPTER: ArrayRecord([np.zeros(8, np.float32)])})
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 77, 1, 1
    return Message(content, dst_node_id=5, message_type="train", ttl=seconds)


def answered(message: Message) -> Message:
    update = AdapterUpdate(
        round=3,
        state=STATE,
        examples=1234,
        steps=9,
        train_loss=0.987,
        seconds=1.5,
        received=None,
        spent=None,
    )
    content = update.to_record(LAYOUT)
    content["privacy"] = ConfigRecord({"epsilon": 1.25, "delta": 1e-5, "unit": "example"})
    return Message(content, reply_to=message)


def test_an_answer_that_came_too_late_is_said_to_be_dropped(tmp_path: Path) -> None:
    """Written down as sent, the coordinator's records and the hospital's contradict one another."""
    audit, message = Audit(tmp_path / "audit.jsonl"), asked(seconds=1e-6)
    audit.log_answer(answered(message), message, layout=LAYOUT, seconds=2.0, left=None)
    (entry,) = Journal(tmp_path / "audit.jsonl").entries()
    assert entry.body["decision"] == "late"
    assert "stopped waiting" in in_words(entry.body)
    assert entry.body["epsilon"] == 1.25, "what it spent stays spent"


def test_in_and_out_by_name_shape_and_size_never_by_value(tmp_path: Path) -> None:
    audit, message = Audit(tmp_path / "audit.jsonl"), asked()
    audit.log_arrival(message)
    audit.log_answer(answered(message), message, layout=LAYOUT, seconds=2.0, left=1.75)
    came, went = (entry.body for entry in Journal(tmp_path / "audit.jsonl").entries())
    assert (came["kind"], came["run"], came["round"], came["plan"]) == (
        "train",
        "77",
        3,
        "sha256:" + "a" * 64,
    )
    assert went["tensors"] == {"head.bias": [2], "head.weight": [2, 3]}
    assert went["metrics"] == {"train": ["num-examples", "seconds", "steps", "train-loss"]}
    assert (went["decision"], went["epsilon"], went["epsilon_left"], went["delta"]) == (
        "sent",
        1.25,
        1.75,
        1e-5,
    )
    assert came["bytes"] > 32
    assert "round 3" in in_words(went)
    written = (tmp_path / "audit.jsonl").read_text()
    for value in ("0.123", "7.25", "-3.5", "1234", "0.987", "name.png", "secret"):
        assert value not in written, f"{value} is data"


def test_a_refusal_and_its_reason(tmp_path: Path) -> None:
    audit, message = Audit(tmp_path / "audit.jsonl"), asked()
    refusal = RecordDict({"refused": ConfigRecord({"reason": "policy: dp_required", "node": "a"})})
    audit.log_answer(
        Message(refusal, reply_to=message), message, layout=None, seconds=0.1, left=None
    )
    (entry,) = Journal(tmp_path / "audit.jsonl").entries()
    assert (entry.body["decision"], entry.body["reason"]) == ("refused", "policy: dp_required")


def test_what_cannot_be_written_down_does_not_happen(tmp_path: Path) -> None:
    audit, message = Audit(tmp_path / "audit.jsonl"), asked()
    audit.log_arrival(message)
    (tmp_path / "audit.jsonl").write_text("")
    with pytest.raises(Refused, match="cannot keep its audit log"):
        audit.log_arrival(message)


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    Audit(None).log_arrival(asked())
    assert not list(tmp_path.iterdir())
    simulated = Node(name="a", data=Data(path="x.npz"), store=tmp_path)
    connected = simulated.model_copy(
        update={"connection": Connection(superlink="h:1", root_certificates="c", private_key="k")}
    )
    assert simulated.audit_path is None
    assert connected.audit_path == tmp_path / "audit.jsonl"


def test_metrics_are_the_sums_of_the_log_read_bit_by_bit(tmp_path: Path) -> None:
    tally, audit = Tally(tmp_path / "audit.jsonl"), Audit(tmp_path / "audit.jsonl")
    audit.journal.segment = 2500  # pyright: ignore[reportOptionalMemberAccess]
    for _ in range(6):
        message = asked()
        audit.log_arrival(message)
        audit.log_answer(answered(message), message, layout=LAYOUT, seconds=2.0, left=1.75)
        tally.read()
    assert len(tally.journal.segments()) > 1
    entries = list(Journal(tmp_path / "audit.jsonl").entries())
    assert tally.messages == {("train", "sent"): 6}
    assert tally.seconds == {"train": 12.0}
    assert sum(tally.bytes.values()) == sum(entry.body["bytes"] for entry in entries)
    assert tally.epsilon == {"77": (1.25, 1.75)}
    fresh = Tally(tmp_path / "audit.jsonl")
    fresh.read()
    assert fresh.bytes == tally.bytes


def test_prometheus_can_fetch_them(tmp_path: Path) -> None:
    message = asked()
    Audit(tmp_path / "audit.jsonl").log_answer(
        answered(message), message, layout=LAYOUT, seconds=2.0, left=1.75
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    node = Node(
        name="a", data=Data(path="x.npz"), store=tmp_path, audit=True, metrics=f"127.0.0.1:{port}"
    )
    condition = Condition(lambda event, what: None)
    condition.restarts["executor"] += 1
    server, _ = serve(node, condition)
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        with pytest.raises(UserError, match="metrics"):
            serve(node)
    finally:
        server.shutdown()
    assert "fedgraft_node_rounds_total 1.0" in text
    assert "fedgraft_node_able 0.0" in text
    assert 'fedgraft_node_restarts_total{process="executor"} 1.0' in text
    assert 'fedgraft_node_restarts_total{process="supernode"} 0.0' in text
    assert "fedgraft_node_lost_total 0.0" in text
    assert 'fedgraft_node_epsilon_left{run="77"} 1.75' in text
    assert json.dumps("head") not in text
