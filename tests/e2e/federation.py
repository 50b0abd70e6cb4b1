"""A federation for tests: CA, TLS SuperLink with node authentication, gateway and nodes, as real processes.

    with Federation(folder, {"north": Path("node-0.yaml"), …}) as federation:
        done = federation.run(plan, out)
        federation.kill("superlink")         # SIGKILL; the server starts it again
        federation.kill_node("north"); federation.start_node("north")

Every process has free ports and a FLWR_HOME of its own; all that were started are ended, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from server import nodes as registry
from server.certificates import make
from server.server_file import Server, load_server

DATA = Path(os.environ.get("FEDGRAFT_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
BIN = Path(sys.executable).parent
UP = 90.0  # seconds for a process to come up, on a machine that does other things, too


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def until(what: str, found: Callable[[], bool], seconds: float = UP) -> None:
    """Wait for something that other processes do; fails with its name."""
    deadline = time.monotonic() + seconds
    while not found():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.2)


class Federation:
    """One coordinator and its nodes.

    Args:
        folder: new; everything that the processes write is below it.
        nodes: the node.yaml of each node, by the name that it is registered under.
        settings: more lines for server.yaml.
    """

    def __init__(self, folder: Path, nodes: Mapping[str, Path], settings: str = "") -> None:
        self.folder, self.files = folder, dict(nodes)
        self.environment = os.environ | {
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "OMP_NUM_THREADS": "1",
            "FEDGRAFT_DATA": str(DATA),  # where a plan's weights are looked up
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",  # a second less for each message
        }
        self.environment.pop("FLWR_HOME", None)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        superlink, gateway, health, *self._ports = free_ports(3 + len(nodes))
        self.superlink, self.gateway, self.health = superlink, gateway, health
        folder.mkdir(parents=True, exist_ok=True)
        self.certificates = folder / "certificates"
        make(self.certificates, hosts=["localhost"], nodes=list(nodes))
        self.ca = self.certificates / "ca.crt"
        self.server_file = folder / "server.yaml"
        self.server_file.write_text(
            f"certificates: certificates\nstate: state\ngateway: {{address: '127.0.0.1:{gateway}'}}\n"
            f"superlink: 127.0.0.1:{superlink}\nhealth: 127.0.0.1:{health}\n{settings}"
        )

    # ── all together ─────────────────────────────────────────────────────────────────────────────────
    def __enter__(self) -> Self:
        try:
            self.start_server()
            for name in self.files:
                registry.add(self.server, name, self.certificates / "nodes" / f"{name}.pub")
            for name in self.files:
                self.start_node(name)
            for name in self.files:
                until(f"{name} is connected", lambda name=name: "SuperNode ID" in self.log(name))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process: nodes first, as an orderly shutdown does."""
        for name in [*self.files, "server"]:
            with contextlib.suppress(KeyError):
                self.stop(name)

    # ── the coordinator ──────────────────────────────────────────────────────────────────────────────
    @property
    def server(self) -> Server:
        """server.yaml, read."""
        return load_server(self.server_file)

    def start_server(self) -> None:
        """`fedgraft server start`, and wait until it says that it is ready."""
        began = len(self.log("server"))
        self._start("server", [str(BIN / "fedgraft"), "server", "start", str(self.server_file)], self.folder)
        until("the server is ready", lambda: "ready" in self.log("server")[began:] or not self.alive("server"))
        assert self.alive("server"), self.log("server")

    def fedgraft(self, *words: str | Path, timeout: float = 900) -> Done:
        """`fedgraft …` to its end."""
        done = subprocess.run(
            [str(BIN / "fedgraft"), *map(str, words)],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def run(self, plan: Path, out: Path, *more: str) -> Done:
        """`fedgraft server run` to its end."""
        return self.fedgraft("server", "run", plan, "--server", self.server_file, "--out", out, *more)

    def begin_run(self, plan: Path, out: Path, *more: str) -> subprocess.Popen[str]:
        """`fedgraft server run` in the background; the caller waits for it."""
        words = ["server", "run", plan, "--server", self.server_file, "--out", out, *more]
        return subprocess.Popen(
            [str(BIN / "fedgraft"), *map(str, words)],
            cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def kill(self, process: str) -> None:
        """SIGKILL `superlink`, `superexec` or `gateway`; the server starts it again and says so."""
        started = f"{process} started (pid "
        before = self.log("server").count(started)
        os.kill(int(re.findall(re.escape(started) + r"(\d+)", self.log("server"))[-1]), signal.SIGKILL)
        until(f"{process} is started again", lambda: self.log("server").count(started) > before)

    def server_app(self) -> int | None:
        """The process of the ServerApp that runs now, or None."""
        return next(iter(processes("flwr-serverapp", f"127.0.0.1:{self.superlink}")), None)

    # ── nodes ────────────────────────────────────────────────────────────────────────────────────────
    def start_node(self, name: str, *, key: Path | None = None, ca: Path | None = None) -> None:
        """Start a node; it is connected once `SuperNode ID` is in its log."""
        home = self.folder / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        words = [
            str(BIN / "flower-supernode"),
            *("--superlink", f"127.0.0.1:{self.gateway}", "--root-certificates", str(ca or self.ca)),
            *("--auth-supernode-private-key", str(key or self.certificates / "nodes" / name)),
            *("--host", "127.0.0.1", "--port", str(free_ports(1)[0])),
            *("--node-config", f'node="{self.files[name].absolute()}"'),
        ]
        self._start(name, words, home, FLWR_HOME=str(home))

    def kill_node(self, name: str) -> None:
        """SIGKILL a node and what it started, as a power cut would."""
        process = self._processes[name]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def freeze(self, name: str) -> None:
        """Stop a node and what it started where they are, as a machine that hangs would."""
        os.killpg(self._processes[name].pid, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let it go on."""
        os.killpg(self._processes[name].pid, signal.SIGCONT)

    def at_work(self, name: str) -> bool:
        """Whether a node has a ClientApp running: it is in the middle of a message."""
        group = self._processes[name].pid
        with contextlib.suppress(ProcessLookupError):
            return any(os.getpgid(process) == group for process in processes("flwr-clientapp"))
        return False

    # ── processes ────────────────────────────────────────────────────────────────────────────────────
    def log(self, name: str) -> str:
        """What a process said so far; `server` is the coordinator."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def alive(self, name: str) -> bool:
        """Whether it runs."""
        return self._processes[name].poll() is None

    def stop(self, name: str) -> int:
        """SIGTERM, and SIGKILL for what is left half a minute later; the exit status."""
        process = self._processes[name]
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    def wait(self, name: str, seconds: float = UP) -> int:
        """Wait for a process to end by itself; its exit status."""
        return self._processes[name].wait(seconds)

    def _start(self, name: str, words: list[str], cwd: Path, **more: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                words, cwd=cwd, env=self.environment | more, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip


def processes(*words: str) -> list[int]:
    """Ids of the running processes whose command has all of these words."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if all(word in command for word in words) and " Z " not in (folder / "stat").read_text():
                found.append(int(folder.name))
    return found
