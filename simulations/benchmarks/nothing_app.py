"""A Flower app that does nothing, as fast as Flower lets it: `deployment_round.py` bundles this
file by itself.

The server polls as ours does. With `torch` in the run config the client imports torch, as any that
trains must.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

# seconds, as in server/exchange.py
POLL = 0.2
client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Answer."""
    if context.run_config["torch"]:
        # here, since its seconds are what is measured
        import torch

        torch.set_num_threads(1)
    return Message(RecordDict(), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Ask every node in every round; write the seconds of each round."""
    nodes = wait_for_nodes(grid, int(context.run_config["nodes"]))
    seconds = []
    for number in range(int(context.run_config["rounds"])):
        started = time.perf_counter()
        ask_all(grid, nodes, number)
        seconds.append(time.perf_counter() - started)
    Path(str(context.run_config["result"])).write_text(json.dumps(seconds))


def wait_for_nodes(grid: Grid, count: int) -> list[int]:
    """Return the nodes, once there are so many."""
    nodes = list(grid.get_node_ids())
    while len(nodes) < count:
        time.sleep(POLL)
        nodes = list(grid.get_node_ids())
    return nodes


def ask_all(grid: Grid, nodes: Sequence[int], number: int) -> None:
    """Send every node a message and wait for all answers."""
    questions = []
    for node in nodes:
        question = Message(
            RecordDict(), dst_node_id=node, message_type="train", group_id=str(number)
        )
        questions.append(question)
    waiting = set(grid.push_messages(questions))
    while waiting:
        replies = list(grid.pull_messages(waiting))
        waiting -= {reply.metadata.reply_to_message_id for reply in replies}
        if not replies:
            time.sleep(POLL)
