"""`fedgraft node start`: Flower's SuperNode under this node's policy, unattended, one line for each
event.

    see that it may start → Flower's SuperNode (our executor forks a process a message) → watch →
    again, for ever

Flower's SuperNode waits for a SuperLink that is away, by itself, and `supernode.py` keeps what it
starts alive. It ends where it is refused, and where it could not work any more: after a crash its
own key is taken until the SuperLink has missed its heartbeat for a minute, so a refused node waits
longer than that. SIGTERM lets the message in hand be answered, then leaves; a second one does not
wait.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedgraft.client.node.approvals import Approvals
from fedgraft.client.node.node_file import Connection, Node
from fedgraft.client.site.condition import CONNECTION, EXECUTOR, Condition
from fedgraft.client.site.launcher import installed_contents
from fedgraft.client.site.node_metrics import serve
from fedgraft.client.site.node_process import SuperNode
from fedgraft.client.site.watch import Watch
from fedgraft.common.errors import UserError

# seconds; a SuperLink holds a lost node's key for up to 60
REFUSED_WAIT = 65.0
# seconds between two attempts otherwise
LONGEST_WAIT = 60.0
# seconds without a connection after which that is said
QUIET = 15.0
# seconds after which a connection counts as good, and waits begin anew
STEADY = 120.0
# seconds that a line is waited for
_TICK = 0.2


# ── may it start ──────────────────────────────────────────────────────────────────────────────────
def check_start(node: Node, *, allow_root: bool) -> Connection:
    """Return the node's connection, if it may start as this user.

    Raises:
        UserError: root, who could change the approved code; code that is missing, changed or
            changeable; no connection or key.
    """
    connection = node.connection
    if connection is None:
        remedy = (
            "add `connection: {superlink: host:port, root_certificates: ca.crt, private_key:"
            " node.key}`"
        )
        raise UserError("this node has no connection", where=node.name, remedy=remedy)
    _check_readable("root_certificates", connection.root_certificates)
    _check_readable("private_key", connection.private_key)
    _check_installed(Approvals(node.approvals))
    _check_user(Approvals(node.approvals), allow_root)
    return connection


def _check_readable(key: str, file: str) -> None:
    if os.access(file, os.R_OK):
        return
    what = "not readable by this user" if Path(file).exists() else "no such file"
    where = f"connection.{key}: {file}"
    raise UserError(what, where=where, remedy="see `fedgraft node check`")


def _check_installed(approvals: Approvals) -> None:
    bundle = approvals.bundle()
    where = str(approvals.folder)
    remedy = "as the administrator: fedgraft node approve PLAN --node FILE"
    if bundle is None:
        what = "no code is approved, so every message would be refused"
        raise UserError(what, where=where, remedy=remedy)
    if installed_contents(approvals.app_folder(bundle)) != bundle["contents"]:
        what = "the approved code was changed or removed"
        raise UserError(what, where=where, remedy=remedy)


def _check_user(approvals: Approvals, allow_root: bool) -> None:
    if os.geteuid() == 0:
        if allow_root:
            return
        remedy = (
            "start it as a user of its own (deploy/ has the systemd unit), or add --allow-root to"
            " try it out"
        )
        what = "running as root, whom no file permission keeps from changing the approved code"
        raise UserError(what, where="fedgraft node start", remedy=remedy)
    writable = approvals.writable()
    if writable:
        what = "this user can change the approved code"
        raise UserError(what, where=str(writable[0]), remedy=approvals.how_to_protect())


# ── running ───────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Running:
    """How a node is run.

    Attributes:
        file: the node's own, which the ClientApp reads again for each message.
        drain: seconds that a message in hand has to be answered after SIGTERM.
        verbose: print Flower's own lines, too.
    """

    file: Path
    drain: float = 600.0
    verbose: bool = False


def start(node: Node, running: Running, *, allow_root: bool = False) -> None:
    """Run the node until it is told to stop. Raises `UserError` where it may not start."""
    connection = check_start(node, allow_root=allow_root)
    stop = Stop()
    bundle = Approvals(node.approvals).bundle() or {}
    condition = Condition(say)
    say("starting", f"{node.name}, code {bundle['hash'][:19]}…")
    if node.metrics is not None:
        serve(node, condition)
        say("metrics", f"http://{node.metrics}/metrics")

    attempt = 0
    while not stop.asked:
        process = SuperNode(node, connection, running.file)
        watch = Watch(say, condition)
        _follow(process, watch, stop, connection, running)
        process.end()
        if stop.asked:
            break
        attempt = 1 if _was_steady(watch) else attempt + 1
        wait = _wait_before(attempt, watch)
        why = _why(watch, process.status)
        say("ended", f"{why}; again in {wait:.0f} s")
        condition.restarts["supernode"] += 1
        condition.fail(CONNECTION, why)
        condition.fail(EXECUTOR, why)
        stop.wait(wait)
    say("stopped", node.name)


def _follow(
    process: SuperNode, watch: Watch, stop: Stop, connection: Connection, running: Running
) -> None:
    """Read a SuperNode's lines until it ends, or may be ended."""
    patience = time.monotonic() + QUIET
    while process.is_alive:
        with contextlib.suppress(queue.Empty):
            line = process.lines.get(timeout=_TICK)
            watch.take_line(line)
            if running.verbose:
                print(f"    {line.rstrip()}", flush=True)
        if watch.connected_at is None and time.monotonic() > patience:
            what = f"{connection.superlink} does not answer yet"
            say("waiting", f"{what}; `fedgraft node check` says why")
            patience = float("inf")
        if not stop.asked:
            continue
        if not watch.busy or stop.at_once or stop.waited > running.drain:
            return
        if not stop.announced:
            stop.announced = True
            limit = f"at most {running.drain:.0f} s, or stop at once with a second signal"
            say("draining", f"a message is being worked on; {limit}")


def _was_steady(watch: Watch) -> bool:
    """Return whether the connection held so long that waits begin anew."""
    return watch.connected_at is not None and time.monotonic() - watch.connected_at > STEADY


def _wait_before(attempt: int, watch: Watch) -> float:
    """Return the seconds before another attempt, the first being 1."""
    if watch.refused:
        return REFUSED_WAIT
    return min(LONGEST_WAIT, 2.0**attempt * random.uniform(0.5, 1.0))


def _why(watch: Watch, status: int | None) -> str:
    if watch.refused:
        return "the SuperLink holds this key (up to a minute after a crash), or does not know it"
    return watch.trouble or f"the SuperNode left with status {status}"


class Stop:
    """SIGTERM and Ctrl-C: once, finish what is in hand; twice, leave at once.

    Attributes:
        announced: whether it was said that a message is finished first.
    """

    def __init__(self) -> None:
        self.asked = False
        self.at_once = False
        self.announced = False
        self._since = 0.0
        self._event = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take)

    def _take(self, *_: object) -> None:
        self.at_once = self.asked
        self.asked = True
        self._since = self._since or time.monotonic()
        self._event.set()

    @property
    def waited(self) -> float:
        """Seconds since the first signal."""
        return time.monotonic() - self._since

    def wait(self, seconds: float) -> None:
        """Sleep, unless asked to stop."""
        self._event.wait(seconds)


def say(event: str, what: str) -> None:
    """Print one line for an event, the time in UTC."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
    print(f"{now}Z  {event:<12}  {what}", flush=True)
