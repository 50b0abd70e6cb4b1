"""Offers the plan and its backbone by fingerprint; sends the backbone once, to the nodes that lack
it.

A large backbone goes in parts, one after the other: Flower keeps some three copies of a message's
tensors in each process that it passes, so what a process needs is a few parts and not a few
backbones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedgraft.common.backbones.backbone import Backbone, backbone_state
from fedgraft.common.errors import RunFailed
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import canonical, plan_hash
from fedgraft.server.exchange import exchange

OFFER_TIMEOUT = 600.0  # seconds; a node opens its data before it answers
PART = 64_000_000  # bytes of tensors in a message; a larger tensor goes alone


@dataclass
class Roster:
    """The nodes that accepted the plan and hold the backbone, by name.

    Attributes:
        examples: the weight that each node said its updates will have; none may claim more later.
        nodes: name → Flower's node id. A node that came back under a new id replaces its old one,
            once that is gone.
        refused: `(node, reason)` of every node that did not join.
        down, up: bytes of the hand-out by node.
        sent: nodes that were sent the backbone (the others had it).
    """

    nodes: dict[str, int] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    down: dict[str, int] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    _asked: set[int] = field(default_factory=set)

    def refresh(self, grid: Grid, plan: Plan, backbone: Backbone) -> None:
        """Offer the plan to every connected node that was not asked yet, and hand out the
        backbone.
        """
        connected = set(grid.get_node_ids())
        self.nodes = {name: node_id for name, node_id in self.nodes.items() if node_id in connected}
        self._asked &= connected  # with a key, a node that was lost comes back under its old id
        new = sorted(connected - self._asked)
        if not new:
            return
        self._asked.update(new)

        offer = {
            "plan": canonical(plan),
            "plan-hash": plan_hash(plan),
            "fingerprint": backbone.fingerprint,
            "preprocess": json.dumps(backbone.preprocess.to_json()),
        }
        ids = {str(node_id): node_id for node_id in new}
        content = RecordDict({"offer": ConfigRecord(dict(offer))})
        replies = exchange(grid, "query.offer", content, ids, group="0", timeout=OFFER_TIMEOUT)
        for key in sorted(replies.refused, key=int):
            self.refused.append((replies.called.get(key, key), replies.refused[key]))
        joined, taken = set[str](), set(self.nodes)
        lacking: dict[str, int] = {}
        for key in sorted(replies.contents, key=int):
            about = replies.contents[key].config_records.get("about", ConfigRecord())
            name = str(about.get("node", ""))
            if (
                name in taken
            ):  # perhaps that node under a new id: asked again until its old one is gone
                self._asked.discard(ids[key])
            if not name or len(name) > 100 or name in joined or name in taken:
                self.refused.append(
                    (key, f"answered the offer under an unusable or taken name {name[:100]!r}")
                )
                continue
            examples = about.get("examples")
            if not isinstance(examples, int) or examples < 1:
                self.refused.append(
                    (name, f"answered the offer with {str(examples)[:40]} examples")
                )
                continue
            joined.add(name)
            self.nodes[name], self.examples[name] = ids[key], examples
            self.down[name] = self.down.get(name, 0) + replies.down[key]
            self.up[name] = self.up.get(name, 0) + replies.up[key]
            if not about.get("has"):
                lacking[name] = ids[key]
        if lacking:
            self._send(grid, backbone, lacking)

    def forget_noted(self) -> None:
        """Empty what was written into the result: refusals, bytes, and who was sent the
        backbone.
        """
        for noted in (self.refused, self.down, self.up, self.sent):
            noted.clear()

    def _send(self, grid: Grid, backbone: Backbone, lacking: dict[str, int]) -> None:
        """Send the backbone; once more to nodes whose copy was not what was offered; report those
        that failed twice.
        """
        waiting, reasons = dict(lacking), dict.fromkeys(lacking, "")
        for attempt in ("", "sent twice; "):
            failed = self._send_once(grid, backbone, waiting)
            for name in waiting:
                if name in failed:
                    reasons[name] = attempt + failed[name][0]
                else:
                    self.sent.append(name)
                    del reasons[name]
            waiting = {
                name: waiting[name]
                for name, (reason, answered) in failed.items()
                if _damaged(reason, answered)
            }
            if not waiting:
                break
        for name, reason in reasons.items():
            self.nodes.pop(name, None)
            self.refused.append((name, reason))

    def _send_once(
        self, grid: Grid, backbone: Backbone, nodes: Mapping[str, int]
    ) -> dict[str, tuple[str, bool]]:
        """Send every part to these nodes. Of those that do not hold the backbone then: why, and if
        they said so.
        """
        going, failed = dict(nodes), dict[str, tuple[str, bool]]()
        parts = list(parts_of(backbone_state(backbone), PART))
        for number, part in enumerate(parts, start=1):
            content = RecordDict(
                {
                    "backbone": ArrayRecord(part),  # pyright: ignore[reportArgumentType]
                    "about": ConfigRecord(
                        {"fingerprint": backbone.fingerprint, "part": number, "parts": len(parts)},
                    ),
                }
            )
            wanted = ("stored", backbone.fingerprint) if number == len(parts) else ("part", number)
            replies = exchange(
                grid, "query.backbone", content, going, group="0", timeout=OFFER_TIMEOUT
            )
            for name in list(going):
                self.down[name] += replies.down[name]
                self.up[name] += replies.up.get(name, 0)
                about = replies.contents.get(name, RecordDict()).config_records.get(
                    "about", ConfigRecord()
                )
                if about.get(wanted[0]) != wanted[1]:
                    reason = replies.refused.get(name, "did not confirm the backbone")
                    failed[name] = (reason, name in replies.called)
                    del going[name]
            if not going:
                break
        return failed


def parts_of(state: Mapping[str, Tensor], most: int) -> Iterator[dict[str, Tensor]]:
    """The tensors in their order, in groups of at most `most` bytes; one that is larger by
    itself.
    """
    part: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if part and sum(other.nbytes for other in part.values()) + tensor.nbytes > most:
            yield part
            part = {}
        part[name] = tensor
    yield part


def _damaged(reason: str, answered: bool) -> bool:
    """Whether another copy may help: the node answered, and what it said is not that its policy
    forbids it.
    """
    return answered and not reason.startswith("policy:")


def gather(grid: Grid, plan: Plan, backbone: Backbone, *, expected: int, patience: float) -> Roster:
    """Wait until `expected` nodes are connected (at most `patience` seconds), then offer and hand
    out.

    Raises:
        RunFailed: fewer than the plan's `min_nodes` joined; the message says why each other one did
            not.
    """
    deadline = time.monotonic() + patience
    while len(list(grid.get_node_ids())) < expected and time.monotonic() < deadline:
        time.sleep(0.2)
    roster = Roster()
    roster.refresh(grid, plan, backbone)
    if len(roster.nodes) < plan.aggregate.min_nodes:
        reasons = (
            "".join(f"\n  {node}: {reason}" for node, reason in roster.refused)
            or "\n  no other node came"
        )
        raise RunFailed(
            f"{len(roster.nodes)} of {expected} nodes joined; aggregate.min_nodes is "
            f"{plan.aggregate.min_nodes}. Those that did not:{reasons}"
        )
    return roster
