"""Flower messages ↔ one node: the ClientApp.

    query.offer      a plan and a backbone's fingerprint → does this node accept it, and does it
    have the backbone query.backbone   a part of the backbone's tensors → kept; with the last one,
    all are verified train            the shared adapter → the adapter after local training, with
    metrics of what was received evaluate         the shared adapter → metrics only (after the last
    round)

Whatever goes wrong is answered in words (`refused`), never with a traceback, and never with
anything of the data.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgraft.client.data.split import Split
from fedgraft.client.node.approvals import check_approved
from fedgraft.client.node.node_file import Node, load_node
from fedgraft.client.node_task import Workplace, open_splits, working_model
from fedgraft.client.privacy.budget import Budget
from fedgraft.client.privacy.dp_sgd import must_suit
from fedgraft.client.round import Outcome, measure_groups, run_round
from fedgraft.client.store.activation_cache import open_cache
from fedgraft.client.store.audit_log import Audit
from fedgraft.client.store.backbone_store import BackboneStore
from fedgraft.client.store.error_feedback import Feedback
from fedgraft.common.backbones.backbone import backbone_from_state
from fedgraft.common.errors import Code, Refused, UserError
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import plan_from_json, plan_hash
from fedgraft.common.privacy.clipping import update_of
from fedgraft.common.tasks.classification_sums import Sums
from fedgraft.common.wire.update import (
    ADAPTER,
    AdapterUpdate,
    BadUpdate,
    Layout,
    group_records,
    unpack,
)

app = ClientApp()
log = logging.getLogger("fedgraft.client")
MOST_PARTS = 10_000  # of a backbone
Handler = Callable[[Message, Context], RecordDict]


def answered(handle: Handler) -> Callable[[Message, Context], Message]:
    """Turn every failure of a handler into a reply that says why; details stay in this node's own
    log.
    """

    @functools.wraps(handle)
    def reply(message: Message, context: Context) -> Message:
        started, audit = time.perf_counter(), Audit(None)
        try:
            audit = Audit(_node(context).audit_path)
            audit.came(message)
            content = handle(message, context)
        except Refused as refusal:
            content = _refusal(refusal.code, refusal.reason, context)
        except BadUpdate as refusal:
            content = _refusal(Code.MISMATCH, str(refusal), context)
        except UserError as error:  # it may name files or values of this hospital: they stay here
            log.error("%s", error)
            content = _refusal(
                Code.SETUP,
                "this node's own set-up or data is not in order; its log says what",
                context,
            )
        # an error in our code must not take the round, or a traceback's values, with it
        except Exception as error:
            log.exception("message failed")
            content = _refusal(
                Code.FAILURE, f"{type(error).__name__} at this node; its log says more", context
            )
        answer = Message(content, reply_to=message)
        try:
            layout, seconds = getattr(_models, "layout", None), time.perf_counter() - started
            audit.goes(
                answer, message, layout=layout, seconds=seconds, left=_left(content, context)
            )
        except Refused as refusal:  # what was not written down does not leave
            return Message(_refusal(refusal.code, refusal.reason, context), reply_to=message)
        return answer

    return reply


@app.query("offer")
@answered
def offer(message: Message, context: Context) -> RecordDict:
    """Accept or refuse a plan; say whether its backbone is already here."""
    node = _node(context)
    offered = {key: str(value) for key, value in message.content.config_records["offer"].items()}
    plan = plan_from_json(offered["plan"])
    identity = plan_hash(plan)
    check_approved(node, plan_hash=identity, backbone=offered["fingerprint"])
    train, _ = _splits(_node_path(context), offered["plan"], offered["preprocess"])
    if len(train) < node.policy.min_examples:
        raise Refused(
            Code.POLICY, f"policy: fewer than {node.policy.min_examples} training examples"
        )
    node.policy.check_privacy(plan.privacy)
    if plan.privacy.at_node:
        _budget(_node_path(context), offered["plan"], offered["preprocess"]).admit(plan)
    store = _store(node)
    store.put_plan(identity, offered)
    about = {"node": node.name, "has": store.has(offered["fingerprint"]), "plan-hash": identity}
    # The weight that its updates will claim. Under differential privacy all weigh the same, and
    # none tells its size.
    about["examples"] = len(train) if plan.privacy.mode == "none" else 1
    return RecordDict({"about": ConfigRecord(about)})


@app.query("backbone")
@answered
def backbone(message: Message, context: Context) -> RecordDict:
    """Keep a part of a backbone that was offered; with its last part, verify it."""
    node, about = _node(context), message.content.config_records["about"]
    fingerprint, part, parts = str(about["fingerprint"]), about.get("part"), about.get("parts")
    check_approved(node, plan_hash=None, backbone=fingerprint)
    if not (isinstance(part, int) and isinstance(parts, int) and 1 <= part <= parts <= MOST_PARTS):
        raise Refused(Code.MISMATCH, f"part {str(part)[:20]} of {str(parts)[:20]} of a backbone")
    state = message.content.array_records["backbone"].to_torch_state_dict()
    _store(node).put_part(state, fingerprint, part, parts)
    said = {"stored": fingerprint} if part == parts else {"part": part}
    return RecordDict({"about": ConfigRecord({"node": node.name, **said})})


@app.train()
@answered
def train(message: Message, context: Context) -> RecordDict:
    """One round; see `client/round.py`."""
    place, layout, state = _open(message, context)
    round_ = _round(message, place.plan)
    told = _tells_metrics(context, place.plan)
    outcome = run_round(place, state, round_, clip=_clip(message), measured_too=told)
    return _record(outcome, place, layout, state, round_, context)


def train_together(
    messages: Sequence[Message], contexts: Sequence[Context]
) -> list[Message] | None:
    """The replies of many nodes of this process to one message, trained at once
    (`simulations/engines/together.py`).

    None where it is not possible or no gain, or something is wrong with one of them: each is then
    asked by itself.
    """
    from fedgraft.simulations.engines.together import is_a_win, run_rounds

    same = all(message.content is messages[0].content for message in messages)
    try:
        opened = [
            _open(message, context) for message, context in zip(messages, contexts, strict=True)
        ]
        place, layout, state = opened[0]
        if not same or not is_a_win(place.plan, place.model):
            return None
        round_, places = _round(messages[0], place.plan), [place for place, _, _ in opened]
        outcomes = run_rounds(places, state, round_)
    except Exception:  # whose fault it is shows when each is asked by itself
        return None
    replies = []
    for outcome, place, message, context in zip(outcomes, places, messages, contexts, strict=True):

        def told(
            _: Message, context: Context, outcome: Outcome = outcome, place: Workplace = place
        ) -> RecordDict:
            return _record(outcome, place, layout, state, round_, context)

        replies.append(
            answered(told)(message, context)
        )  # one that fails, or may not leave, is that node's alone
    return replies


def _round(message: Message, plan: Plan) -> int:
    """The round that a message is for."""
    round_ = int(str(message.content.config_records["about"]["round"]))
    if not 1 <= round_ <= plan.train.rounds:
        raise Refused(
            Code.MISMATCH, f"round {round_}: the plan has rounds 1 to {plan.train.rounds}"
        )
    return round_


def _record(
    outcome: Outcome,
    place: Workplace,
    layout: Layout,
    state: dict[str, torch.Tensor],
    round_: int,
    context: Context,
) -> RecordDict:
    """What leaves this node after a round that began with `state`."""
    update = AdapterUpdate(
        round=round_,
        state=outcome.state,
        examples=outcome.examples,
        steps=outcome.steps,
        train_loss=outcome.train_loss,
        seconds=outcome.seconds,
        received=_reported(context, place, outcome.received, round_, "metrics"),
        spent=outcome.spent,
    )
    wire, encoding = None, place.plan.aggregate.encoding
    if encoding != "none":
        memory = Feedback(_node(context).store / "feedback", plan_hash(place.plan))
        wire = memory.encoded(update_of(outcome.state, state), layout, encoding, round_)
    return update.to_record(layout, wire)


@app.evaluate()
@answered
def evaluate(message: Message, context: Context) -> RecordDict:
    """Metrics of the final model on this node's test split, and of the groups in it that plan and
    policy name.
    """
    place, _, state = _open(message, context)
    policy, privacy = _node(context).policy, place.plan.privacy
    if not _tells_metrics(context, place.plan):
        raise Refused(Code.POLICY, "policy: this node reports no metrics")
    measured, groups = measure_groups(place, state, policy.least_in_group(privacy))
    sums = _reported(context, place, measured, place.plan.train.rounds, "evaluation")
    if sums is None:
        raise Refused(Code.BUDGET, "privacy: nothing is left for metrics, or they were told before")
    return RecordDict({"received": MetricRecord(sums.to_flat()), **group_records(groups)})


def _tells_metrics(context: Context, plan: Plan) -> bool:
    """Whether the policy lets out metrics under such a plan, as they are or noised; else nothing is
    measured.
    """
    policy = _node(context).policy
    return policy.reports(plan.privacy) or policy.noises_metrics(plan.privacy)


def _reported(
    context: Context, place: Workplace, sums: Sums | None, round_: int, purpose: str
) -> Sums | None:
    """Of a round's metrics, what the policy lets out: as they are, noised and counted, or
    nothing.
    """
    if _node(context).policy.reports(place.plan.privacy):
        return sums
    return (
        None
        if place.budget is None
        else place.budget.noised_metrics(place.plan, round_, sums, purpose)
    )


def _clip(message: Message) -> float | None:
    """The norm that mode central clips to in this round."""
    said = message.content.config_records["about"].get("clip")
    if said is None:
        return None
    if not isinstance(said, float) or not 0 < said < math.inf:
        raise Refused(
            Code.MISMATCH, f"a clipping norm of {str(said)[:20]}; a number above 0 was agreed on"
        )
    return said


def _open(message: Message, context: Context) -> tuple[Workplace, Layout, dict[str, torch.Tensor]]:
    """The workplace of the message's plan, and the adapter it brings, checked."""
    node = _node(context)
    torch.set_num_threads(node.threads)
    about = message.content.config_records["about"]
    store = _store(node)
    offered = store.plan(str(about["plan-hash"]))
    plan, identity = _plan(offered["plan"])
    check_approved(node, plan_hash=identity, backbone=offered["fingerprint"])
    node.policy.check_privacy(plan.privacy)
    model, layout, frozen = _model(plan, identity, offered, store)
    if about["layout"] != layout.digest:
        raise Refused(
            Code.MISMATCH,
            f"layout {about['layout']}: this plan's adapter has layout {layout.digest}",
        )
    state = unpack(message.content.array_records[ADAPTER], layout)
    train_split, test_split = _splits(_node_path(context), offered["plan"], offered["preprocess"])
    budget = None
    if plan.privacy.at_node:
        budget = _budget(_node_path(context), offered["plan"], offered["preprocess"])
    if plan.privacy.mode == "sample":
        _must_suit(model, plan, train_split)
    place = Workplace(
        node.name, plan, model, train_split, test_split, frozen, budget, open_cache(node)
    )
    return place, layout, state


