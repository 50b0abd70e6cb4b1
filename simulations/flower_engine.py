"""Flower's Simulation Runtime (Ray): a SuperLink of our own, started from a neutral folder.

From any other folder Ray's actors would import `client.app` from the SuperLink's working directory and not
from the bundle: a second checkout would silently run the first one's code.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.bundle import write_app
from common.errors import RunFailed, UserError

START_TIMEOUT = 60.0  # seconds for the SuperLink to answer


def run_on_flower(run_config: dict[str, str | int | float | bool], *, nodes: int, cpus_per_client: int = 1) -> None:
    """Run the bundled ServerApp and ClientApp on Flower's Simulation Runtime and wait for the end.

    Args:
        run_config: what `server/app.py` and `client/app.py` read (`plan`, `out`, `nodes`, …).
        nodes: number of virtual SuperNodes.

    Raises:
        UserError: Flower's programs are not installed.
        RunFailed: the run did not end as `finished:completed`; carries the last lines of Flower's log.
    """
    with tempfile.TemporaryDirectory(prefix="fedgraft-flower-") as folder:
        neutral = Path(folder)
        app = write_app(neutral / "app")
        with superlink(neutral) as (environment, log_path):
            start_and_follow(app, run_config, environment, log_path, nodes=nodes, cpus_per_client=cpus_per_client)


def start_and_follow(
    app: Path,
    run_config: Mapping[str, str | int | float | bool],
    environment: dict[str, str],
    log_path: Path,
    *,
    nodes: int,
    cpus_per_client: int = 1,
) -> None:
    """`flwr run` an app's folder on the SuperLink of `superlink` and wait for its end.

    Raises:
        RunFailed: the run did not end as `finished:completed`; carries the last lines of Flower's log.
    """
    neutral = log_path.parent
    settings = " ".join(f"{key}={json.dumps(value)}" for key, value in run_config.items())
    federation = f"num-supernodes={nodes} client-resources-num-cpus={cpus_per_client} client-resources-num-gpus=0.0"
    started = _flwr(
        ["run", str(app), "fedgraft", "--run-config", settings,
         "--federation-config", federation, "--format", "json"],
        environment, neutral,
    )  # fmt: skip
    run_id = str(started["run-id"])
    try:
        status = _follow(run_id, environment, neutral)
    except KeyboardInterrupt:
        _flwr(["stop", run_id, "fedgraft", "--format", "json"], environment, neutral)
        raise
    if status != "finished:completed":
        tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-15:])
        raise RunFailed(f"Flower ended the run as {status}. The end of its log:\n{tail}")


@contextlib.contextmanager
def superlink(neutral: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """A SuperLink for simulations on a free loopback port, with a FLWR_HOME of its own; ended on exit."""
    port = _free_port()
    home = neutral / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "fedgraft"\n\n[superlink.fedgraft]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_DEDUP_LOGS": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    log_path = neutral / "superlink.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [_program("flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1",
             "--port", str(port), "--disable-runtime-dependency-installation"],
            cwd=neutral, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_for_port(port, process, log_path)
        yield environment, log_path
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _follow(run_id: str, environment: dict[str, str], cwd: Path) -> str:
    """Poll the run's status until it has finished. `flwr run --stream` would exit 0 even for a failed run."""
    while True:
        listing = _flwr(["list", "fedgraft", "--run-id", run_id, "--format", "json"], environment, cwd)
        status = str(listing["runs"][0]["status"])
        if status.startswith("finished"):
            return status
        time.sleep(1.0)


def _flwr(arguments: list[str], environment: dict[str, str], cwd: Path) -> dict:
    done = subprocess.run(
        [_program("flwr"), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError:
        said = (done.stderr or done.stdout).strip()
        raise RunFailed(f"flwr {arguments[0]} failed: {said[-800:]}") from None


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise UserError(f"{name} is not installed", where="--engine flower", remedy="pip install 'flwr[simulation]'")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for_port(port: int, process: subprocess.Popen, log_path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-15:])
    raise RunFailed(f"Flower's SuperLink did not start:\n{tail}")
