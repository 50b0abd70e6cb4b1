"""Replies read in the order of their nodes' names, each once all before it have answered or gone.

Sums of floating-point numbers depend on the order in which they are added. Read so, they keep their
bits whoever was first, and only replies that came early are held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from flwr.app import RecordDict

from fedgraft.common.wire.layout import BadUpdate


class InOrder:
    """Reads replies by name, whatever the order in which they arrive.

        reader = InOrder(["a", "b"], merging.add)
        replies = exchange(grid, "evaluate", content, nodes, group="1", timeout=60, reader=reader)
        reader.close()
        replies.refused |= reader.refused

    Args:
        names: of the nodes that are asked.
        read: takes in one reply. Raises `BadUpdate`.

    Attributes:
        refused: why a reply was not taken in, by name.
    """

    def __init__(self, names: Iterable[str], read: Callable[[str, RecordDict], None]) -> None:
        self._names = deque(sorted(names))
        self._read = read
        # None: a node from which nothing is to be read
        self._early: dict[str, RecordDict | None] = {}
        self.refused: dict[str, str] = {}

    def read(self, name: str, content: RecordDict) -> None:
        """Take a node's reply, and read what may be read now."""
        self._early[name] = content
        self._go_on()

    def pass_over(self, name: str) -> None:
        """Wait for this node no more: it refused, or is gone."""
        self._early[name] = None
        self._go_on()

    def close(self) -> None:
        """Read what waited for nodes that did not answer in time."""
        for name in self._names:
            self._early.setdefault(name, None)
        self._go_on()

    def _go_on(self) -> None:
        while self._names and self._names[0] in self._early:
            name = self._names.popleft()
            content = self._early.pop(name)
            if content is None:
                continue
            try:
                self._read(name, content)
            except BadUpdate as error:
                self.refused[name] = str(error)
