"""The backbone goes once to each node that lacks it, and once more to one that got other bytes."""

from __future__ import annotations

from typing import Literal, cast

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import Code
from fedgraft.common.plan.plan import Plan
from fedgraft.server import handout
from fedgraft.server.exchange import Replies, _words
from fedgraft.server.handout import Roster, parts_of

BACKBONE = load_backbone("cifar-resnet8")
OTHER_BYTES = "the backbone that arrived is sha256:1, not sha256:2 as offered"


Answer = tuple[Code, str] | Literal["stored"] | None
POLICY = (Code.POLICY, "policy: backbone sha256:1 is not approved at this node")
WRONG = (Code.DAMAGED, OTHER_BYTES)


class Nodes:
    """Nodes that answer each hand-out as written down: "stored", a refusal, or None for no
    answer.
    """

    def __init__(self, answers: dict[str, list[Answer]]) -> None:
        self.answers, self.asked = answers, []

    def exchange(
        self, grid: object, kind: str, content: RecordDict, nodes: dict[str, int], **_: object
    ) -> Replies:
        self.asked.append(sorted(nodes))
        replies = Replies(down=dict.fromkeys(nodes, 1000))
        for name in nodes:
            answer = self.answers[name].pop(0)
            if answer == "stored":
                about = ConfigRecord({"node": name, "stored": BACKBONE.fingerprint})
                replies.contents[name] = RecordDict({"about": about})
            elif answer is None:
                replies.refused[name] = "no answer within 600 s"
            else:
                replies.codes[name], replies.refused[name] = answer
        return replies


def sent(monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[Answer]]) -> tuple[Roster, Nodes]:
    nodes = Nodes(answers)
    roster = Roster(cast(Grid, None), cast(Plan, None), BACKBONE)
    roster.nodes = {name: number for number, name in enumerate(answers)}
    monkeypatch.setattr(handout, "exchange", nodes.exchange)
    roster.send_backbone(dict(roster.nodes))
    return roster, nodes


def test_wrong_bytes_are_sent_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    roster, nodes = sent(monkeypatch, {"a": ["stored"], "b": [WRONG, "stored"]})
    assert nodes.asked == [["a", "b"], ["b"]]
    assert (sorted(roster.handout.sent), roster.handout.refused) == (["a", "b"], [])
    assert roster.handout.down == {"a": 1000, "b": 2000}, "the second sending is counted, too"


def test_wrong_bytes_twice_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    roster, nodes = sent(monkeypatch, {"a": ["stored"], "b": [WRONG, WRONG]})
    assert nodes.asked == [["a", "b"], ["b"]]
    assert roster.handout.refused == [("b", f"sent twice; {OTHER_BYTES}")]
    assert set(roster.nodes) == {"a"}


def test_an_older_node_that_gives_no_code_is_sent_it_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node of another release that is lost to one flipped bit: its words are no protocol."""
    _, nodes = sent(monkeypatch, {"a": [(Code.UNKNOWN, OTHER_BYTES), "stored"]})
    assert nodes.asked == [["a"], ["a"]]


@pytest.mark.parametrize("answer", [POLICY, None])
def test_a_policy_or_a_silent_node_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    roster, nodes = sent(monkeypatch, {"a": [answer]})
    assert nodes.asked == [["a"]]
    assert len(roster.handout.refused) == 1
    assert not roster.nodes


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=30), most=st.integers(1, 60))
def test_parts_hold_every_tensor_once_in_order(sizes: list[int], most: int) -> None:
    """A tensor that is lost or sent twice; a part that is larger than it must be, or that could
    have held more.
    """
    state = {
        f"{number:02}": torch.zeros(size, dtype=torch.uint8) for number, size in enumerate(sizes)
    }
    parts = list(parts_of(state, most))
    assert [name for part in parts for name in part] == list(state)
    filled = [sum(tensor.nbytes for tensor in part.values()) for part in parts]
    assert all(size <= most or len(part) == 1 for size, part in zip(filled, parts, strict=True))
    firsts = [next(iter(part.values())).nbytes for part in parts]
    assert all(size + first > most for size, first in zip(filled, firsts[1:], strict=False))


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
