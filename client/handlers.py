"""What a node does for each kind of message; `client/app.py` is the door that calls it.

offer      an agreement and a backbone's fingerprint → is it accepted, and is the backbone here, or
           which parts of it are missing
backbone   a part of the backbone's tensors → kept; once all are here, they are verified
train      the shared adapter → the adapter after local training, with metrics of what came; or,
           in a round of sums or histograms, those of the records
evaluate   the shared adapter → metrics only (after the last round); with `validation`, those that a
           round is chosen by (after each), and with `temperature` losses that one is chosen by
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from fedgraft.client.desk import Desk, Offer, OpenModel
from fedgraft.client.histogram_round import HistogramOutcome, run_histogram_round
from fedgraft.client.node.approvals import check_approved
from fedgraft.client.node.node_file import Node
from fedgraft.client.node.preparation_check import check_preparation
from fedgraft.client.node_task import NodeTask
from fedgraft.client.round import (
    Outcome,
    measure_groups,
    measure_temperatures,
    measure_validation,
    require_budget,
    run_round,
)
from fedgraft.client.store.activation_cache import open_cache
from fedgraft.client.store.error_feedback import Feedback
from fedgraft.client.store.kept_answers import KeptAnswers
from fedgraft.client.sum_round import SumOutcome, run_sum_round
from fedgraft.common.backbones.quantization import check_installed
from fedgraft.common.errors import Code, Refused
from fedgraft.common.model.devices import describe_device
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.plan.chosen_by_validation import calibrates, measures_validation
from fedgraft.common.plan.phases import purpose_of
from fedgraft.common.statistics.gram_sums import GramSums
from fedgraft.common.wire.backbone_parts import read_part
from fedgraft.common.wire.histogram_record import histogram_record
from fedgraft.common.wire.layout import ADAPTER, Layout, unpack
from fedgraft.common.wire.metric_records import VALIDATION, group_records
from fedgraft.common.wire.noisy_record import noisy_record
from fedgraft.common.wire.spent_record import spent_record
from fedgraft.common.wire.sums_record import sums_record
from fedgraft.common.wire.update import AdapterUpdate

log = logging.getLogger("fedgraft.client")


@dataclass
class Answer:
    """What a handler gives back, and what the audit log names it by."""

    content: RecordDict = field(default_factory=RecordDict)
    layout: Layout | None = None


@dataclass(frozen=True, eq=False)
class OpenMessage:
    """A message of a round, opened: what the node works on, and the adapter that came.

    Attributes:
        round: that it is for, from 1.
        layout: of the adapter.
        state: the adapter's tensors by name, checked.
        kept: what was answered under its agreement.
    """

    node: Node
    task: NodeTask
    round: int
    layout: Layout
    state: dict[str, Tensor]
    kept: KeptAnswers

    @property
    def plan(self) -> Agreement:
        """The agreement that the message is under."""
        return self.task.plan

    @property
    def reports_metrics(self) -> bool:
        """Whether the policy lets out metrics under the plan, as they are or noised; else nothing
        is measured.
        """
        policy = self.node.policy
        return policy.reports(self.plan.privacy) or policy.noises_metrics(self.plan.privacy)


def offer(desk: Desk, message: Message, context: Context) -> Answer:
    """Accept or refuse an agreement; say whether its backbone is already here."""
    node = desk.node(context)
    record = message.content.config_records["offer"]
    content = {key: str(value) for key, value in record.items()}
    offered = Offer.read(content)
    plan, identity = desk.agreement(offered.agreement)
    check_approved(node, plan_hash=identity, backbone=offered.fingerprint)
    check_preparation(offered, plan, identity, desk.store(node))
    check_installed(plan.backbone.quantization)
    train, _ = desk.splits(context, offered)
    if len(train) < node.policy.min_examples:
        what = f"policy: fewer than {node.policy.min_examples} training examples"
        raise Refused(Code.POLICY, what)
    node.policy.check_privacy(plan.privacy)
    if plan.privacy.at_node:
        desk.budget(context, offered).admit(plan)
    store = desk.store(node)
    store.put_plan(identity, content)
    # The weight that its updates will claim. Under differential privacy all weigh the same, and
    # none tells its size.
    examples = 1
    if plan.privacy.mode == "none":
        examples = len(train)
    about: dict[str, Any] = {
        "node": node.name,
        "has": store.has(offered.fingerprint),
        "plan-hash": identity,
        "examples": examples,
        # last bits depend on it
        "device": describe_device(desk.device(node)),
    }
    download = store.find_download(offered.fingerprint)
    if download is not None and download.table is not None:
        # where to go on with a hand-out that was broken off
        about["table"] = download.table.digest
        about["missing"] = download.missing()
    return Answer(RecordDict({"about": ConfigRecord(about)}))


def backbone(desk: Desk, message: Message, context: Context) -> Answer:
    """Keep a part of a backbone that was offered; once all are here, verify them."""
    node = desk.node(context)
    about = message.content.config_records["about"]
    fingerprint = str(about["fingerprint"])
    check_approved(node, plan_hash=None, backbone=fingerprint)
    part = read_part(message.content)
    missing = desk.store(node).put_part(part, fingerprint)
    confirmation: dict[str, Any] = {"node": node.name, "part": part.number}
    if not missing:
        confirmation = {"node": node.name, "stored": fingerprint}
    return Answer(RecordDict({"about": ConfigRecord(confirmation)}))


def train(desk: Desk, message: Message, context: Context) -> Answer:
    """Run one round; see `client/round.py`."""
    with open_message(desk, message, context) as opened:
        return answer_once(opened, message, lambda: answer_round(opened, message))


def answer_round(opened: OpenMessage, message: Message) -> Answer:
    """Run a round and return what leaves this node."""
    round_ = opened.round
    purpose = purpose_of(opened.plan.train, round_)
    policy = opened.node.policy
    if purpose == "nothing":
        raise Refused(Code.MISMATCH, "the plan trains nothing")
    if purpose == "histograms":
        policy.check_histograms()
        return compose_histograms(opened, run_histogram_round(opened.task), round_)
    if purpose == "sums":
        if not opened.plan.privacy.at_node:
            task = opened.task
            policy.check_sums(len(task.train), task.model.count_features())
        outcome = run_sum_round(opened.task, opened.state, round_)
        return compose_sums(opened, outcome, round_)
    outcome = run_round(
        opened.task,
        opened.state,
        round_,
        clip=read_clip(message),
        measure=opened.reports_metrics,
    )
    return compose_update(opened, outcome, round_)


def evaluate(desk: Desk, message: Message, context: Context) -> Answer:
    """Measure the final model on this node's test split, and the groups in it that plan and policy
    name.
    """
    with open_message(desk, message, context) as opened:
        if not opened.reports_metrics:
            raise Refused(Code.POLICY, "policy: this node reports no metrics")
        return answer_once(opened, message, lambda: answer_evaluation(opened))


def answer_evaluation(opened: OpenMessage) -> Answer:
    """Measure the model that came and return what leaves this node."""
    least = opened.node.policy.least_in_group(opened.plan.privacy)
    measured, groups = measure_groups(opened.task, opened.state, least)
    sums = release_metrics(opened, measured, opened.plan.train.rounds, "evaluation")
    if sums is None:
        what = "privacy: nothing is left for metrics, or they were told before"
        raise Refused(Code.BUDGET, what)
    content = RecordDict({"received": MetricRecord(sums.to_flat()), **group_records(groups)})
    if opened.node.policy.noises_metrics(opened.plan.privacy):
        # the noise of these counts is counted, too
        content["privacy"] = spent_record(require_budget(opened.task).spent(opened.plan))
    return Answer(content, opened.layout)


def answer_once(opened: OpenMessage, message: Message, answer: Callable[[], Answer]) -> Answer:
    """Return the answer to a question; under privacy at the node, the same bytes if it was answered
    before: what noise hides is released once, and counted once.
    """
    if not opened.plan.privacy.at_node:
        return answer()
    kind = message.metadata.message_type
    earlier = opened.kept.find(kind, message.content)
    if earlier is not None:
        log.info("round %d: answered before; the same answer is sent again", opened.round)
        return Answer(earlier, opened.layout)
    made = answer()
    opened.kept.keep(kind, message.content, made.content)
    return made


def validate(desk: Desk, message: Message, context: Context) -> Answer:
    """Measure a model on this node's validation split, where the plan chooses by that."""
    with open_message(desk, message, context) as opened:
        plan = opened.plan
        if not measures_validation(plan.train, plan.evaluate):
            raise Refused(Code.MISMATCH, "the plan measures nothing on validation records")
        # never under differential privacy: such a plan is none
        if not opened.node.policy.reports(plan.privacy):
            raise Refused(Code.POLICY, "policy: this node reports no metrics")
        sums = measure_validation(opened.task, opened.state)
        return Answer(RecordDict({VALIDATION: MetricRecord(sums.to_flat())}), opened.layout)


