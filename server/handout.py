"""Offers the plan and its backbone by fingerprint; sends the backbone to the nodes that lack it.

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
from fedgraft.common.errors import Code, RunFailed
from fedgraft.common.plan.plan import Plan, agreement_of
from fedgraft.common.plan.plan_file import agreement_hash, canonical
from fedgraft.server.exchange import Replies, exchange
from fedgraft.server.federation import Federation

# seconds; a node opens its data before it answers
OFFER_TIMEOUT = 600.0
# bytes of tensors in a message; a larger tensor goes alone
PART = 64_000_000
LONGEST_NAME = 100
# seconds between two looks
POLL = 0.2
# refusals after which another copy of the backbone may help
ONCE_MORE = (Code.DAMAGED, Code.MISSING, Code.FAILURE, Code.UNKNOWN)


@dataclass
class Handout:
    """What a hand-out cost and who did not join, since it was last written into the result.

    Attributes:
        refused: `(node, reason)` of every node that did not join.
        down, up: bytes by node.
        sent: nodes that were sent the backbone (the others had it).
    """

    refused: list[tuple[str, str]] = field(default_factory=list)
    down: dict[str, int] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)

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
            about = _about(replies.contents[key])
            name = str(about.get("node", ""))
            if name in taken:
                # perhaps that node under a new id: asked again until its old one is gone
                self._offered.discard(ids[key])
            if not name or len(name) > LONGEST_NAME or name in joined | taken:
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
            if not about.get("has"):
                lacking[name] = ids[key]
        return lacking

    # ── the backbone ──────────────────────────────────────────────────────────────────────────────
    def send_backbone(self, lacking: Mapping[str, int]) -> None:
        """Send the backbone; once more to nodes whose copy was not what was offered.

        Those that failed twice leave the roster and are reported.
        """
        waiting = dict(lacking)
        failures: dict[str, str] = {}
        for attempt in ("", "sent twice; "):
            failed = self._send_once(waiting)
            self.handout.sent += [name for name in waiting if name not in failed]
            for name in waiting:
                failures.pop(name, None)
            for name, failure in failed.items():
                failures[name] = attempt + failure.reason
            again = [name for name, failure in failed.items() if failure.code in ONCE_MORE]
            waiting = {name: lacking[name] for name in again}
            if not waiting:
                break
        for name in lacking:
            if name in failures:
                self.nodes.pop(name, None)
                self._note_refusal(name, failures[name])

    def _send_once(self, nodes: Mapping[str, int]) -> dict[str, Failure]:
        """Send every part to these nodes; return why those failed that do not hold it then."""
        going = dict(nodes)
        failed: dict[str, Failure] = {}
        parts = list(parts_of(backbone_state(self._backbone), PART))
        for number, part in enumerate(parts, start=1):
            replies = self._exchange("query.backbone", self._part(part, number, len(parts)), going)
            confirmed: tuple[str, int | str] = ("part", number)
            if number == len(parts):
                confirmed = ("stored", self._backbone.fingerprint)
            for name in list(going):
                self.handout.count(name, replies.down[name], replies.up.get(name, 0))
                about = _about(replies.contents.get(name, RecordDict()))
                key, value = confirmed
                if about.get(key) != value:
                    failed[name] = Failure.of(name, replies)
                    del going[name]
            if not going:
                break
        return failed

    def _part(self, part: dict[str, Tensor], number: int, parts: int) -> RecordDict:
        about = {"fingerprint": self._backbone.fingerprint, "part": number, "parts": parts}
        tensors = ArrayRecord(part)  # pyright: ignore[reportArgumentType]
        return RecordDict({"backbone": tensors, "about": ConfigRecord(about)})

    # ── small ─────────────────────────────────────────────────────────────────────────────────────
    def _exchange(self, kind: str, content: RecordDict, nodes: Mapping[str, int]) -> Replies:
        return exchange(self._grid, kind, content, nodes, group="0", timeout=OFFER_TIMEOUT)

    def _note_refusal(self, node: str, reason: str) -> None:
        self.handout.refused.append((node, reason))


@dataclass(frozen=True)
class Failure:
    """Why a node does not hold the backbone; a code where it said so itself."""

    reason: str
    code: Code | None

    @classmethod
    def of(cls, name: str, replies: Replies) -> Failure:
        """Return why a node did not confirm what it was sent."""
        reason = replies.refused.get(name, "did not confirm the backbone")
        return cls(reason, replies.codes.get(name))


def _about(content: RecordDict) -> ConfigRecord:
    return content.config_records.get("about", ConfigRecord())


def parts_of(state: Mapping[str, Tensor], most: int) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors in their order, in groups of at most `most` bytes.

    One that is larger goes by itself.
    """
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in state.items():
        if part and size + tensor.nbytes > most:
            yield part
            part = {}
            size = 0
        part[name] = tensor
        size += tensor.nbytes
    yield part


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
