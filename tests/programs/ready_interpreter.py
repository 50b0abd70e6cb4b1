"""A Python that has its imports behind it: each command is forked from it.

    python ready_interpreter.py SOCKET

`fedgraft` and `python` (`ordered_program.py`) connect to it and hand over their streams, folder,
words and environment. A command that is forked begins where a new interpreter would be after three
seconds of importing torch, Opacus and fedgraft; it ends as an interpreter does.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path
from typing import Any

# what a simulation with all that belongs to it imports
PRELOADED = (
    "fedgraft.api",
    "fedgraft.cli",
    "fedgraft.client.app",
    "fedgraft.server.app",
    "fedgraft.simulations.predict",
    "fedgraft.simulations.simulate",
    "fedgraft.simulations.write_report",
    "matplotlib.backends.backend_svg",
    "opacus",
    "sklearn.datasets",
    "torch._dynamo",
)


def wait_for_an_order(address: str) -> dict[str, Any]:
    """Fork for every connection, for ever. Return only in the forked process that is to run what
    was ordered, with its streams, folder and environment.
    """
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen()
        # nobody waits for those who serve a connection
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            connection, _ = door.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return serve(connection)


def serve(connection: socket.socket) -> dict[str, Any]:
    """Read an order and return it in a child; tell its process id and how it ends."""
    with connection:
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile() as lines:
            order = json.loads(lines.readline())
        child = os.fork()
        if child == 0:
            for ours, theirs in enumerate(streams):
                os.dup2(theirs, ours)
                os.close(theirs)
            return order
        connection.sendall(f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def run(order: dict[str, Any]) -> None:
    """Run the command or the script as an interpreter would."""
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    # Ctrl-C is heard, or not, as where the command was typed
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = order["words"]
    if Path(sys.argv[0]).name == "fedgraft":
        from fedgraft.cli import main

        main()
        return
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    # the pages of what is loaded stay shared
    gc.freeze()
    run(wait_for_an_order(sys.argv[1]))
