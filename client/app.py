"""Flower messages ↔ one node: the ClientApp.

Whatever goes wrong is answered with a code and words (`refused`), never with a traceback, and never
with anything of the data.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedgraft.client import handlers
from fedgraft.client.desk import Desk
from fedgraft.client.handlers import Answer
from fedgraft.client.store.audit_log import TOO_LATE, Audit, is_late
from fedgraft.common.errors import Code, Refused, UserError
from fedgraft.common.wire.layout import BadUpdate

log = logging.getLogger("fedgraft.client")
LONGEST_REASON = 2000  # characters
Handler = Callable[[Desk, Message, Context], Answer]


def make_client_app(open_desk: Callable[[], Desk]) -> ClientApp:
    """Return the ClientApp of a process.

    Args:
        open_desk: gives the process's desk, the same each time. Flower's Simulation Runtime sends
            the app to other processes: what a desk keeps open must not go with it.
    """
    app = ClientApp()

    def answer_with(handle: Handler) -> Callable[[Message, Context], Message]:
        return lambda message, context: reply(open_desk(), handle, message, context)

    app.query("offer")(answer_with(handlers.offer))
    app.query("backbone")(answer_with(handlers.backbone))
    app.train()(answer_with(handlers.train))
    app.evaluate()(answer_with(handlers.evaluate))
    app.evaluate("validation")(answer_with(handlers.validate))
    app.evaluate("temperature")(answer_with(handlers.sum_temperatures))
    return app


def reply(desk: Desk, handle: Handler, message: Message, context: Context) -> Message:
    """Answer a message. Every failure becomes a reply that says why; details stay in this node's
    own log.
    """
    started = time.perf_counter()
    audit = Audit(None)
    try:
        audit = Audit(desk.node(context).audit_path)
        audit.log_arrival(message)
        answer = handle(desk, message, context)
    except Refused as refusal:
        answer = refuse(desk, context, refusal.code, refusal.reason)
    except BadUpdate as refusal:
        answer = refuse(desk, context, Code.MISMATCH, str(refusal))
    except UserError as error:
        # it may name files or values of this hospital: they stay here
        log.error("%s", error)
        reason = "this node's own set-up or data is not in order; its log says what"
        answer = refuse(desk, context, Code.SETUP, reason)
    except torch.OutOfMemoryError:
        log.exception("the card is full")
        reason = "this node's card has no memory left; what a private round reserved stays counted"
        answer = refuse(desk, context, Code.FAILURE, reason)
    except Exception as error:
        # an error in our code must not take the round, or a traceback's values, with it
        log.exception("message failed")
        reason = f"{type(error).__name__} at this node; its log says more"
        answer = refuse(desk, context, Code.FAILURE, reason)
    outgoing = Message(answer.content, reply_to=message)
    seconds = time.perf_counter() - started
    try:
        left = epsilon_left(desk, answer.content, context)
        audit.log_answer(outgoing, message, layout=answer.layout, seconds=seconds, left=left)
        if is_late(outgoing):
            kind = message.metadata.message_type
            log.warning("%s: answered after %.0f s; %s", kind, seconds, TOO_LATE)
    except Refused as refusal:
        # what was not written down does not leave
        answer = refuse(desk, context, refusal.code, refusal.reason)
        return Message(answer.content, reply_to=message)
    return outgoing


def refuse(desk: Desk, context: Context, code: Code, reason: str) -> Answer:
    """Return a refusal: a code, words for people, and the name of the node if it has one."""
    refusal = {"code": str(code), "reason": reason[:LONGEST_REASON]}
    with contextlib.suppress(Exception):
        # a node whose own file cannot be read has no name
        refusal["node"] = desk.node(context).name
    return Answer(RecordDict({"refused": ConfigRecord(dict(refusal))}))


def epsilon_left(desk: Desk, content: RecordDict, context: Context) -> float | None:
    """Return ε that the plan's run may still spend here, by the policy; None: no ceiling."""
    spent = content.config_records.get("privacy")
    if spent is None:
        return None
    ceiling = desk.node(context).policy.max_epsilon_run
    if ceiling is None:
        return None
    return max(0.0, ceiling - float(str(spent["epsilon"])))


@functools.cache
def process_desk() -> Desk:
    """Return the desk of this process."""
    return Desk()


app = make_client_app(process_desk)
