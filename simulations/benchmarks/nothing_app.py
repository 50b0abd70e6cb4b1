"""A Flower app that does nothing, as fast as Flower lets it: `deployment_round.py` bundles this
file by itself.

The server polls as ours does. With `torch` in the run config the client imports torch, as any that
trains must.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

POLL = 0.2  # seconds, as in server/exchange.py
client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Answer."""
    if context.run_config["torch"]:
        import torch

        torch.set_num_threads(1)
    return Message(RecordDict(), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Ask every node in every round; write the seconds of each round."""
    while len(nodes := list(grid.get_node_ids())) < int(context.run_config["nodes"]):
        time.sleep(POLL)
    seconds = []
    for round_ in range(int(context.run_config["rounds"])):
        started = time.perf_counter()
        asked = [
            Message(RecordDict(), dst_node_id=n, message_type="train", group_id=str(round_))
            for n in nodes
        ]
        waiting = set(grid.push_messages(asked))
        while waiting:
            replies = list(grid.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in replies}
            if not replies:
                time.sleep(POLL)
        seconds.append(time.perf_counter() - started)
    Path(str(context.run_config["result"])).write_text(json.dumps(seconds))
