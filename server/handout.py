"""Offers the plan and its backbone by fingerprint; sends the backbone to the nodes that lack it.

A backbone goes in parts, one after the other (`send_parts.py`): Flower keeps copies of a message's
tensors in each process that it passes, so what a process needs is a few parts and not a few
backbones. A node that has some of the parts says in its answer to the offer which ones it lacks.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.errors import Code, RunFailed
from fedgraft.common.files.foreign_text import as_printable
from fedgraft.common.plan.plan import Plan, agreement_of
from fedgraft.common.plan.plan_file import agreement_hash, canonical
from fedgraft.server.exchange import Replies, exchange
from fedgraft.server.federation import Federation
from fedgraft.server.send_parts import PartSender, about_of

# seconds; a node opens its data before it answers
OFFER_TIMEOUT = 600.0
LONGEST_NAME = 100
# seconds between two looks
POLL = 0.2
# a node that was lost so often while it was sent the backbone is asked no more in this run
MOST_LOSSES = 3
# refusals after which another copy of the backbone may help
ONCE_MORE = (Code.DAMAGED, Code.MISSING, Code.FAILURE, Code.UNKNOWN)


@dataclass
class Handout:
    """What a hand-out cost and who did not join, since it was last written into the result.

    Attributes:
        refused: `(node, reason)` of every node that did not join.
        down, up: bytes by node.
        sent: nodes that were sent the backbone (the others had it).
        devices: where each node that joined computes, in its own words.
    """

    refused: list[tuple[str, str]] = field(default_factory=list)
    down: dict[str, int] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    devices: dict[str, str] = field(default_factory=dict)

    def count(self, name: str, down: int, up: int) -> None:
        """Add bytes to and from a node."""
        self.down[name] = self.down.get(name, 0) + down
        self.up[name] = self.up.get(name, 0) + up


class Roster:
    """The nodes that accepted the plan and hold the backbone, by name.

        roster = Roster(grid, plan, backbone)
        roster.refresh()
        exchange(grid, "train", content, roster.nodes, group="1", timeout=60)

    Attributes:
        nodes: name → Flower's node id. A node that came back under a new id replaces its old one,
            once that is gone.
        examples: the weight that each node said its updates will have; none may claim more later.
        handout: what joining cost since `take_handout`.
        missing: how many nodes were expected, and not there at the start.
    """

    def __init__(self, grid: Grid, plan: Plan, backbone: Backbone, missing: int = 0) -> None:
        self.nodes: dict[str, int] = {}
        self.examples: dict[str, int] = {}
        self.handout = Handout()
        self.missing = missing
        self._grid = grid
        self._plan = plan
        self._backbone = backbone
        self._offered: set[int] = set()
        # node id → how often it was lost while it was sent the backbone
        self._losses: Counter[int] = Counter()
        # what nodes said that they lack of the backbone, where they have some of it
        self._missing_parts: dict[str, list[int]] = {}
        self._sender = PartSender(backbone, self._send_part, self._count)

    def refresh(self) -> None:
        """Offer the plan to every connected node that was not asked yet, and hand out the backbone.

        With a key, a node that was lost comes back under its old id: it is asked again.
        """
        connected = set(self._grid.get_node_ids())
        self.nodes = {name: id_ for name, id_ in self.nodes.items() if id_ in connected}
        self._offered &= connected
        new = sorted(connected - self._offered)
        if not new:
            return
        self._offered.update(new)

        ids = {str(node_id): node_id for node_id in new}
        replies = self._exchange("query.offer", self._offer(), ids)
        for key in sorted(replies.refused, key=int):
            self._note_refusal(replies.called.get(key, key), replies.refused[key])
        lacking = self._admit(replies, ids)
        if lacking:
            self.send_backbone(lacking)

    def take_handout(self) -> Handout:
        """Return what joining cost so far, and begin to count anew."""
        handout = self.handout
        self.handout = Handout()
        return handout

    # ── the offer ─────────────────────────────────────────────────────────────────────────────────
    def _offer(self) -> RecordDict:
        offer = ConfigRecord(
            {
                "plan": canonical(agreement_of(self._plan)),
                "plan-hash": agreement_hash(self._plan),
                "fingerprint": self._backbone.fingerprint,
                "preprocess": json.dumps(self._backbone.preprocess.to_json()),
            }
        )
        return RecordDict({"offer": offer})

    def _admit(self, replies: Replies, ids: Mapping[str, int]) -> dict[str, int]:
        """Take up who accepted the offer; return those that lack the backbone."""
        joined: set[str] = set()
        taken = set(self.nodes)
        lacking: dict[str, int] = {}
        for key in sorted(replies.contents, key=int):
            about = about_of(replies.contents[key])
            name = str(about.get("node", ""))
            if name in taken:
                # perhaps that node under a new id: asked again until its old one is gone
                self._offered.discard(ids[key])
            is_taken = name in joined or name in taken
            if not name or len(name) > LONGEST_NAME or is_taken:
                called = f"{name[:LONGEST_NAME]!r}"
                self._note_refusal(
                    key, f"answered the offer under an unusable or taken name {called}"
                )
                continue
            examples = about.get("examples")
            if not isinstance(examples, int) or examples < 1:
                self._note_refusal(name, f"answered the offer with {str(examples)[:40]} examples")
                continue
            joined.add(name)
            self.nodes[name] = ids[key]
            self.examples[name] = examples
            self.handout.count(name, replies.down[key], replies.up[key])
            self.handout.devices[name] = as_printable(str(about.get("device", "")), LONGEST_NAME)
            if not about.get("has"):
                lacking[name] = ids[key]
                self._note_missing_parts(name, about)
        return lacking

    # ── the backbone ──────────────────────────────────────────────────────────────────────────────
    def send_backbone(self, lacking: Mapping[str, int]) -> None:
        """Send the backbone, to each node the parts that it lacks; once more what did not arrive as
        it was sent.

        Those that failed twice leave the roster and are reported. One that was lost on the way is
        offered the plan again when it is there again, and goes on where it was.
        """
        waiting = dict(lacking)
        failures: dict[str, str] = {}
        for attempt in ("", "sent twice; "):
            failed = self._sender.send(waiting, self._missing_parts)
            self.handout.sent += [name for name in waiting if name not in failed]
            for name in waiting:
                failures.pop(name, None)
                self._missing_parts.pop(name, None)
            for name, failure in failed.items():
                failures[name] = attempt + failure.reason
                if failure.is_lost:
                    self._ask_later(lacking[name])
            again = [name for name, failure in failed.items() if failure.code in ONCE_MORE]
            waiting = {name: lacking[name] for name in again}
            if not waiting:
                break
            self._ask_what_is_missing(waiting)
        for name in lacking:
            if name in failures:
                self.nodes.pop(name, None)
                self._note_refusal(name, failures[name])

    def _ask_later(self, node_id: int) -> None:
        """Offer again at the next look; not for ever: each time may cost the others a wait."""
        self._losses[node_id] += 1
        if self._losses[node_id] < MOST_LOSSES:
            self._offered.discard(node_id)

    def _ask_what_is_missing(self, nodes: Mapping[str, int]) -> None:
        """Offer again, to hear what the nodes keep of what they were sent; one that does not say is
        sent everything.
        """
        replies = self._exchange("query.offer", self._offer(), nodes)
        for name in nodes:
            self.handout.count(name, replies.down[name], replies.up.get(name, 0))
            if name in replies.contents:
                self._note_missing_parts(name, about_of(replies.contents[name]))

    def _note_missing_parts(self, name: str, about: ConfigRecord) -> None:
        missing = self._sender.read_missing(about)
        if missing is not None:
            self._missing_parts[name] = missing

    # ── small ─────────────────────────────────────────────────────────────────────────────────────
    def _exchange(self, kind: str, content: RecordDict, nodes: Mapping[str, int]) -> Replies:
        return exchange(self._grid, kind, content, nodes, group="0", timeout=OFFER_TIMEOUT)

    def _send_part(self, content: RecordDict, nodes: Mapping[str, int]) -> Replies:
        return self._exchange("query.backbone", content, nodes)

    def _count(self, name: str, down: int, up: int) -> None:
        self.handout.count(name, down, up)

    def _note_refusal(self, node: str, reason: str) -> None:
        self.handout.refused.append((node, reason))


def count_missing(grid: Grid, federation: Federation) -> int:
    """Return how many of the expected nodes are not connected."""
    return max(federation.expected - len(list(grid.get_node_ids())), 0)


def gather(grid: Grid, federation: Federation) -> Roster:
    """Wait for the expected nodes (as long as the federation is patient), offer and hand out.

    Raises:
        RunFailed: fewer are there than were expected, and the plan does not allow it; or fewer than
            the plan's `min_nodes` joined, and the message says why each other one did not.
    """
    deadline = time.monotonic() + federation.patience
    while (missing := count_missing(grid, federation)) and time.monotonic() < deadline:
        time.sleep(POLL)
    if missing and federation.plan.aggregate.missing == "refuse":
        there = f"{federation.expected - missing} of {federation.expected} nodes are there"
        remedy = (
            "start the others; or expect fewer; or write `missing: allow` under aggregate, and the"
            " results will say so"
        )
        raise RunFailed(f"{there}, and a run over some of them tells of some of them; {remedy}")
    roster = Roster(grid, federation.plan, federation.backbone, missing)
    roster.refresh()
    least = federation.plan.aggregate.min_nodes
    if len(roster.nodes) < least:
        reasons = [f"\n  {node}: {reason}" for node, reason in roster.handout.refused]
        others = "".join(reasons) or "\n  no other node came"
        joined = f"{len(roster.nodes)} of {federation.expected} nodes joined"
        raise RunFailed(f"{joined}; aggregate.min_nodes is {least}. Those that did not:{others}")
    return roster