def sum_temperatures(desk: Desk, message: Message, context: Context) -> Answer:
    """Sum a model's losses on this node's validation split at each temperature, where the plan
    chooses one.
    """
    with open_message(desk, message, context) as opened:
        plan = opened.plan
        if not calibrates(plan.train):
            raise Refused(Code.MISMATCH, "the plan chooses no temperature")
        if not opened.node.policy.reports(plan.privacy):
            raise Refused(Code.POLICY, "policy: this node reports no metrics")
        sums = measure_temperatures(opened.task, opened.state)
        return Answer(sums.to_record(), opened.layout)


# ── parts of a message ────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, eq=False)
class RoundMessage:
    """A message of a round whose agreement is approved here, before anything is built for it."""

    context: Context
    content: RecordDict
    node: Node
    plan: Agreement
    identity: str
    offer: Offer
    round: int


def read_message(desk: Desk, message: Message, context: Context) -> RoundMessage:
    """Return a message of a round. Raise `Refused` where its agreement may not run here."""
    node = desk.node(context)
    about = message.content.config_records["about"]
    offered = Offer.read(desk.store(node).plan(str(about["plan-hash"])))
    plan, identity = desk.agreement(offered.agreement)
    check_approved(node, plan_hash=identity, backbone=offered.fingerprint)
    node.policy.check_privacy(plan.privacy)
    round_ = read_round(message, plan)
    return RoundMessage(context, message.content, node, plan, identity, offered, round_)


