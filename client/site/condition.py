"""Whether a node can work, and why not: one word for its log and for Prometheus.

A node can work where it is connected and where its SuperExec runs, which starts a process for each
message.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

# what a node needs
CONNECTION = "connection"
EXECUTOR = "executor"
# what is started again where it ends
RESTARTED = ("supernode", "executor", "forker")


class Condition:
    """Says when a node can no longer work, and when it can again.

        condition = Condition(say)
        condition.mend("connection"), condition.mend("executor")
        condition.fail("executor", "it was killed (SIGKILL)")
        condition.able

    Args:
        say: takes an event and its particulars.

    Attributes:
        restarts: how often each process was started again.
        lost: messages whose process ended before it answered.
    """

    def __init__(self, say: Callable[[str, str], None]) -> None:
        self.restarts: Counter[str] = Counter()
        self.lost = 0
        self._say = say
        # what is missing; at first everything is, and nobody is told
        self._missing = {CONNECTION, EXECUTOR}
        self._unable_since: float | None = None

    @property
    def able(self) -> bool:
        """Whether a message that comes now will be worked on."""
        return not self._missing

    def fail(self, part: str, reason: str) -> None:
        """Take down that a part is missing, and say so where the node could work until now."""
        if self.able:
            self._unable_since = time.monotonic()
            self._say("unable", reason)
        self._missing.add(part)

    def mend(self, part: str) -> None:
        """Take down that a part is there, and say so where the node can work again."""
        self._missing.discard(part)
        if self.able and self._unable_since is not None:
            seconds = time.monotonic() - self._unable_since
            self._unable_since = None
            self._say("able", f"to work again, after {seconds:.0f} s")

    def collect(self) -> Iterator[Metric]:
        """Give the metrics as Prometheus asks for them."""
        # a tenth of a second
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        what = "1 where the node is connected and can start a process for a message"
        yield GaugeMetricFamily("fedgraft_node_able", what, value=float(self.able))
        what = "processes that ended and were started again"
        restarts = CounterMetricFamily("fedgraft_node_restarts", what, labels=("process",))
        for process in RESTARTED:
            restarts.add_metric((process,), self.restarts[process])
        yield restarts
        what = "messages whose process ended before it answered; each has an error reply"
        yield CounterMetricFamily("fedgraft_node_lost", what, value=self.lost)
