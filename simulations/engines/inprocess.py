"""Flower's Grid in one process: no ports, no Ray, the same ServerApp and ClientApp.

Messages are handed to the ClientApp by a few worker threads. A message's content is shared, not
copied: the apps on both sides only read what they receive. Bytes are counted as Flower would
serialise them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import Empty, SimpleQueue

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Together = Callable[[Sequence[Message], Sequence[Context]], "list[Message] | None"]
RUN_ID = 1
SERVER_ID = 1
FIRST_NODE_ID = 2
MOST_TOGETHER = 128  # nodes in one batched step; bounds what it holds at once
LONGEST_PULL = 5.0  # seconds; a pull that finds nothing makes the server sleep


def take_server_identity() -> None:
    """Make this process a simulated run's server: a message asks for the identity of the process
    that makes it.
    """
    TaskIdentity.run_id = RUN_ID
    TaskIdentity.task_id = 1
    TaskIdentity.node_id = SERVER_ID


class InProcessGrid(Grid):
    """Node k of the simulation has the Flower id `FIRST_NODE_ID + k` and opens `nodes[k]`, its own
    node.yaml.

    Args:
        client_app: the ClientApp that answers messages.
        nodes: one node.yaml for each node.
        workers: threads that answer messages; each trains with the plan's own number of torch
            threads.
        together: answers the train messages of many nodes at once, or None if it cannot.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: list[Path],
        workers: int | None = None,
        together: Together | None = None,
    ) -> None:
        self._client_app, self._together = client_app, together
        self._contexts = {
            FIRST_NODE_ID + index: Context(
                run_id=RUN_ID,
                node_id=FIRST_NODE_ID + index,
                node_config={"node": str(path)},
                state=RecordDict(),
                run_config={},
            )
            for index, path in enumerate(nodes)
        }
        self._run = Run.create_empty(RUN_ID)
        self._numbers = itertools.count(1)
        self._pending: dict[str, Future[Message]] = {}
        self._finished: SimpleQueue[str] = SimpleQueue()  # ids of messages as they are answered
        # those of them that were seen, and not pulled, in the order in which they came
        self._answered: dict[str, None] = {}
        self._count = workers or os.cpu_count() or 1
        self._workers = ThreadPoolExecutor(max_workers=self._count)
        take_server_identity()

    def close(self) -> None:
        """Stop the workers; messages that were not begun are dropped."""
        self._workers.shutdown(wait=True, cancel_futures=True)

    # ── Flower's interface ────────────────────────────────────────────────────────────────────────
    def set_run(self, run: Run) -> None:
        """Take over a run's identity."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's identity."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message (Flower keeps this method for older apps)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all nodes; in one process they are always there."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages for the workers; returns their ids."""
        pushed, messages = [], list(messages)
        for message in messages:
            pushed.append(f"message-{next(self._numbers)}")
            message.metadata.__dict__["_message_id"] = pushed[-1]
        if self._together is not None and messages and messages[0].metadata.message_type == "train":
            shares = max(self._count, -(-len(messages) // MOST_TOGETHER))
            for start in range(shares):
                self._push_together(messages[start::shares])
        else:
            for message_id, message in zip(pushed, messages, strict=True):
                self._await(message_id, self._workers.submit(self._answer, message))
        return pushed

    def _await(self, message_id: str, reply: Future[Message]) -> None:
        self._pending[message_id] = reply
        reply.add_done_callback(lambda _: self._finished.put(message_id))

    def _push_together(self, messages: list[Message]) -> None:
        replies: list[Future[Message]] = [Future() for _ in messages]
        for message, reply in zip(messages, replies, strict=True):
            self._await(message.metadata.message_id, reply)
        if messages:
            self._workers.submit(self._answer_together, messages, replies)

    def _answer_together(self, messages: list[Message], replies: list[Future[Message]]) -> None:
        contexts = [self._contexts[message.metadata.dst_node_id] for message in messages]
        try:
            answers = None if self._together is None else self._together(messages, contexts)
        except Exception:  # or the server would wait for all of them until its time is up
            answers = None
        for number, reply in enumerate(replies):
            reply.set_result(self._answer(messages[number]) if answers is None else answers[number])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are ready; waits a little for the first one, so that the caller need not
        poll.
        """
        # a view of a dictionary is asked as it is: thousands are waited for, and few have come
        wanted = message_ids if isinstance(message_ids, Set) else set(message_ids)
        with contextlib.suppress(Empty):
            if self._awaits(wanted) and not any(key in wanted for key in self._answered):
                self._answered[self._finished.get(timeout=LONGEST_PULL)] = None
            while True:
                self._answered[self._finished.get_nowait()] = None
        done = [key for key in self._answered if key in wanted]
        for key in done:
            del self._answered[key]
        return [self._pending.pop(key).result() for key in done]

    def _awaits(self, wanted: Set[str]) -> bool:
        """Return whether one of these is still to be answered, or to be pulled."""
        return any(key in self._pending for key in wanted)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and wait for all replies."""
        ids = list(self.push_messages(messages))
        futures = [self._pending[key] for key in ids]
        wait(futures, timeout=timeout)
        return [self._pending.pop(key).result() for key in ids if self._pending[key].done()]

    def _answer(self, message: Message) -> Message:
        try:
            return self._client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # as Flower's own runtime: an error reply, not a dead federation
            return Message(
                Error(code=1, reason=f"{type(error).__name__}: {error}"), reply_to=message
            )


def run_server_app(
    server_app: ServerApp, grid: Grid, run_config: dict[str, str | int | float | bool]
) -> None:
    """Call a ServerApp as Flower's runtime would, in this thread."""
    context = Context(
        run_id=RUN_ID, node_id=SERVER_ID, node_config={}, state=RecordDict(), run_config=run_config
    )
    server_app(grid, context)
