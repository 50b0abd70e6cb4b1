"""The two apps as `flwr run .` and Flower's Simulation Runtime load them: the approved code, with
what only a simulation has: nodes by number, and noise that can be repeated.

A run that cannot be is refused in a sentence. Flower would log it with the frames of a traceback,
which say nothing to whoever typed the line.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedgraft.client.app import make_client_app
from fedgraft.client.desk import Desk
from fedgraft.common.errors import RunFailed, UserError
from fedgraft.server.app import run_from_config
from fedgraft.simulations.engines.simulated_node import find_by_partition, simulation_desk

LINE = (
    "fedgraft partition PLAN --out nodes, then flwr run . --stream"
    " --federation-config 'num-supernodes=N'"
    " --run-config \"plan='PLAN' nodes='$PWD/nodes' out='$PWD/runs/new'\""
)


@functools.cache
def process_desk() -> Desk:
    """Return the desk of this process, with nodes by number and noise that can be repeated."""
    return simulation_desk(find=find_by_partition)


client_app = make_client_app(process_desk)
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Read the run config and federate, with central noise that can be repeated."""
    logging.getLogger("flwr").addFilter(log_in_words)
    # every node that was dealt records is expected
    dealt = count_dealt(context.run_config)
    check_supernodes(len(list(grid.get_node_ids())), dealt)
    run_from_config(grid, context, dealt=dealt, seeded_noise=True)


def log_in_words(record: logging.LogRecord) -> bool:
    """Take the traceback from a line of Flower's log where the error is one that has words."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if isinstance(error, (UserError, RunFailed)):
        record.msg, record.args, record.exc_info = "%s", (str(error),), None
    return True


def count_dealt(config: Mapping[str, Any]) -> int:
    """Return how many nodes were dealt records.

    Raises:
        UserError: the run config lacks a plan, a folder or the nodes, or names them by a relative
            path: Flower's processes have another working directory than whoever typed it.
    """
    where = "run-config"
    for key in ("plan", "out", "nodes"):
        if not config.get(key):
            raise UserError(f"names no {key}", where=where, remedy=LINE)
    for key in ("out", "nodes"):
        if not Path(str(config[key])).is_absolute():
            what = f"{key} is {config[key]!r}; Flower works in another folder than yours"
            raise UserError(what, where=where, remedy=f"{key}='$PWD/{config[key]}'")
    dealt = len(list(Path(str(config["nodes"])).glob("node-*.yaml")))
    if dealt == 0:
        what = f"nodes: there is no node-0.yaml in {config['nodes']}"
        raise UserError(what, where=where, remedy="fedgraft partition PLAN --out nodes")
    return dealt


def check_supernodes(started: int, dealt: int) -> None:
    """Raise `UserError` where Flower starts other nodes than those that were dealt records."""
    if started != dealt:
        what = f"{dealt} nodes were dealt records, and Flower started {started} SuperNodes"
        remedy = f"flwr run . --federation-config 'num-supernodes={dealt}'"
        raise UserError(what, where="nodes", remedy=remedy)
