"""Flower's state of a node's messages, made to answer one whose process ended.

Flower answers a message for whose process no heartbeat came for a minute, and none whose process
was ended in order, or was never started: its loop waits for that reply for ever, and the
coordinator until its round's time is over. Here each has an error reply at once, with the reason in
words.

`supernode.py` reads this file by its path. It imports nothing of fedgraft.
"""

from __future__ import annotations

from typing import Any

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode, Status, SubStatus
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState


class AnsweringState(InMemoryNodeState):
    """A message is one task's: Flower creates the task, then stores the message.

    state.waits()
    state.fail("what starts processes was killed", waiting=False)

    Attributes:
        is_torn: a reply was begun and can never be complete: Flower's loop waits for its rest.
    """

    def __init__(self, object_store: Any) -> None:
        super().__init__(object_store)
        self.is_torn = False
        self._task = 0
        # by task
        self._messages: dict[int, str] = {}

    # ── what Flower calls ─────────────────────────────────────────────────────────────────────────
    def create_task(self, *settings: Any, **more: Any) -> int | None:
        """Create a task; the message that is stored next is its."""
        task = super().create_task(*settings, **more)
        self._task = task or 0
        return task

    def store_message(self, message: Message) -> str | None:
        """Store a message, and whose it is."""
        if not message.metadata.reply_to_message_id:
            self._messages[self._task] = message.metadata.message_id
        return super().store_message(message)

    def finish_task(self, task_id: int, sub_status: str, details: str) -> bool:
        """Finish a task; one that failed is answered, if its process has not done so."""
        finished = super().finish_task(task_id, sub_status, details)
        if finished:
            message_id = self._messages.pop(task_id, "")
            if sub_status != SubStatus.COMPLETED:
                self._answer(message_id, details)
        return finished

    def _on_task_tokens_expired(self, tasks: list[Any]) -> None:
        for task in tasks:
            message_id = self._messages.pop(task.task_id, "")
            self._answer(message_id, "the process of this message was silent for a minute")

    # ── what supernode.py calls ───────────────────────────────────────────────────────────────────
    def waits(self) -> bool:
        """Return whether there is a message that no process has begun."""
        return bool(self.get_tasks(statuses=[Status.PENDING, Status.STARTING]))

    def fail(self, reason: str, *, waiting: bool) -> None:
        """Answer the message in hand with an error, where asked to also one that waits."""
        statuses = [Status.STARTING, Status.RUNNING]
        if waiting:
            statuses.append(Status.PENDING)
        for task in self.get_tasks(statuses=statuses):
            self.finish_task(task.task_id, SubStatus.FAILED, reason)

    # ── an answer ─────────────────────────────────────────────────────────────────────────────────
    def _answer(self, message_id: str, reason: str) -> None:
        """Store an error reply to a message that has none."""
        with self.lock_msg_store:
            entry = self.msg_store.get(message_id)
            if entry is None:
                return
            reply = self._reply_to(message_id)
            if reply is not None:
                self.is_torn = self.is_torn or self._lacks_objects(reply)
                return
            error = Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=entry.message)
            error.metadata.__dict__["_message_id"] = error.object_id
            self._store_generated_message(error)
            if message_id not in self.time_store:
                self.record_message_processing_start(message_id)
            self.record_message_processing_end(message_id)
            # no process is to begin it now
            entry.is_retrieved = True
            self.store_message(error)
        print(f"Lost: {reason}", flush=True)

    def _reply_to(self, message_id: str) -> Message | None:
        for entry in self.msg_store.values():
            if entry.message.metadata.reply_to_message_id == message_id:
                return entry.message
        return None

    def _lacks_objects(self, reply: Message) -> bool:
        tree = self.object_store.get_object_tree(reply.metadata.message_id)
        for part in iterate_object_tree(tree):
            if self.object_store.get(part.object_id) == b"":
                return True
        return False
