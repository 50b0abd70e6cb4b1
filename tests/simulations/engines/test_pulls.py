"""Waiting for the replies of thousands of nodes."""

from __future__ import annotations

from collections.abc import Iterator, KeysView
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from fedgraft.simulations.engines.inprocess import InProcessGrid

NODES = 300


class Counted(KeysView[str]):
    """Ids that count how often one of them was looked at from first to last."""

    seen = 0

    def __iter__(self) -> Iterator[str]:
        for key in super().__iter__():
            Counted.seen += 1
            yield key


def test_pulls_do_not_go_through_all_that_are_waited_for() -> None:
    """A round whose time grows with the square of its nodes: every reply pulled alone, and all
    others looked through for it.
    """
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: object) -> Message:
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, [Path(f"{number}.yaml") for number in range(NODES)], workers=1)
    try:
        messages = []
        for node in grid.get_node_ids():
            messages.append(Message(RecordDict(), node, "query"))
        waiting = dict.fromkeys(grid.push_messages(messages))
        while waiting:
            for reply in grid.pull_messages(Counted(waiting)):
                del waiting[reply.metadata.reply_to_message_id]
    finally:
        grid.close()
    assert Counted.seen <= 2 * NODES
