"""`fedgraft node start`: Flower's SuperNode under this node's policy, unattended, one line for each
event.

    see that it may start → Flower's SuperNode (our executor forks a process a message) → watch →
    again, for ever

Flower's SuperNode waits for a SuperLink that is away, by itself. It ends where it is refused: after
a crash its own key is taken until the SuperLink has missed its heartbeat for a minute, so a refused
node waits longer than that. SIGTERM lets the message in hand be answered, then leaves; a second one
does not wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fedgraft.client.node.approvals import Approvals
from fedgraft.client.node.node_file import Connection, Node
from fedgraft.client.site import executor, launcher, supernode
from fedgraft.client.site.node_metrics import serve
from fedgraft.common.errors import UserError

REFUSED_WAIT = 65.0  # seconds; a SuperLink holds a lost node's key for up to 60
LONGEST_WAIT = 60.0  # seconds between two attempts otherwise
QUIET = 15.0  # seconds without a connection after which that is said
STEADY = 120.0  # seconds after which a connection counts as good, and waits begin anew
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LEVEL = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL)\s*:\s*")


@dataclass
class Watch:
    """What the SuperNode's own lines tell of it."""

    say: Callable[[str, str], None]
    connected_at: float | None = None
    busy: bool = False
    refused: bool = False
    trouble: str = ""
    _run: str = field(default="", repr=False)
    _refusal: str = field(default="", repr=False)

    def line(self, text: str) -> None:
        """Take one line of Flower's log; say what happened, if it is an event."""
        text = _COLOUR.sub("", text).strip()
        level = match.group(1) if (match := _LEVEL.match(text)) else ""
        text = _LEVEL.sub("", text)
        if found := re.match(r"SuperNode ID: (\d+)", text):
            self.connected_at, self.refused, self.trouble = time.monotonic(), False, ""
            self.say("connected", f"as node {found.group(1)}")
        elif found := re.match(r"\[RUN (\d+)(?:, ROUND (\S+))?\]", text):
            self._run = f"run {found.group(1)}" + (
                f", group {found.group(2)}" if found.group(2) else ""
            )
        elif found := re.match(r"Receiving: (\S+) message", text):
            self.busy, self._refusal = True, ""
            self.say("message", f"{found.group(1)}, {self._run}")
        elif (
            text.startswith(("Sent successfully", "Failed to receive"))
            or "is not in `RUNNING` status" in text
        ):
            self.busy = False
            self.say("answered" if text.startswith("Sent") else "dropped", self._run)
        elif text.startswith("Failed to send message"):
            self.busy = False
            self.say("not answered", text[:300])
        elif found := re.match(r"Connection successful after ([\d.]+) seconds", text):
            self.say("connected", f"again, after {float(found.group(1)):.0f} s")
        elif found := re.search(r"\[code: (\d+)\] (.*)", text):
            self.refused = found.group(1) == "2004"  # ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED
            self.trouble = found.group(2)
        elif "CERTIFICATE_VERIFY_FAILED" in text:
            self.trouble = "the server's certificate is not one of this federation's CA"
        elif found := re.match(r"(?:\w+\.)*BundleRefused: (.*)", text):
            if found.group(1) != self._refusal:  # Flower shows an exception and what it came of
                self.say("refused", found.group(1)[:400])
            self._refusal = found.group(1)
        elif text.startswith(("ClientApp raised an exception", "Exit Code:")):
            pass  # the line that says why comes, too
        elif level in ("ERROR", "CRITICAL") or re.match(
            r"(?:\w+\.)*\w*(?:Error|Exception): ", text
        ):
            self.trouble = text[:300]
            self.say("trouble", text[:300])


def must_start(node: Node, *, allow_root: bool) -> Connection:
    """Whether this node may start as this user.

    Raises:
        UserError: root, who could change the approved code; code that is missing, changed or
            changeable; no connection or key.
    """
    if node.connection is None:
        remedy = (
            "add `connection: {superlink: host:port, root_certificates: ca.crt, private_key:"
            " node.key}`"
        )
        raise UserError("this node has no connection", where=node.name, remedy=remedy)
    for key in ("root_certificates", "private_key"):
        path = Path(getattr(node.connection, key))
        if not os.access(path, os.R_OK):
            what = "not readable by this user" if path.exists() else "no such file"
            raise UserError(
                what, where=f"connection.{key}: {path}", remedy="see `fedgraft node check`"
            )
    approvals = Approvals(node.approvals)
    about, approve = (
        approvals.bundle(),
        "as the administrator: fedgraft node approve PLAN --node FILE",
    )
    if about is None:
        raise UserError(
            "no code is approved, so every message would be refused",
            where=str(node.approvals),
            remedy=approve,
        )
    if launcher.installed(node.approvals / "apps" / about["folder"]) != about["contents"]:
        raise UserError(
            "the approved code was changed or removed", where=str(node.approvals), remedy=approve
        )
    if os.geteuid() == 0 and not allow_root:
        raise UserError(
            "running as root, whom no file permission keeps from changing the approved code",
            where="fedgraft node start",
            remedy=(
                "start it as a user of its own (deploy/ has the systemd unit), or add --allow-root"
                " to try it out"
            ),
        )
    if (places := approvals.writable()) and os.geteuid() != 0:
        remedy = (
            f"give it to the administrator: chown -R root {node.approvals}; chmod -R go-w"
            f" {node.approvals}"
        )
        raise UserError(
            "this user can change the approved code", where=str(places[0]), remedy=remedy
        )
    return node.connection


