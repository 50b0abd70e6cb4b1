"""A whole federation of real processes on this machine: CA, TLS SuperLink, gateway, and nodes that
hold to approvals.

    with Federation(folder, {"north": Path("node-0.yaml"), …}, plan) as federation:
        done = federation.run(plan, out)
        federation.kill("superlink")         # SIGKILL; the server starts it again
        federation.kill_node("north"); federation.start_node("north")

Every process is started as people start it: `fedgraft server start`, `fedgraft node start`. Ports
are free ones on loopback, and all that was started is ended, whatever happens. A node cannot write
what its administrator approved: run by root it has none of root's rights and the approvals are
somebody else's; run by a user they are read-only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedgraft.client.node.approve import approve, propose
from fedgraft.client.node.node_file import load_node
from fedgraft.client.site.start_node import with_parent
from fedgraft.common.errors import RunFailed
from fedgraft.common.files.yaml_file import dump_yaml
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.server.site import nodes as registry
from fedgraft.server.site.certificates import make_certificates
from fedgraft.server.site.server_file import Server, load_server
from fedgraft.simulations.deployment.processes import free_ports, processes, running, until

BIN = Path(sys.executable).parent
WITHOUT_RIGHTS = "-dac_override,-dac_read_search,-fowner,-chown,-setuid,-setgid"
NOBODY = 65534


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


class Federation:
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
        self.folder, self.host, self.files = folder, host, dict[str, Path]()
        self._sources, self._approved = dict(nodes), (plan, *changes)
        self.environment = os.environ | {
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "OMP_NUM_THREADS": "1",
            # where a plan's weights are looked up: these processes have other working directories
            "FEDGRAFT_DATA": (
                os.environ.get("FEDGRAFT_DATA") or str(Path.cwd().parent / "shared" / "data")
            ),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        self.environment.pop("FLWR_HOME", None)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.superlink, self.gateway, self.health = free_ports(3)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        self.certificates = folder / "certificates"
        make_certificates(self.certificates, hosts=["localhost", host], nodes=list(nodes))
        self.ca = self.certificates / "ca.crt"
        self.server_file = folder / "server.yaml"
        self.server_file.write_text(
            "certificates: certificates\nstate: state\ngateway: {address:"
            f" '{host}:{self.gateway}'}}\nsuperlink: 127.0.0.1:{self.superlink}\nhealth:"
            f" 127.0.0.1:{self.health}\n{settings}"
        )

    # ── all together ──────────────────────────────────────────────────────────────────────────────
    def __enter__(self) -> Self:
        try:
            self.start_server()
            for name, source in self._sources.items():
                registry.add(self.server, name, self.certificates / "nodes" / f"{name}.pub")
                self.settle(name, source)
            self.approve(*self._approved)
            for name in self._sources:
                self.start_node(name)
            for name in self._sources:
                until(f"{name} is connected", lambda name=name: self.connections(name) > 0)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process: nodes first, as an orderly shutdown does."""
        nodes = [name for name in self._processes if name != "server"]
        for name in nodes:
            self._processes[name].terminate()
        for name in [*nodes, "server"]:
            with contextlib.suppress(KeyError):
                self.stop(name)

    # ── the coordinator ───────────────────────────────────────────────────────────────────────────
    @property
    def server(self) -> Server:
        """server.yaml, read."""
        return load_server(self.server_file)

    def start_server(self) -> None:
        """`fedgraft server start`, and wait until it says that it is ready."""
        began = len(self.log("server"))
        self._start("server", [str(BIN / "fedgraft"), "server", "start", str(self.server_file)])
        until(
            "the server is ready",
            lambda: "ready" in self.log("server")[began:] or not self.alive("server"),
        )
        if not self.alive("server"):
            raise RunFailed(self.log("server"))

    def fedgraft(self, *words: str | Path, timeout: float = 900) -> Done:
        """`fedgraft …` to its end."""
        done = subprocess.run(
            [str(BIN / "fedgraft"), *map(str, words)],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def run(self, plan: Path, out: Path, *changes: str) -> Done:
        """`fedgraft server run` to its end."""
        return self.fedgraft(*self._run_words(plan, out, changes))

    def begin_run(self, plan: Path, out: Path, *changes: str) -> subprocess.Popen[str]:
        """`fedgraft server run` in the background; the caller waits for it."""
        return subprocess.Popen(
            [str(BIN / "fedgraft"), *map(str, self._run_words(plan, out, changes))],
            cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # a job in the background ignores Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def _run_words(self, plan: Path, out: Path, changes: tuple[str, ...]) -> list[str | Path]:
        sets = [word for change in changes for word in ("--set", change)]
        return ["server", "run", plan, "--server", self.server_file, "--out", out, *sets]

    def kill(self, process: str) -> None:
        """SIGKILL `superlink`, `superexec` or `gateway`; the server starts it again and says so."""
        started = f"{process} started (pid "
        before = self.log("server").count(started)
        os.kill(
            int(re.findall(re.escape(started) + r"(\d+)", self.log("server"))[-1]), signal.SIGKILL
        )
        until(f"{process} is started again", lambda: self.log("server").count(started) > before)

    def server_app(self) -> int | None:
        """The process of the ServerApp that runs now, or None."""
        return next(iter(processes("flwr-serverapp", f"127.0.0.1:{self.superlink}")), None)

    # ── nodes ─────────────────────────────────────────────────────────────────────────────────────
    def settle(
        self, name: str, source: Path, *, place: Path | None = None, **connection: Path
    ) -> None:
        """Write a hospital's own node.yaml into its place: what `source` says, approvals, and how
        it connects.

        Args:
            connection: what differs from the federation's own, such as `private_key`.
        """
        place = place or self.folder / "hospitals" / name
        place.mkdir(parents=True, exist_ok=True)
        about = load_node(source).model_dump(mode="json", exclude_unset=True, exclude_none=True)
        about["connection"] = {
            "superlink": f"{self.host}:{self.gateway}",
            "root_certificates": str(self.ca),
            "private_key": str(self.certificates / "nodes" / name),
            **{key: str(path) for key, path in connection.items()},
        }
        about.setdefault("policy", {}).setdefault("approved_plans", "recorded")
        Path(about["store"]).mkdir(parents=True, exist_ok=True)
        self.files[name] = place / "node.yaml"
        self.files[name].write_text(dump_yaml(about | {"approvals": "approvals"}))

    def approve(self, plan: str | Path, *changes: str, only: str | None = None) -> None:
        """`fedgraft node approve`, as the administrator of every hospital or of one: this plan,
        this code.
        """
        wanted = load_plan(plan, changes)
        for name in self.files if only is None else [only]:
            node = load_node(self.files[name])
            with _administered(node.approvals):
                approve(node, propose(node, wanted, None), f"the administrator of {name}")

    def node_command(self, name: str) -> list[str]:
        """`fedgraft node start`, without root's rights."""
        words = [str(BIN / "fedgraft"), "node", "start", str(self.files[name])]
        if os.geteuid() != 0:
            return words
        dropped = ["setpriv", "--bounding-set", WITHOUT_RIGHTS, "--inh-caps", "-all"]
        return [*(dropped if shutil.which("setpriv") else []), *words, "--allow-root"]

    def start_node(self, name: str, command: Sequence[str] = ()) -> None:
        """`node_command`, or what starts it otherwise; it is connected once `connections` has
        grown.
        """
        self._start(name, list(command) or self.node_command(name))

    def forget(self, name: str) -> None:
        """End a node, if it was started, and keep nothing of it."""
        if name in self._processes:
            self.stop(name)
            del self._processes[name]
        del self.files[name]
        (self.folder / f"{name}.log").unlink(missing_ok=True)

    def connections(self, name: str) -> int:
        """How often a node said that it is connected."""
        return len(re.findall(r"connected +as node", self.log(name)))

    def events(self, name: str, kind: str) -> list[str]:
        """What a node said under one kind of event."""
        return re.findall(rf"^\S+Z  {kind} +(.*)$", self.log(name), re.MULTILINE)

    def at_work(self, name: str) -> bool:
        """Whether a node has a ClientApp running: it is in the middle of a message."""
        supernode = self._supernode(name)
        return any(
            found.name == "flwr-clientapp" and found.group == supernode for found in running()
        )

    def kill_supernode(self, name: str) -> None:
        """SIGKILL Flower's SuperNode and what it started; `fedgraft node start` stays, and starts
        another.
        """
        if (group := self._supernode(name)) is not None:
            os.killpg(group, signal.SIGKILL)

    def kill_node(self, name: str) -> None:
        """SIGKILL a node and all that it started, as a power cut would."""
        self.freeze(name)  # or its SuperNode would sign off in between
        self._signal(name, signal.SIGKILL)
        self._processes[name].wait()

    def freeze(self, name: str) -> None:
        """Stop a node and what it started where they are, as a machine that hangs would."""
        self._signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let it go on."""
        self._signal(name, signal.SIGCONT)

    def _supernode(self, name: str) -> int | None:
        """Flower's SuperNode of a node: the leader of the group of all that works for it."""
        parent = self._processes[name].pid
        return next(
            (
                found.pid
                for found in running()
                if found.parent == parent and found.group == found.pid
            ),
            None,
        )

    def _signal(self, name: str, number: signal.Signals) -> None:
        supernode = self._supernode(name)
        for group in (self._processes[name].pid, supernode):
            with contextlib.suppress(ProcessLookupError):
                if group is not None:
                    os.killpg(group, number)

    # ── processes ─────────────────────────────────────────────────────────────────────────────────
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
        self._signal(name, signal.SIGKILL)
        return process.wait()

    def _start(self, name: str, words: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                words, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=with_parent(),
            )  # fmt: skip


@contextlib.contextmanager
def _administered(approvals: Path) -> Iterator[None]:
    """The administrator's folder, to be written in the block; after it the node can only read what
    is in it.
    """
    root = os.geteuid() == 0
    if not root and approvals.exists():
        _each(approvals, lambda path: path.chmod(path.stat().st_mode | 0o200))
    yield
    if root:
        _each(approvals, lambda path: os.chown(path, NOBODY, NOBODY))
    else:
        _each(approvals, lambda path: path.chmod(path.stat().st_mode & ~0o222))


def _each(folder: Path, change: Callable[[Path], None]) -> None:
    for path in [folder, *folder.rglob("*")]:
        change(path)