# One grafted model for each thread serves all nodes of the process in turn: each message loads its
# own adapter.
_models = threading.local()


def _model(
    plan: Plan, identity: str, offered: dict[str, str], store: BackboneStore
) -> tuple[GraftedModel, Layout, str]:
    key = (identity, offered["fingerprint"])
    if getattr(_models, "key", None) != key:
        preprocess = Preprocess.from_json(json.loads(offered["preprocess"]))
        net = backbone_from_state(
            plan.backbone.name, store.load(offered["fingerprint"]), preprocess
        )
        model = working_model(net, plan)
        _models.key, _models.model = key, model
        _models.layout = Layout.of(model.adapter_state(), model.drawn_state())
        _models.frozen = model.seal_as(net)
    return _models.model, _models.layout, _models.frozen


@functools.lru_cache(maxsize=64)
def _plan(plan_json: str) -> tuple[Plan, str]:
    """A plan that was offered, and its identity; the same text is read once."""
    plan = plan_from_json(plan_json)
    return plan, plan_hash(plan)


@functools.lru_cache(maxsize=2048)
def _splits(node_path: Path, plan_json: str, preprocess_json: str) -> tuple[Split, Split]:
    """Train and test split of a node under a plan; kept for the life of the process."""
    return open_splits(
        load_node(node_path),
        plan_from_json(plan_json),
        Preprocess.from_json(json.loads(preprocess_json)),
    )