def start(
    node: Node, path: Path, *, allow_root: bool = False, drain: float = 600.0, verbose: bool = False
) -> None:
    """Run the node until it is told to stop.

    Args:
        path: the node's file, which the ClientApp reads again for each message.
        drain: seconds that a message in hand has to be answered after SIGTERM.
        verbose: print Flower's own lines, too.
    """
    connection = must_start(node, allow_root=allow_root)
    stop = Stop()
    say("starting", f"{node.name}, code {Approvals(node.approvals).bundle()['hash'][:19]}…")  # pyright: ignore
    if node.metrics is not None:
        serve(node)
        say("metrics", f"http://{node.metrics}/metrics")
    attempt = 0
    while not stop.asked:
        watch = Watch(say)
        process, lines = _supernode(node, connection, path)
        patience = time.monotonic() + QUIET
        while process.poll() is None or not lines.empty():
            with contextlib.suppress(queue.Empty):
                line = lines.get(timeout=0.2)
                watch.line(line)
                if verbose:
                    print(f"    {line.rstrip()}", flush=True)
            if watch.connected_at is None and time.monotonic() > patience:
                say(
                    "waiting",
                    f"{connection.superlink} does not answer yet; `fedgraft node check` says why",
                )
                patience = float("inf")
            if stop.asked and (
                not watch.busy or stop.at_once or time.monotonic() - stop.since > drain
            ):
                break
            if stop.asked and not stop.told:
                stop.told = True
                say(
                    "draining",
                    f"a message is being worked on; at most {drain:.0f} s, or stop at once with a"
                    " second signal",
                )
        _end(process)
        if stop.asked:
            break
        steady = watch.connected_at is not None and time.monotonic() - watch.connected_at > STEADY
        attempt = 1 if steady else attempt + 1
        wait = (
            REFUSED_WAIT
            if watch.refused
            else min(LONGEST_WAIT, 2.0**attempt * random.uniform(0.5, 1.0))
        )
        say("ended", f"{_why(watch, process.returncode)}; again in {wait:.0f} s")
        stop.wait(wait)
    say("stopped", node.name)


def _why(watch: Watch, status: int) -> str:
    if watch.refused:
        return "the SuperLink holds this key (up to a minute after a crash), or does not know it"
    return watch.trouble or f"the SuperNode left with status {status}"


class Stop:
    """SIGTERM and Ctrl-C: once, finish what is in hand; twice, leave at once."""

    def __init__(self) -> None:
        self.asked = self.at_once = self.told = False
        self.since = 0.0
        self._event = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take)

    def _take(self, *_: object) -> None:
        self.at_once = self.asked
        self.asked, self.since = True, self.since or time.monotonic()
        self._event.set()

    def wait(self, seconds: float) -> None:
        """Sleep, unless asked to stop."""
        self._event.wait(seconds)


def say(event: str, what: str) -> None:
    """One line for each event, the time in UTC."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
    print(f"{now}Z  {event:<12}  {what}", flush=True)


def environment(node: Node) -> dict[str, str]:
    """What the node's processes see: approved code only, nothing that calls home, no path of
    somebody's checkout.
    """
    programs = node.store / "run"
    programs.mkdir(parents=True, exist_ok=True)
    for name, module in (("flwr-clientapp", launcher), ("flower-superexec", executor)):
        command = shlex.join([sys.executable, "-P", str(Path(str(module.__file__)).resolve())])
        (programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (programs / name).chmod(0o755)
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME")
    }
    places = [str(programs), str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]
    return kept | {
        "PATH": os.pathsep.join(places),
        "FLWR_HOME": str(node.approvals),
        launcher.APPROVALS: str(node.approvals),
        # seconds; Flower's own 1 s is half a second for each message
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(node.threads),
    }


def _supernode(
    node: Node, connection: Connection, path: Path
) -> tuple[subprocess.Popen[str], queue.Queue[str]]:
    """Flower's SuperNode as a process of its own group, and its lines as they come."""
    command = [
        sys.executable, "-P", str(Path(supernode.__file__).resolve()), "--superlink", connection.superlink,
        "--root-certificates", connection.root_certificates,
        "--auth-supernode-private-key", connection.private_key,
        "--host", "127.0.0.1", "--port", str(connection.port or _free_port()),
        "--node-config", f'node="{path.absolute()}"',
    ]  # fmt: skip
    if connection.trusted_entities is not None:
        command += ["--trusted-entities", connection.trusted_entities]
    process = subprocess.Popen(
        command, cwd=node.store, env=environment(node), text=True, errors="replace", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=with_parent(),
    )  # fmt: skip
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)

    threading.Thread(target=read, daemon=True).start()
    return process, lines


def with_parent() -> Callable[[], None] | None:
    """Linux: what is started leaves, by SIGTERM, when this process is killed; an orphan would hold
    the key.
    """
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    return lambda: library.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM: the SuperNode signs off at the SuperLink; then whatever is left of its group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
