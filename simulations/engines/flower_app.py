"""The two apps as `flwr run .` and Flower's Simulation Runtime load them: the approved code, with
what only a simulation has: nodes by number, and noise that can be repeated.
"""

from __future__ import annotations

import functools
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedgraft.client.app import make_client_app
from fedgraft.client.desk import Desk
from fedgraft.server.app import run_from_config
from fedgraft.simulations.engines.simulated_node import find_by_partition, simulation_desk


@functools.cache
def process_desk() -> Desk:
    """Return the desk of this process, with nodes by number and noise that can be repeated."""
    return simulation_desk(find=find_by_partition)


client_app = make_client_app(process_desk)
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Read the run config and federate, with central noise that can be repeated."""
    nodes = str(context.run_config.get("nodes", ""))
    # every node that was dealt records is expected, however many SuperNodes Flower starts
    dealt = len(list(Path(nodes).glob("node-*.yaml"))) if nodes else 0
    run_from_config(grid, context, dealt=dealt, seeded_noise=True)
