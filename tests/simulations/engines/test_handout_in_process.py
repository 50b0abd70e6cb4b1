"""Handing out the backbone when the wire or a node is not well."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from fedgraft.client.node.node_file import load_node
from fedgraft.common.backbones.backbone import backbone_state
from fedgraft.common.errors import RunFailed
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.wire.backbone_parts import PartTable, hash_pieces, part_content, read_part
from fedgraft.server import send_parts
from tests.simulations.conftest import client_app


class Wire:
    """Delivers messages to the ClientApp; flips one bit of the first `times` messages of a backbone
    that each named node gets.

    Args:
        hashes: with the hash of what arrives then: only the whole shows it.
    """

    def __init__(self, times: int, nodes: set[int], *, hashes: bool = False) -> None:
        self._times, self._nodes, self._hashes = times, nodes, hashes
        self.arrived: Counter[int] = Counter()

    def __call__(self, message: Message, context: Any) -> Message:
        node = context.node_id
        if message.metadata.message_type == "query.backbone":
            self.arrived[node] += 1
            if node in self._nodes and self.arrived[node] <= self._times:
                message.content = self._flip(message.content)
        return client_app(message, context)

    def _flip(self, content: RecordDict) -> RecordDict:
        part = read_part(content)
        first, *others = part.pieces
        pieces = [bytes([first[0] ^ 1]) + first[1:], *others]
        digest = hash_pieces(pieces) if self._hashes else part.digest
        flipped = dataclasses.replace(part, pieces=pieces, digest=digest)
        return part_content(flipped, str(content.config_records["about"]["fingerprint"]))


def part_disks(federation: Any) -> None:
    """A disk for each node, as hospitals have; otherwise another node's good part would do."""
    for node in federation.nodes:
        (load_node(node).store / "backbones").unlink()


def test_a_wrong_byte_is_asked_for_once_more(tiny, tmp_path):
    """A node that is lost to one flipped bit; or a second copy for those that had a good one."""
    wire = Wire(1, nodes={2})
    made = tiny()
    part_disks(made)
    result, grid = made.run(tmp_path / "run", handle=wire)
    assert result["status"] == "completed"
    assert wire.arrived == {2: 2, 3: 1, 4: 1}
    assert len(result["nodes"]) == 3
    assert not result["refused"]
    assert result["bytes"]["handout"]["nodes"] == 3
    sizes = [
        len(m.content["backbone"]) for m in grid.down if m.metadata.message_type == "query.backbone"
    ]
    assert len(sizes) == 4


@pytest.mark.parametrize("hashes", [False, True])
def test_a_wrong_byte_in_one_of_many_parts(tiny, tmp_path, monkeypatch, hashes):
    """A flipped bit for which more is sent again than that part; one that only the whole shows, for
    which all goes once more; to the node that has it, and to no other.
    """
    monkeypatch.setattr(send_parts, "PART", 100)
    made = tiny()
    part_disks(made)
    state = backbone_state(plan_backbone(made.plan(), made.path.parent))
    count = PartTable.of(state, 100).parts
    wire = Wire(1, nodes={2}, hashes=hashes)
    result, grid = made.run(tmp_path / "run", handle=wire)
    assert count > 2
    assert result["status"] == "completed"
    again = count if hashes else 1
    assert wire.arrived == {2: count + again, 3: count, 4: count}
    assert len(result["nodes"]) == 3
    sent = [m for m in grid.down if m.metadata.message_type == "query.backbone"]
    assert len(sent) == 3 * count + again


def test_a_second_wrong_byte_is_reported(tiny, tmp_path):
    """A node that is sent the backbone for ever; a federation that waits for it; or one that does
    not say so.
    """
    wire = Wire(9, nodes={2}, hashes=True)
    made = tiny()
    part_disks(made)
    result, _ = made.run(tmp_path / "run", handle=wire)
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
