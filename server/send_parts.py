"""Sends a backbone to several nodes part by part, to each what it lacks.

    sender = PartSender(backbone, ask, count)
    failed = sender.send({"north": 4, "south": 5}, {"north": [7, 8]})

One part is in memory at a time: it is copied out of the backbone's tensors when it is sent, and
Flower copies it once more. A part that arrives damaged is told, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from flwr.app import ConfigRecord, RecordDict

from fedgraft.common.backbones.backbone import Backbone, backbone_state
from fedgraft.common.errors import Code
from fedgraft.common.files.mapped_pages import give_back
from fedgraft.common.wire.backbone_parts import PartTable, cut_part, part_content
from fedgraft.server.exchange import Replies

# bytes of a part: each costs every node a process of some seconds (with 32 MB, 1.4 times the
# processor time of 64), and the ServerApp twice its size of memory
PART = 44_000_000

# content, nodes → what they answer
Ask = Callable[[RecordDict, Mapping[str, int]], Replies]
# a node, bytes to it, bytes from it
Count = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Failure:
    """Why a node does not hold the backbone; a code where it said so itself.

    Attributes:
        is_lost: its process ended before it could answer.
    """

    reason: str
    code: Code | None
    is_lost: bool = False

    @classmethod
    def of(cls, name: str, replies: Replies) -> Failure:
        """Return why a node did not confirm what it was sent."""
        reason = replies.refused.get(name, "did not confirm the backbone")
        return cls(reason, replies.codes.get(name), name in replies.lost)


class PartSender:
    """Sends the parts of one backbone.

    Args:
        ask: sends a part to several nodes.
        count: is told the bytes of each part and its answer.
    """

    def __init__(self, backbone: Backbone, ask: Ask, count: Count) -> None:
        self._backbone = backbone
        self._ask = ask
        self._count = count

    @cached_property
    def table(self) -> PartTable:
        """How the backbone is cut."""
        return PartTable.of(backbone_state(self._backbone), PART)

    def send(self, nodes: Mapping[str, int], known: Mapping[str, list[int]]) -> dict[str, Failure]:
        """Send to each node the parts that it lacks; return why those failed that do not hold the
        backbone then.

        Args:
            known: parts that a node said it lacks; a node that said nothing lacks all.
        """
        lacking = {name: set(known.get(name, self.table.numbers)) for name in nodes}
        stored: set[str] = set()
        failed: dict[str, Failure] = {}
        for number in self.table.numbers:
            going = {name: nodes[name] for name in nodes if number in lacking[name]}
            if not going:
                continue
            replies = self._ask(self._content(number), going)
            for name in going:
                self._count(name, replies.down[name], replies.up.get(name, 0))
                about = about_of(replies.contents.get(name, RecordDict()))
                if about.get("stored") == self._backbone.fingerprint:
                    stored.add(name)
                    lacking[name] = set()
                elif about.get("part") == number:
                    lacking[name].discard(number)
                else:
                    failed[name] = Failure.of(name, replies)
                    # the others may be whole; any other failure ends it
                    if failed[name].code is not Code.DAMAGED:
                        lacking[name] = set()
        for name in nodes:
            if name not in stored:
                failed.setdefault(name, Failure("parts of it are missing", Code.MISSING))
        return {name: failure for name, failure in failed.items() if name not in stored}

    def read_missing(self, about: ConfigRecord) -> list[int] | None:
        """Return the parts that a node lacks by its answer to the offer; None where it has none of
        them, or of a backbone that is cut in another way, or says what cannot be.
        """
        if about.get("table") != self.table.digest:
            return None
        return self._read_numbers(about)

    def _read_numbers(self, about: ConfigRecord) -> list[int] | None:
        missing = about.get("missing")
        if not isinstance(missing, list) or not missing:
            return None
        numbers = [number for number in missing if number in self.table.numbers]
        return None if len(numbers) < len(missing) else [int(number) for number in numbers]

    def _content(self, number: int) -> RecordDict:
        state = backbone_state(self._backbone)
        part = cut_part(state, self.table, number)
        # mapped from its file, the backbone is needed again when a model is merged or measured
        give_back(state.values())
        return part_content(part, self._backbone.fingerprint)


def about_of(content: RecordDict) -> ConfigRecord:
    """Return what a node says in an answer; empty where it says nothing."""
    return content.config_records.get("about", ConfigRecord())