@functools.lru_cache(maxsize=2048)
def _budget(node_path: Path, plan_json: str, preprocess_json: str) -> Budget:
    """What stands between a plan and this node's data; kept for the life of the process."""
    train_split, _ = _splits(node_path, plan_json, preprocess_json)
    return Budget.open(_load_node(node_path), plan_from_json(plan_json), train_split)


def _must_suit(model: GraftedModel, plan: Plan, split: Split) -> None:
    """Whether Opacus takes this thread's model, asked once."""
    if getattr(_models, "suits", None) is not model:
        must_suit(
            model, plan.privacy.grad_sample_mode, split.inputs(torch.zeros(1, dtype=torch.int64))
        )
        _models.suits = model


def _node_path(context: Context) -> Path:
    """Where this node's own file is. Only the Simulation Runtime sets `partition-id`; a server
    cannot.
    """
    if "node" in context.node_config:
        return Path(str(context.node_config["node"]))
    if "partition-id" in context.node_config:
        return (
            Path(str(context.run_config["nodes"]))
            / f"node-{context.node_config['partition-id']}.yaml"
        )
    raise Refused(
        Code.SETUP,
        "this node was started without its file: --node-config 'node=\"/path/node.yaml\"'",
    )


@functools.lru_cache(maxsize=2048)
def _load_node(path: Path) -> Node:
    return load_node(path)


def _left(content: RecordDict, context: Context) -> float | None:
    """ε that the plan's run may still spend here, by the stricter of plan and policy; None: no
    ceiling.
    """
    spent = content.config_records.get("privacy")
    ceiling = _node(context).policy.max_epsilon_run if spent else None
    return (
        None
        if spent is None or ceiling is None
        else max(0.0, ceiling - float(str(spent["epsilon"])))
    )


def _store(node: Node) -> BackboneStore:
    return BackboneStore(
        node.store, None if node.store_limit is None else node.store_limit * 1_000_000
    )


def _node(context: Context) -> Node:
    return _load_node(_node_path(context))


def _refusal(code: Code, reason: str, context: Context) -> RecordDict:
    said = {"code": str(code), "reason": reason[:2000]}
    with contextlib.suppress(Exception):  # a node whose own file cannot be read has no name
        said["node"] = _node(context).name
    return RecordDict({"refused": ConfigRecord(dict(said))})
