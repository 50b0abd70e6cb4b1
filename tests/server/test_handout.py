"""Each part of a backbone goes once to each node that lacks it, and once more where it arrived
damaged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, cast

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from fedgraft.common.backbones.backbone import backbone_state
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import Code
from fedgraft.common.plan.plan import Plan
from fedgraft.common.wire.backbone_parts import PartTable, read_part
from fedgraft.server import handout, send_parts
from fedgraft.server.exchange import Replies, _words
from fedgraft.server.handout import Roster

BACKBONE = load_backbone("cifar-resnet8")
STATE = backbone_state(BACKBONE)
# four parts
TABLE = PartTable.of(STATE, PartTable.of(STATE, 1).size // 4 + 1)
OTHER_BYTES = "the backbone that arrived is sha256:1, not sha256:2 as offered"


# what a node does with a message: as a sound node does, or it refuses, or Flower loses it, or is
# silent
Answer = tuple[Code, str] | Literal["sound", "lost", "silent"]
POLICY = (Code.POLICY, "policy: backbone sha256:1 is not approved at this node")
WRONG = (Code.DAMAGED, OTHER_BYTES)
BROKEN = (Code.DAMAGED, "part 2 of the backbone arrived damaged")


class Nodes:
    """Nodes that answer each part as written down, and as a sound node does after that.

    Attributes:
        asked: the numbers of the parts that each node was sent.
    """

    def __init__(self, answers: dict[str, list[Answer]]) -> None:
        self.answers = answers
        self.asked: dict[str, list[int]] = {name: [] for name in answers}
        self.missing: dict[str, set[int]] = {}
        self.says_what_it_lacks = True

    def exchange(
        self, grid: object, kind: str, content: RecordDict, nodes: dict[str, int], **_: object
    ) -> Replies:
        replies = Replies(down=dict.fromkeys(nodes, 1000 if kind == "query.backbone" else 10))
        for name in nodes:
            if kind == "query.offer":
                replies.contents[name] = self.about(name, **self.lacking(name))
                continue
            part = read_part(content)
            self.asked[name].append(part.number)
            missing = self.missing.setdefault(name, set(part.table.numbers))
            answer = self.answers[name].pop(0) if self.answers[name] else "sound"
            if answer == "sound":
                missing.discard(part.number)
                said = {"part": part.number} if missing else {"stored": BACKBONE.fingerprint}
                replies.contents[name] = self.about(name, **said)
            elif answer == "lost":
                replies.refused[name] = "the node was lost"
                replies.lost.add(name)
            elif answer == "silent":
                replies.refused[name] = "no answer within 600 s"
            else:
                replies.codes[name], replies.refused[name] = answer
                if answer == WRONG:
                    del self.missing[name]
        return replies

    def lacking(self, name: str) -> dict[str, Any]:
        missing = self.missing.get(name)
        if not missing or not self.says_what_it_lacks:
            return {"has": missing == set()}
        return {"has": False, "table": TABLE.digest, "missing": sorted(missing)}

    def about(self, name: str, **said: Any) -> RecordDict:
        return RecordDict({"about": ConfigRecord({"node": name, "examples": 9, **said})})


class Connected:
    """A grid that says which nodes are there."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def get_node_ids(self) -> list[int]:
        return self.ids


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Roster, Nodes]]:
    """Nodes by their answers, and a roster that has not asked them yet; a backbone in four
    parts.
    """
    monkeypatch.setattr(send_parts, "PART", TABLE.part_size)
    monkeypatch.setattr(Roster, "_offer", lambda roster: RecordDict())

    def make(**answers: list[Answer]) -> tuple[Roster, Nodes]:
        nodes = Nodes(answers)
        named = list(answers)

        def exchange(
            grid: object, kind: str, content: RecordDict, to: dict[str, int], **_: object
        ) -> Replies:
            """At the offer nodes go by their ids."""
            if kind == "query.offer" and all(key.isdigit() for key in to):
                replies = Replies(down=dict.fromkeys(to, 10), up=dict.fromkeys(to, 10))
                for key in to:
                    name = named[int(key)]
                    replies.contents[key] = nodes.about(name, **nodes.lacking(name))
                return replies
            return nodes.exchange(grid, kind, content, to)

        monkeypatch.setattr(handout, "exchange", exchange)
        grid = Connected(list(range(len(named))))
        return Roster(cast(Grid, grid), cast(Plan, None), BACKBONE), nodes

    return make


ALL = list(TABLE.numbers)


def test_every_node_is_sent_every_part_once(begin) -> None:
    """A part that is sent twice, or in another order; a node that has all and is sent some."""
    roster, nodes = begin(a=[], b=[])
    roster.refresh()
    assert nodes.asked == {"a": ALL, "b": ALL}
    assert (sorted(roster.handout.sent), roster.handout.refused) == (["a", "b"], [])
    roster.refresh()
    assert nodes.asked == {"a": ALL, "b": ALL}


