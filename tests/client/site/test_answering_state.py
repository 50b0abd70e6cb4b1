"""Flower's own state of a node, as this node has it: every message has an answer."""

from __future__ import annotations

import pytest
from flwr.app import Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import Status, SubStatus
from flwr.supercore.date import now
from flwr.supercore.object_store import ObjectStoreFactory

from fedgraft.client.site.answering_state import AnsweringState

RUN = 7


@pytest.fixture
def state() -> AnsweringState:
    state = AnsweringState(ObjectStoreFactory().store())
    state.set_node_id(1)
    return state


def message(number: int = 1) -> Message:
    metadata = Metadata(
        run_id=RUN,
        message_id="",
        src_node_id=1,
        dst_node_id=1,
        reply_to_message_id="",
        group_id=str(number),
        created_at=now().timestamp(),
        ttl=600.0,
        message_type="train",
    )
    made = make_message(metadata, RecordDict())
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


def take(state: AnsweringState, number: int = 1) -> tuple[int, Message]:
    """A task with its message, as Flower's loop stores them."""
    task = state.create_task("flwr-clientapp", RUN)
    assert task is not None
    sent = message(number)
    state.store_message(sent)
    return task, sent


def begin(state: AnsweringState, task: int) -> None:
    """What a task's process does first."""
    assert state.claim_task(task) is not None
    assert state.activate_task(task)
    assert state.get_messages_legacy(run_ids=[RUN], is_reply=False, limit=1)


def replies(state: AnsweringState) -> list[Message]:
    return list(state.get_messages_legacy(is_reply=True))


def test_a_task_that_failed_is_answered(state: AnsweringState) -> None:
    """Flower's loop, which waits for ever for a reply from a process that was ended in order."""
    task, sent = take(state)
    begin(state, task)
    state.finish_task(task, SubStatus.FAILED, "the process of this message was killed (SIGKILL)")
    (reply,) = replies(state)
    assert reply.metadata.reply_to_message_id == sent.metadata.message_id
    assert reply.error.reason == "the process of this message was killed (SIGKILL)"
    assert state.object_store.get(reply.metadata.message_id)
    assert state.get_message_processing_duration(sent.metadata.message_id) >= 0.0


def test_a_task_whose_process_never_began_is_answered_once(state: AnsweringState) -> None:
    """A message that is answered with an error, and worked on all the same."""
    task, _ = take(state)
    state.claim_task(task)
    state.fail("what starts processes was killed", waiting=False)
    assert len(replies(state)) == 1
    assert state.get_messages_legacy(run_ids=[RUN], is_reply=False) == []
    assert not state.finish_task(task, SubStatus.FAILED, "again")
    assert replies(state) == []


def test_what_waits_is_answered_only_where_it_is_asked_for(state: AnsweringState) -> None:
    """A message that another SuperExec would have worked on; or one that waits for ever."""
    task, _ = take(state)
    assert state.waits()
    state.fail("killed", waiting=False)
    assert replies(state) == []
    assert state.get_tasks(task_ids=[task])[0].status.status == Status.PENDING
    state.fail("it cannot be started", waiting=True)
    assert [reply.error.reason for reply in replies(state)] == ["it cannot be started"]
    assert not state.waits()


def test_what_was_answered_is_left_alone(state: AnsweringState) -> None:
    """Two replies to one message; an error reply to the message that came after."""
    task, sent = take(state)
    begin(state, task)
    answer = Message(RecordDict(), reply_to=sent)
    answer.metadata.__dict__["_message_id"] = answer.object_id
    state._store_generated_message(answer)
    state.store_message(answer)
    assert replies(state) == [answer]
    state.finish_task(task, SubStatus.FAILED, "an exception, which it has answered with")
    assert replies(state) == []
    assert not state.is_torn
    ids = [answer.metadata.message_id, sent.metadata.message_id]
    state.delete_messages(message_ids=ids)

    late, second = take(state, 2)
    begin(state, late)
    third, _ = take(state, 3)
    state.delete_messages(message_ids=[second.metadata.message_id])
    state.finish_task(late, SubStatus.FAILED, "late")
    assert replies(state) == []
    assert state.get_tasks(task_ids=[third])[0].status.status == Status.PENDING


def test_a_reply_that_was_cut_off_is_known(state: AnsweringState) -> None:
    """Flower's loop, which waits for ever for the rest of a reply."""
    from flwr.supercore.inflatable.inflatable_object import get_object_tree

    task, sent = take(state)
    begin(state, task)
    answer = Message(RecordDict(), reply_to=sent)
    answer.metadata.__dict__["_message_id"] = answer.object_id
    state.object_store.preregister(RUN, get_object_tree(answer))
    state.store_message(answer)
    assert replies(state) == [answer]
    state.finish_task(task, SubStatus.FAILED, "killed")
    assert state.is_torn
