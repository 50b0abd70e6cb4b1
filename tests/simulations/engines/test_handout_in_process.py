"""Handing out the backbone when the wire or a node is not well."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message, RecordDict

from fedgraft.client.node.node_file import load_node
from fedgraft.common.backbones.backbone import backbone_state
from fedgraft.common.errors import RunFailed
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.server import handout
from tests.simulations.conftest import client_app


class Wire:
    """Delivers messages to the ClientApp; flips one bit of the first `times` backbones that each
    named node gets.
    """

    def __init__(self, times: int, nodes: set[int]) -> None:
        self._times, self._nodes = times, nodes
        self.arrived: Counter[int] = Counter()

    def __call__(self, message: Message, context: Any) -> Message:
        node = context.node_id
        if message.metadata.message_type == "query.backbone":
            self.arrived[node] += 1
            if node in self._nodes and self.arrived[node] <= self._times:
                state = message.content.array_records["backbone"].to_torch_state_dict()
                name = next(iter(state))
                state[name] = state[name].clone()
                state[name].view(-1)[0] += 1e-6
                record: dict[str, Any] = {
                    "backbone": ArrayRecord(state),
                    "about": message.content["about"],
                }
                message.content = RecordDict(record)
        return client_app(message, context)


def test_a_wrong_byte_is_asked_for_once_more(tiny, tmp_path):
    """A node that is lost to one flipped bit; or a second copy for those that had a good one."""
    wire = Wire(1, nodes={2})
    result, grid = tiny().run(tmp_path / "run", handle=wire)
    assert result["status"] == "completed"
    assert wire.arrived == {2: 2, 3: 1, 4: 1}
    assert len(result["nodes"]) == 3
    assert not result["refused"]
    assert result["bytes"]["handout"]["nodes"] == 3
    sizes = [
        len(m.content["backbone"]) for m in grid.down if m.metadata.message_type == "query.backbone"
    ]
    assert len(sizes) == 4


def test_a_wrong_byte_in_one_of_many_parts(tiny, tmp_path, monkeypatch):
    """A flipped bit that only the whole shows: all parts go once more to the node that has it, and
    to no other.
    """
    monkeypatch.setattr(handout, "PART", 100)
    made = tiny()
    for node in (
        made.nodes
    ):  # a disk for each, as hospitals have; otherwise another node's good part would do
        (load_node(node).store / "backbones").unlink()
    state = backbone_state(plan_backbone(made.plan(), made.path.parent))
    count = len(list(handout.parts_of(state, 100)))
    wire = Wire(1, nodes={2})
    result, grid = made.run(tmp_path / "run", handle=wire)
    assert count > 2
    assert result["status"] == "completed"
    assert wire.arrived == {2: 2 * count, 3: count, 4: count}
    assert len(result["nodes"]) == 3
    sent = [m.content["backbone"] for m in grid.down if m.metadata.message_type == "query.backbone"]
    assert {name for part in sent for name in part} == set(state)


def test_a_second_wrong_byte_is_reported(tiny, tmp_path):
    """A node that is sent the backbone for ever; a federation that waits for it; or one that does
    not say so.
    """
    wire = Wire(9, nodes={2})
    result, _ = tiny().run(tmp_path / "run", handle=wire)
    assert result["status"] == "completed"
    assert wire.arrived == {2: 2, 3: 1, 4: 1}
    (refused,) = [row for row in result["refused"] if row["round"] == 0]
    assert "sent twice" in refused["reason"]
    assert "the backbone that arrived is sha256:" in refused["reason"]
    assert refused["node"] not in result["nodes"] or result["rounds_done"] == 3
    assert all(row["nodes"] == 2 for row in result["bytes"]["rounds"])


def test_too_few_good_copies_end_the_run(tiny, tmp_path):
    """Rounds with fewer nodes than the plan asks for."""
    with pytest.raises(RunFailed, match="0 of 3 nodes joined"):
        tiny().run(tmp_path / "run", handle=Wire(9, nodes={2, 3, 4}))


def test_a_refusal_by_policy_is_not_asked_again(tiny, tmp_path):
    """Hundreds of megabytes, sent again to somebody who said no."""
    federation = tiny()
    wire = Wire(0, nodes=set())

    def refuse(message: Message, context: Any) -> Message:
        if message.metadata.message_type == "query.backbone" and context.node_id == 2:
            wire.arrived[2] += 1
            from flwr.app import ConfigRecord

            words = ConfigRecord(
                {
                    "code": "policy",
                    "reason": "policy: backbone is not approved at this node",
                    "node": "h0",
                }
            )
            return Message(RecordDict({"refused": words}), reply_to=message)
        return wire(message, context)

    federation.run(tmp_path / "run", handle=refuse)
    assert wire.arrived[2] == 1