def test_a_damaged_part_alone_is_sent_once_more(begin) -> None:
    roster, nodes = begin(a=[], b=["sound", BROKEN])
    roster.refresh()
    assert nodes.asked == {"a": ALL, "b": [*ALL, 2]}
    assert roster.handout.down["b"] - roster.handout.down["a"] == 1000 + 10, "all of it is counted"
    assert (sorted(roster.handout.sent), roster.handout.refused) == (["a", "b"], [])


def test_wrong_bytes_are_sent_once_more(begin) -> None:
    """Every part arrived as it was sent, and the whole is another backbone: nothing of it stays."""
    sound: list[Answer] = ["sound"] * (len(ALL) - 1)
    roster, nodes = begin(a=[], b=[*sound, WRONG])
    roster.refresh()
    assert nodes.asked == {"a": ALL, "b": ALL + ALL}
    assert (sorted(roster.handout.sent), roster.handout.refused) == (["a", "b"], [])


def test_wrong_bytes_twice_are_reported(begin) -> None:
    sound: list[Answer] = ["sound"] * (len(ALL) - 1)
    roster, nodes = begin(a=[], b=[*sound, WRONG, *sound, WRONG])
    roster.refresh()
    assert nodes.asked == {"a": ALL, "b": ALL + ALL}
    assert roster.handout.refused == [("b", f"sent twice; {OTHER_BYTES}")]
    assert set(roster.nodes) == {"a"}


def test_an_older_node_that_gives_no_code_is_sent_it_once_more(begin) -> None:
    """A node of another release that is lost to one flipped bit: its words are no protocol."""
    roster, nodes = begin(a=[(Code.UNKNOWN, OTHER_BYTES)])
    nodes.says_what_it_lacks = False
    roster.refresh()
    assert nodes.asked == {"a": [1, *ALL]}
    assert not roster.handout.refused


@pytest.mark.parametrize("answer", [POLICY, "silent"])
def test_a_policy_or_a_silent_node_is_not_asked_again(begin, answer: Answer) -> None:
    roster, nodes = begin(a=[answer])
    roster.refresh()
    roster.refresh()
    assert nodes.asked == {"a": [1]}
    assert len(roster.handout.refused) == 1
    assert not roster.nodes


def test_a_lost_node_goes_on_where_it_was(begin) -> None:
    """A node whose process was killed in a hand-out, that is never asked again, or is sent what it
    has; one that never says that it is lost holds up the others.
    """
    roster, nodes = begin(a=[], b=["sound", "sound", "lost"])
    roster.refresh()
    assert set(roster.nodes) == {"a"}
    assert roster.handout.refused == [("b", "the node was lost")]
    roster.refresh()
    assert set(roster.nodes) == {"a", "b"}
    assert nodes.asked == {"a": ALL, "b": [1, 2, 3, 3, *ALL[3:]]}


def test_a_node_that_is_lost_every_time_is_left(begin) -> None:
    """A hostile node that makes the others wait for it before each round."""
    roster, nodes = begin(a=["lost"] * 9)
    for _ in range(9):
        roster.refresh()
    assert nodes.asked == {"a": [1] * handout.MOST_LOSSES}


def test_another_server_goes_on_where_the_first_one_was(begin) -> None:
    """A ServerApp that was killed: the next one begins anew."""
    roster, nodes = begin(a=[], b=[])
    nodes.missing = {"a": {3}, "b": {2, 4}}
    roster.refresh()
    assert nodes.asked == {"a": [3], "b": [2, 4]}
    assert roster.handout.down == {"a": 1010, "b": 2010}


@pytest.mark.parametrize("missing", [[], [0], [5], [1, 99], "all", [1.5], ["1"], 7, None])
def test_a_node_that_says_what_cannot_be_is_sent_everything(begin, missing: Any) -> None:
    """A hostile node that ends the run of all, or is never served."""
    roster, nodes = begin(a=[])
    nodes.lacking = lambda name: (
        {"table": TABLE.digest} | ({} if missing is None else {"missing": missing})
    )
    roster.refresh()
    assert nodes.asked == {"a": ALL}
    assert set(roster.nodes) == {"a"}


def test_parts_that_are_cut_in_another_way_are_not_mixed(begin) -> None:
    """Part 3 of eight in the place of part 3 of four."""
    roster, nodes = begin(a=[])
    other = dataclasses.replace(TABLE, part_size=TABLE.part_size // 2).digest
    nodes.lacking = lambda name: {"has": False, "table": other, "missing": [3]}
    roster.refresh()
    assert nodes.asked == {"a": ALL}


def test_a_nodes_own_words_are_told_without_flowers_wrapping() -> None:
    """As Flower 1.41 wrote it when a node's launcher refused other code."""
    wrapped = (
        "<class '__main__.BundleRefused'>:<'the code sha256:6b that the server sent is not"
        " approved'>"
    )
    assert _words(wrapped, 5) == "the code sha256:6b that the server sent is not approved"
    assert _words("Traceback\nValueError: no", 5) == "ValueError: no"
    assert _words(None, 5) == "the node was lost"
    assert (
        _words("Error: Message Unavailable - The requested", 5)
        == "no answer within 5 s, or the node was removed"
    )
