"""A whole federation of real processes on this machine: CA, TLS SuperLink, gateway, and nodes that
hold to approvals.

    with LocalFederation(folder, {"north": Path("node-0.yaml"), …}, plan) as federation:
        done = federation.run(plan, out)
        federation.kill("superlink")         # SIGKILL; the server starts it again
        federation.kill_node("north"); federation.start_node("north")

Every process is started as people start it: `fedgraft server start`, `fedgraft node start`. Ports
are free ones on loopback, and all that was started is ended, whatever happens. A node cannot write
what its administrator approved: run by root it has none of root's rights and the approvals are
somebody else's; run by a user they are read-only.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedgraft.common.errors import RunFailed
from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.server.site import nodes as registry
from fedgraft.server.site.certificates import make_certificates
from fedgraft.server.site.server_file import Server, load_server
from fedgraft.simulations.deployment.administrator import (
    approve_plan,
    without_rights,
    write_node_file,
)
from fedgraft.simulations.deployment.processes import (
    find_free_ports,
    find_processes,
    list_processes,
    wait_until,
)
from fedgraft.simulations.deployment.started_processes import (
    BIN,
    StartedProcesses,
    hear_interrupts,
    make_environment,
)

FEDGRAFT = str(BIN / "fedgraft")
SERVER = "server"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


class LocalFederation:
    """One coordinator and its nodes.

    Args:
        folder: new; everything that the processes write is below it.
        nodes: the node.yaml of each node, by the name that it is registered under. The federation
            adds what a simulation's node has not: a connection, approvals, and that only approved
            plans run.
        plan: what every node's administrator approves before the node starts, with `changes`
            (`key=value`).
        settings: more lines for server.yaml.
        host: the address of this machine where nodes connect.
    """

    def __init__(
        self,
        folder: Path,
        nodes: Mapping[str, Path],
        plan: str | Path,
        *changes: str,
        settings: str = "",
        host: str = "127.0.0.1",
    ) -> None:
        self.folder = folder
        self.host = host
        self.files: dict[str, Path] = {}
        self._sources = dict(nodes)
        self._plan = plan
        self._changes = changes
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)

        self.environment = make_environment()
        self._processes = StartedProcesses(folder, self.environment)
        self.superlink, self.gateway, self.health = find_free_ports(3)
        self.certificates = folder / "certificates"
        make_certificates(self.certificates, hosts=["localhost", host], nodes=list(nodes))
        self.ca = self.certificates / "ca.crt"
        self.server_file = folder / "server.yaml"
        self._write_server_file(settings)

    def _write_server_file(self, settings: str) -> None:
        lines = [
            "certificates: certificates",
            "state: state",
            f"gateway: {{address: '{self.host}:{self.gateway}'}}",
            f"superlink: 127.0.0.1:{self.superlink}",
            f"health: 127.0.0.1:{self.health}",
            settings,
        ]
        self.server_file.write_text("\n".join(lines))

    # ── all together ──────────────────────────────────────────────────────────────────────────────
    def __enter__(self) -> Self:
        try:
            self.start_server()
            for name, source in self._sources.items():
                registry.add(self.server, name, self.certificates / "nodes" / f"{name}.pub")
                self.settle(name, source)
            self.approve(self._plan, *self._changes)
            for name in self._sources:
                self.start_node(name)
            for name in self._sources:
                wait_until(f"{name} is connected", lambda name=name: self.count_connections(name))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process: nodes first, as an orderly shutdown does."""
        self._processes.stop_all(last=SERVER)

    # ── the coordinator ───────────────────────────────────────────────────────────────────────────
    @property
    def server(self) -> Server:
        """server.yaml, read."""
        return load_server(self.server_file)

    def start_server(self) -> None:
        """Run `fedgraft server start`, and wait until it says that it is ready."""
        began = len(self.log(SERVER))
        self._processes.start(SERVER, [FEDGRAFT, "server", "start", str(self.server_file)])

        def is_ready_or_dead() -> bool:
            return "ready" in self.log(SERVER)[began:] or not self.is_alive(SERVER)

        wait_until("the server is ready", is_ready_or_dead)
        if not self.is_alive(SERVER):
            raise RunFailed(self.log(SERVER))

    def fedgraft(self, *words: str | Path, timeout: float = 900) -> Done:
        """Run `fedgraft …` to its end."""
        done = subprocess.run(
            [FEDGRAFT, *map(str, words)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def run(self, plan: Path, out: Path, *changes: str) -> Done:
        """Run `fedgraft server run` to its end."""
        return self.fedgraft(*self._run_words(plan, out, changes))

    def begin_run(self, plan: Path, out: Path, *changes: str) -> subprocess.Popen[str]:
        """Start `fedgraft server run` in the background; the caller waits for it."""
        return subprocess.Popen(
            [FEDGRAFT, *map(str, self._run_words(plan, out, changes))],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hear_interrupts,
        )

    def _run_words(self, plan: Path, out: Path, changes: Sequence[str]) -> list[str | Path]:
        words = ["server", "run", plan, "--server", self.server_file, "--out", out]
        for change in changes:
            words += ["--set", change]
        return words

    def kill(self, process: str) -> None:
        """SIGKILL `superlink`, `superexec` or `gateway`; the server starts it again and says so."""
        started = f"{process} started (pid "
        before = self.log(SERVER).count(started)
        ids = re.findall(re.escape(started) + r"(\d+)", self.log(SERVER))
        os.kill(int(ids[-1]), signal.SIGKILL)
        wait_until(
            f"{process} is started again",
            lambda: self.log(SERVER).count(started) > before,
        )

    def find_server_app(self) -> int | None:
        """Return the process of the ServerApp that runs now, or None."""
        ids = find_processes("serverapp", f"127.0.0.1:{self.superlink}")
        return ids[0] if ids else None

    # ── hospitals ─────────────────────────────────────────────────────────────────────────────────
    def settle(
        self, name: str, source: Path, *, home: Path | None = None, **connection: Path | str
    ) -> None:
        """Write a hospital's own node.yaml into its folder: what `source` says, approvals, and how
        it connects.

        Args:
            connection: what differs from the federation's own, such as `private_key`.
        """
        ways = {
            "superlink": f"{self.host}:{self.gateway}",
            "root_certificates": str(self.ca),
            "private_key": str(self.certificates / "nodes" / name),
        }
        for key, way in connection.items():
            ways[key] = str(way)
        self.files[name] = write_node_file(source, home or self.folder / "hospitals" / name, ways)

    def approve(self, plan: str | Path, *changes: str, only: str | None = None) -> None:
        """Approve this plan and this code, as the administrator of every hospital or of one."""
        loaded = load_plan(plan, changes)
        base = find_plan(plan).parent
        for name in self.files if only is None else [only]:
            approve_plan(self.files[name], loaded, base, f"the administrator of {name}")

    # ── nodes ─────────────────────────────────────────────────────────────────────────────────────
    def node_command(self, name: str) -> list[str]:
        """Return `fedgraft node start`, without root's rights."""
        return without_rights([FEDGRAFT, "node", "start", str(self.files[name])])

    def start_node(self, name: str, command: Sequence[str] = ()) -> None:
        """Start a node by `node_command`, or by another one; it is connected once
        `count_connections` has grown.
        """
        self._processes.start(name, list(command) or self.node_command(name))

    def forget(self, name: str) -> None:
        """End a node, if it was started, and keep nothing of it."""
        self._processes.forget(name)
        del self.files[name]

    def count_connections(self, name: str) -> int:
        """Return how often a node said that it is connected."""
        return len(re.findall(r"connected +as node", self.log(name)))

    def list_events(self, name: str, kind: str) -> list[str]:
        """Return what a node said under one kind of event."""
        return re.findall(rf"^\S+Z  {kind} +(.*)$", self.log(name), re.MULTILINE)

    def is_at_work(self, name: str) -> bool:
        """Return whether a node has a ClientApp running: it is in the middle of a message."""
        return self.find_client_app(name) is not None

    def find_client_app(self, name: str) -> int | None:
        """Return the process that works on a node's message, or None."""
        supernode = self._processes.find_group(name)
        for process in list_processes():
            if process.name == "flwr-clientapp" and process.group == supernode:
                return process.pid
        return None

    def find_executor(self, name: str) -> int | None:
        """Return a node's SuperExec, the one process that its SuperNode starts, or None."""
        supernode = self._processes.find_group(name)
        for process in list_processes():
            if process.parent == supernode and supernode is not None:
                return process.pid
        return None

    def kill_supernode(self, name: str) -> None:
        """SIGKILL Flower's SuperNode and what it started; `fedgraft node start` stays, and starts
        another.
        """
        group = self._processes.find_group(name)
        if group is not None:
            os.killpg(group, signal.SIGKILL)

    def kill_node(self, name: str) -> None:
        """SIGKILL a node and all that it started, as a power cut would."""
        # or its SuperNode would sign off in between
        self.freeze(name)
        self._processes.signal(name, signal.SIGKILL)
        self._processes.wait(name)

    def freeze(self, name: str) -> None:
        """Stop a node and what it started where they are, as a machine that hangs would."""
        self._processes.signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let it go on."""
        self._processes.signal(name, signal.SIGCONT)

    # ── every process ─────────────────────────────────────────────────────────────────────────────
    def log(self, name: str) -> str:
        """Return what a process said so far; `server` is the coordinator."""
        return self._processes.log(name)

    def is_alive(self, name: str) -> bool:
        """Return whether it runs."""
        return self._processes.is_alive(name)

    def stop(self, name: str) -> int:
        """Send SIGTERM, and SIGKILL to what is left half a minute later; return the exit status."""
        return self._processes.stop(name)
