"""What the lines of Flower's SuperNode tell of it, and which of them a person should see."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fedgraft.client.site.condition import CONNECTION, EXECUTOR, Condition

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LEVEL = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL)\s*:\s*")
_ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception): ")
_LONGEST = 300
_LONGEST_REFUSAL = 400
# ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED
_ACTIVATION_FAILED = "2004"


@dataclass
class Watch:
    """What the SuperNode's own lines tell of it.

        watch = Watch(say, Condition(say))
        watch.take_line("INFO :      SuperNode ID: 5")
        watch.busy, watch.refused, watch.trouble

    Attributes:
        say: takes an event and its particulars.
        condition: whether the node can work; is told what changes.
        connected_at: `time.monotonic()` of the last connection; None: there was none.
        busy: whether a message is being worked on.
        refused: whether the SuperLink holds this key, or does not know it.
        trouble: the last thing that went wrong, in words.
    """

    say: Callable[[str, str], None]
    condition: Condition
    connected_at: float | None = None
    busy: bool = False
    refused: bool = False
    trouble: str = ""
    _run: str = field(default="", repr=False)
    _refusal: str = field(default="", repr=False)

    def take_line(self, line: str) -> None:
        """Take one line of Flower's log; say what happened, if it is an event."""
        text = _COLOUR.sub("", line).strip()
        level = _LEVEL.match(text)
        text = _LEVEL.sub("", text)
        for pattern, take in _EVENTS:
            match = pattern.search(text)
            if match:
                take(self, match)
                return
        is_error = level is not None and level.group(1) in ("ERROR", "CRITICAL")
        if is_error or _ERROR.match(text):
            self.trouble = text[:_LONGEST]
            self.say("trouble", self.trouble)

    def _connected(self, match: re.Match[str]) -> None:
        self.connected_at = time.monotonic()
        self.refused = False
        self.trouble = ""
        self.say("connected", f"as node {match.group(1)}")
        self.condition.mend(CONNECTION)

    def _connected_again(self, match: re.Match[str]) -> None:
        self.say("connected", f"again, after {float(match.group(1)):.0f} s")

    def _not_reached(self, match: re.Match[str]) -> None:
        if self.connected_at is not None:
            self.condition.fail(CONNECTION, f"{match.group(1)}; it is asked again")

    def _reached_again(self, match: re.Match[str]) -> None:
        self.condition.mend(CONNECTION)

    def _executor_ready(self, match: re.Match[str]) -> None:
        self.condition.mend(EXECUTOR)

    def _executor_ended(self, match: re.Match[str]) -> None:
        self.condition.restarts["executor"] += 1
        self.condition.fail(EXECUTOR, f"what starts processes for messages {match.group(1)}")

    def _forker_ended(self, match: re.Match[str]) -> None:
        self.condition.restarts["forker"] += 1
        self.say("restarted", f"what processes are forked from {match.group(1)}")

    def _lost(self, match: re.Match[str]) -> None:
        self.condition.lost += 1
        remedy = "the coordinator has an error reply; see the kernel's log where it was killed"
        self.say("lost", f"{self._run}: {match.group(1)}; {remedy}")

    def _run_begins(self, match: re.Match[str]) -> None:
        self._run = f"run {match.group(1)}"
        if match.group(2):
            self._run += f", group {match.group(2)}"

    def _message_came(self, match: re.Match[str]) -> None:
        self.busy = True
        self._refusal = ""
        self.say("message", f"{match.group(1)}, {self._run}")

    def _answered(self, match: re.Match[str]) -> None:
        self.busy = False
        self.say("answered", self._run)

    def _dropped(self, match: re.Match[str]) -> None:
        self.busy = False
        self.say("dropped", self._run)

    def _not_answered(self, match: re.Match[str]) -> None:
        self.busy = False
        self.say("not answered", match.string[:_LONGEST])

    def _refused_by_server(self, match: re.Match[str]) -> None:
        self.refused = match.group(1) == _ACTIVATION_FAILED
        self.trouble = match.group(2)

    def _wrong_certificate(self, match: re.Match[str]) -> None:
        self.trouble = "the server's certificate is not one of this federation's CA"

    def _bundle_refused(self, match: re.Match[str]) -> None:
        # Flower shows an exception and what it came of
        if match.group(1) != self._refusal:
            self.say("refused", match.group(1)[:_LONGEST_REFUSAL])
        self._refusal = match.group(1)

    def _explained_below(self, match: re.Match[str]) -> None:
        """The line that says why comes, too, or has come."""


# Flower 1.41's lines, as it prints them; the first that fits is taken.
_EVENTS: tuple[tuple[re.Pattern[str], Callable[[Watch, re.Match[str]], None]], ...] = (
    (re.compile(r"^SuperNode ID: (\d+)"), Watch._connected),
    (re.compile(r"^\[RUN (\d+)(?:, ROUND (\S+))?\]"), Watch._run_begins),
    (re.compile(r"^Receiving: (\S+) message"), Watch._message_came),
    (re.compile(r"^Sent successfully"), Watch._answered),
    (re.compile(r"^Failed to receive|is not in `RUNNING` status"), Watch._dropped),
    (re.compile(r"^Failed to send message"), Watch._not_answered),
    (re.compile(r"^Connection successful after ([\d.]+) seconds"), Watch._connected_again),
    (re.compile(r"\[code: (\d+)\] (.*)"), Watch._refused_by_server),
    (re.compile(r"CERTIFICATE_VERIFY_FAILED"), Watch._wrong_certificate),
    (re.compile(r"^(?:\w+\.)*BundleRefused: (.*)"), Watch._bundle_refused),
    (re.compile(r"^ClientApp raised an exception|^Exit Code:"), Watch._explained_below),
    # a process that is late, or that was spoken for by the executor
    (re.compile(r"task-token authentication failed"), Watch._explained_below),
    (re.compile(r"^Failed to push task output"), Watch._explained_below),
    # those of supernode.py and executor.py
    (re.compile(r"^Away: (.*)"), Watch._not_reached),
    (re.compile(r"^Back$"), Watch._reached_again),
    (re.compile(r"^Executor ready"), Watch._executor_ready),
    (re.compile(r"^Executor (.*)"), Watch._executor_ended),
    (re.compile(r"^Forker (.*)"), Watch._forker_ended),
    (re.compile(r"^Lost: (.*)"), Watch._lost),
)
