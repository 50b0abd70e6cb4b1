"""The backbone goes once to each node that lacks it, and once more to one that got other bytes."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.common.backbones.backbone import load_backbone
from fedgraft.server import handout
from fedgraft.server.exchange import Replies, _words
from fedgraft.server.handout import Roster, parts_of

BACKBONE = load_backbone("cifar-resnet8")
OTHER_BYTES = "the backbone that arrived is sha256:1, not sha256:2 as offered"


class Nodes:
    """Nodes that answer each hand-out as written down: "stored", a refusal's reason, or None for no
    answer.
    """

    def __init__(self, answers: dict[str, list[str | None]]) -> None:
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
                replies.refused[name] = replies.called[name] = answer
        return replies


def sent(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[str | None]]
) -> tuple[Roster, Nodes]:
    nodes, roster = Nodes(answers), Roster()
    roster.nodes = {name: number for number, name in enumerate(answers)}
    roster.down = dict.fromkeys(answers, 0)
    roster.up = dict.fromkeys(answers, 0)
    monkeypatch.setattr(handout, "exchange", nodes.exchange)
    roster._send(None, BACKBONE, dict(roster.nodes))  # pyright: ignore[reportArgumentType]
    return roster, nodes


def test_wrong_bytes_are_sent_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    roster, nodes = sent(monkeypatch, {"a": ["stored"], "b": [OTHER_BYTES, "stored"]})
    assert nodes.asked == [["a", "b"], ["b"]]
    assert (sorted(roster.sent), roster.refused) == (["a", "b"], [])
    assert roster.down == {"a": 1000, "b": 2000}, "the second sending is counted, too"


def test_wrong_bytes_twice_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    roster, nodes = sent(monkeypatch, {"a": ["stored"], "b": [OTHER_BYTES, OTHER_BYTES]})
    assert nodes.asked == [["a", "b"], ["b"]]
    assert roster.refused == [("b", f"sent twice; {OTHER_BYTES}")]
    assert set(roster.nodes) == {"a"}


@pytest.mark.parametrize("answer", ["policy: backbone sha256:1 is not approved at this node", None])
def test_a_policy_or_a_silent_node_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, answer: str | None
) -> None:
    roster, nodes = sent(monkeypatch, {"a": [answer]})
    assert nodes.asked == [["a"]]
    assert len(roster.refused) == 1
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
