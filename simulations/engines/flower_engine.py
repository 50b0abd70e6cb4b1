"""Flower's Simulation Runtime (Ray): a SuperLink of our own, started from a neutral folder.

From any other folder Ray's actors would import `fedgraft.client.app` from the SuperLink's working
directory and not from the bundle: a second checkout would silently run the first one's code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedgraft.common.errors import RunFailed
from fedgraft.common.files.bundle import write_app
from fedgraft.server.site.flower_processes import COMPLETED, Flower, RunConfig, environment, program
from fedgraft.simulations.deployment.processes import find_free_ports
from fedgraft.simulations.engines.simulation_app import simulation_files

START_TIMEOUT = 60.0  # seconds for the SuperLink to answer


def run_on_flower(
    run_config: RunConfig,
    *,
    nodes: int,
    cpus_per_client: int = 1,
    extensions: Mapping[str, bytes] | None = None,
) -> None:
    """Run the bundled ServerApp and ClientApp on Flower's Simulation Runtime and wait for the end.

    Args:
        run_config: what `server/app.py` and `client/app.py` read (`plan`, `out`, `nodes`, …).
        nodes: number of virtual SuperNodes.
        extensions: as of `simulation_files`.

    Raises:
        RunFailed: the run did not end as `finished:completed`; carries the last lines of Flower's
            log.
    """
    with (
        tempfile.TemporaryDirectory(prefix="fedgraft-flower-") as folder,
        superlink(Path(folder)) as flower,
    ):
        start_and_follow(
            write_app(Path(folder) / "app", simulation_files(extensions)),
            run_config,
            flower,
            nodes=nodes,
            cpus_per_client=cpus_per_client,
        )


def start_and_follow(
    app: Path, run_config: RunConfig, flower: Flower, *, nodes: int, cpus_per_client: int = 1
) -> None:
    """`flwr run` an app's folder on the SuperLink of `superlink` and wait for its end.

    Raises:
        RunFailed: the run did not end as `finished:completed`; carries the last lines of Flower's
            log.
    """
    federation = (
        f"num-supernodes={nodes} client-resources-num-cpus={cpus_per_client}"
        " client-resources-num-gpus=0.0"
    )
    run_id = flower.submit(app, run_config, "--federation-config", federation)
    try:
        while not (status := flower.status(run_id)).startswith("finished"):
            time.sleep(1.0)
    except KeyboardInterrupt:
        flower.stop(run_id)
        raise
    if status != COMPLETED:
        tail = "\n".join(_log(flower.folder).read_text(errors="replace").splitlines()[-15:])
        raise RunFailed(f"Flower ended the run as {status}. The end of its log:\n{tail}")


@contextlib.contextmanager
def superlink(neutral: Path) -> Iterator[Flower]:
    """A SuperLink for simulations on a free loopback port, with a FLWR_HOME of its own; ended on
    exit.
    """
    port = find_free_ports(1)[0]
    flower = Flower.connect(neutral, f"127.0.0.1:{port}", ca=None)
    log_path = _log(neutral)
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [program("flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1",
             "--port", str(port), "--disable-runtime-dependency-installation"],
            cwd=neutral, env=environment(flower.home) | {"RAY_DEDUP_LOGS": "0"}, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for_port(port, process, log_path)
        yield flower
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _log(neutral: Path) -> Path:
    return neutral / "superlink.log"


def wait_for_port(port: int, process: subprocess.Popen, log_path: Path) -> None:
    """Until somebody listens there. Raises `RunFailed` with the end of the log where the process
    ended instead.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-15:])
    raise RunFailed(f"Flower's SuperLink did not start:\n{tail}")