@contextmanager
def open_message(desk: Desk, message: Message, context: Context) -> Iterator[OpenMessage]:
    """Lend what a message of a round works on, and the adapter that it brings, checked."""
    received = read_message(desk, message, context)
    torch.set_num_threads(received.node.threads)
    with lend_model(desk, received) as model:
        yield open_task(desk, received, model)


def lend_model(desk: Desk, received: RoundMessage) -> AbstractContextManager[OpenModel]:
    """Lend a model of the message's agreement."""
    train_split, _ = desk.splits(received.context, received.offer)
    return desk.model(received.node, received.plan, received.offer, train_split, received.round)


def open_task(desk: Desk, received: RoundMessage, model: OpenModel) -> OpenMessage:
    """Return what a message works on with a model. Raise `Refused` or `BadUpdate` for an adapter
    that is not the one agreed on.
    """
    node = received.node
    plan = received.plan
    layout = model.layout
    digest = received.content.config_records["about"]["layout"]
    if digest != layout.digest:
        what = f"layout {digest}: this plan's adapter has layout {layout.digest}"
        raise Refused(Code.MISMATCH, what)
    state = unpack(received.content.array_records[ADAPTER], layout)
    train_split, test_split = desk.splits(received.context, received.offer)
    budget = None
    durable = True
    if plan.privacy.at_node:
        budget = desk.budget(received.context, received.offer)
        durable = budget.is_durable
    task = NodeTask(
        node=node.name,
        plan=plan,
        model=model.model,
        train=train_split,
        test=test_split,
        fingerprint=model.fingerprint,
        budget=budget,
        cache=open_cache(node),
        layout=layout,
        memory=Feedback(node.store / "feedback", received.identity),
        validation=desk.validation(received.context, received.offer),
        block=model.block,
    )
    kept = KeptAnswers(node.store / "answers", received.identity, durable)
    return OpenMessage(node, task, received.round, layout, state, kept)


def read_round(message: Message, plan: Agreement) -> int:
    """Return the round that a message is for."""
    round_ = int(str(message.content.config_records["about"]["round"]))
    if not 1 <= round_ <= plan.train.rounds:
        what = f"round {round_}: the plan has rounds 1 to {plan.train.rounds}"
        raise Refused(Code.MISMATCH, what)
    return round_


def read_clip(message: Message) -> float | None:
    """Return the norm that mode central clips to in this round."""
    clip = message.content.config_records["about"].get("clip")
    if clip is None:
        return None
    if not isinstance(clip, float) or not 0 < clip < math.inf:
        what = f"a clipping norm of {str(clip)[:20]}; a number above 0 was agreed on"
        raise Refused(Code.MISMATCH, what)
    return clip


def compose_update(opened: OpenMessage, outcome: Outcome, round_: int) -> Answer:
    """Return what leaves this node after a round."""
    received = release_metrics(opened, outcome.received, round_, "metrics")
    spent = outcome.spent
    # noisy metrics are counted, too; others cost nothing
    if spent is not None and opened.node.policy.noises_metrics(opened.plan.privacy):
        spent = require_budget(opened.task).spent(opened.plan)
    update = AdapterUpdate(
        round=round_,
        state=outcome.state,
        examples=outcome.examples,
        steps=outcome.steps,
        train_loss=outcome.train_loss,
        seconds=outcome.seconds,
        received=received,
        spent=spent,
    )
    return Answer(update.to_record(opened.layout, outcome.encoded), opened.layout)


def compose_sums(opened: OpenMessage, outcome: SumOutcome, round_: int) -> Answer:
    """Return what leaves this node after a round of sums."""
    digest = opened.layout.digest
    seconds = outcome.seconds
    sums = outcome.sums
    if isinstance(sums, GramSums):
        content = sums_record(sums, round_=round_, digest=digest, seconds=seconds)
    elif outcome.spent is None:
        raise Refused(Code.BUDGET, "noisy sums, and no account of them")
    else:
        content = noisy_record(sums, outcome.spent, round_=round_, digest=digest, seconds=seconds)
    return Answer(content, opened.layout)


def compose_histograms(opened: OpenMessage, outcome: HistogramOutcome, round_: int) -> Answer:
    """Return what leaves this node after a round of histograms."""
    content = histogram_record(
        outcome.histograms,
        round_=round_,
        digest=opened.layout.digest,
        seconds=outcome.seconds,
    )
    return Answer(content, opened.layout)


def release_metrics(opened: OpenMessage, sums: Any, round_: int, purpose: str) -> Any:
    """Return of a round's metrics what the policy lets out: as they are, noised and counted, or
    nothing.
    """
    if opened.node.policy.reports(opened.plan.privacy):
        return sums
    budget = opened.task.budget
    if budget is None:
        return None
    return budget.noised_metrics(opened.plan, round_, sums, purpose)
