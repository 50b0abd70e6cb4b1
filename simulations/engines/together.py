"""One round of many nodes at once, where what they train is alike: their adapters are stacked, a
step is one product.

    adapters (nodes, …) × batches (nodes, batch, …) → outputs → one gradient for each node → one
    optimizer step

Under privacy by example a linear head trains the same way (`private_heads.py`).

A small head trains in microseconds, and calling torch for it costs more than the arithmetic; here
one call serves all nodes. Nodes are in order of their number of steps, so that those which still
train are always the first ones. The same steps as `client/training/local_steps.py` takes, to about
1e-6: a batched product adds in another order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import Context, Message
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedgraft.client import app as client
from fedgraft.client import handlers
from fedgraft.client.data.examples import Examples
from fedgraft.client.desk import Desk
from fedgraft.client.handlers import Answer, OpenMessage
from fedgraft.client.node_task import NodeTask
from fedgraft.client.release.outgoing import Outgoing, ReleaseTerms
from fedgraft.client.release.release_chain import release
from fedgraft.client.round import (
    Outcome,
    check_frozen,
    compose_outcome,
    is_measured,
    round_generator,
)
from fedgraft.client.training import local_steps
from fedgraft.common.plan.phases import purpose_of
from fedgraft.common.tasks.step_losses import losses_as_named
from fedgraft.simulations.engines.private_heads import (
    Result,
    new_stacked_optimizer,
    run_private_rounds,
    suits_private_heads,
)

MOST_BYTES = 64 * 2**20  # of one group's inputs


def train_together(
    desk: Desk, messages: Sequence[Message], contexts: Sequence[Context]
) -> list[Message] | None:
    """Return the replies of many nodes of this process to one message, trained at once.

    None where it is not possible or no gain, or something is wrong with one of them: each is then
    asked by itself.
    """
    content = messages[0].content
    if any(message.content is not content for message in messages):
        return None
    try:
        received = [
            handlers.read_message(desk, message, context)
            for message, context in zip(messages, contexts, strict=True)
        ]
        if any(other.offer != received[0].offer for other in received):
            return None
        torch.set_num_threads(received[0].node.threads)
        with handlers.lend_model(desk, received[0]) as model:
            opened = [handlers.open_task(desk, each, model) for each in received]
            plan = opened[0].plan
            round_ = opened[0].round
            if purpose_of(plan.train, round_) != "steps" or not is_worthwhile(opened[0].task):
                return None
            if plan.train.gradient_checkpointing:
                # it is for memory, and all nodes at once need all of it
                return None
            if plan.privacy.mode == "sample":
                results = run_privately(opened, messages)
            else:
                clip = handlers.read_clip(messages[0])
                outcomes = run_rounds([each.task for each in opened], opened[0].state, round_, clip)
                results = list(outcomes)
    except Exception:
        # whose fault it is shows when each is asked by itself
        return None
    replies: list[Message] = []
    for each, result, message, context in zip(opened, results, messages, contexts, strict=True):
        # one that fails, or may not leave, is that node's alone
        replies.append(client.reply(desk, _handler(each, result, round_), message, context))
    return replies


def run_privately(opened: Sequence[OpenMessage], messages: Sequence[Message]) -> list[Result]:
    """Return what became of each node's private round, None of one that answered before. Nothing is
    raised once the first node has reserved.
    """
    results: list[Result] = [None] * len(opened)
    asked: list[int] = []
    for number, (each, message) in enumerate(zip(opened, messages, strict=True)):
        # what noise hides is released once, and counted once
        if each.kept.find(message.metadata.message_type, message.content) is None:
            asked.append(number)
    start = 0
    for group in _groups([opened[number].task for number in asked]):
        numbers = asked[start : start + len(group)]
        start += len(group)
        found = run_private_rounds([opened[number] for number in numbers], opened[0].round)
        for number, result in zip(numbers, found, strict=True):
            results[number] = result
    return results


def _handler(opened: OpenMessage, result: Result, round_: int) -> client.Handler:
    """Return a handler that gives what one node trained, or says why it did not."""

    def compose() -> Answer:
        if isinstance(result, Exception):
            raise result
        if result is None:
            raise RuntimeError("nothing was trained")
        return handlers.compose_update(opened, result, round_)

    def handle(desk: Desk, message: Message, context: Context) -> Answer:
        return handlers.answer_once(opened, message, compose)

    return handle


def is_worthwhile(task: NodeTask) -> bool:
    """Whether nodes of a plan gain: all that trains is linear layers (a stacked convolution is a
    grouped one, which is slower), or under privacy at each step one linear head, and without
    augmentation.
    """
    plan = task.plan
    model = task.model
    if plan.privacy.mode == "sample":
        return suits_private_heads(task)
    if plan.privacy.mode == "local" or plan.train.augment != "none":
        return False
    if plan.train.local_steps is not None:
        return False
    linear: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            linear |= {id(parameter) for parameter in module.parameters()}
    return all(id(parameter) in linear for parameter in model.trainable_parameters().values())


def run_rounds(
    tasks: Sequence[NodeTask],
    received: Mapping[str, Tensor],
    round_: int,
    clip: float | None = None,
) -> list[Outcome]:
    """Do what `fedgraft.client.round.run_round` does, for nodes of one plan that share one model.

    Args:
        clip: L2 norm that the updates are clipped to in mode central; default the plan's.

    Raises:
        Refused: as there; for all of them.
    """
    plan = tasks[0].plan
    started = time.perf_counter()

    # ── the model as received ─────────────────────────────────────────────────────────────────────
    check_frozen(tasks[0], read=False)
    tasks[0].model.load_adapter_state(received)
    measured = [None] * len(tasks)
    if is_measured(tasks[0], round_):
        measured = [local_steps.evaluate(*task.for_tests(), plan.task) for task in tasks]

    # ── local training ────────────────────────────────────────────────────────────────────────────
    trained: list[TrainedNode] = []
    for group in _groups(tasks):
        trained += Stack(group, received, round_).train()

    # ── what goes back ────────────────────────────────────────────────────────────────────────────
    check_frozen(tasks[0], read=True)
    seconds = (time.perf_counter() - started) / len(tasks)
    outcomes: list[Outcome] = []
    for task, node, sums in zip(tasks, trained, measured, strict=True):
        terms = ReleaseTerms(plan, round_, clip, layout=task.layout, memory=task.memory)
        outgoing = release(Outgoing(node.state, received), terms)
        outcomes.append(
            compose_outcome(task, outgoing, node.trained, measured=sums, seconds=seconds)
        )
    return outcomes


@dataclass(frozen=True)
class TrainedNode:
    """One node's adapter after its steps."""

    state: dict[str, Tensor]
    trained: local_steps.Trained


def _groups(tasks: Sequence[NodeTask]) -> list[list[NodeTask]]:
    """Return consecutive nodes whose inputs fit into MOST_BYTES together."""
    groups: list[list[NodeTask]] = []
    held = 0
    for task in tasks:
        _, examples = task.for_training()
        one = examples.inputs(torch.zeros(1, dtype=torch.int64))
        size = len(examples) * one.nbytes
        if not groups or held + size > MOST_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(task)
        held += size
    return groups


class Stack:
    """The adapters of a group of nodes, trained as one tensor with an axis of nodes.

        states = [node.state for node in Stack(tasks, received, round_=1).train()]

    Args:
        received: the shared adapter, tensors by name.
    """

    def __init__(
        self, tasks: Sequence[NodeTask], received: Mapping[str, Tensor], round_: int
    ) -> None:
        self._plan = tasks[0].plan
        self._received = received
        self._by_steps = sorted(range(len(tasks)), key=lambda number: -len(tasks[number].train))
        self._tasks = [tasks[number] for number in self._by_steps]
        self._tail, _ = self._tasks[0].for_training()
        self._examples = [examples for _, examples in (task.for_training() for task in self._tasks)]
        self._schedule = schedule_batches(self._tasks, self._examples, round_)
        self._round = round_

    def train(self) -> list[TrainedNode]:
        """Return every node's adapter after all of its steps, in the order that was given."""
        device = self._tail.device
        everything = [examples.inputs(torch.arange(len(examples))) for examples in self._examples]
        inputs = torch.cat([batch.joined for batch in everything]).to(device)
        labels = torch.cat([examples.labels for examples in self._examples]).to(device)
        values: dict[str, Tensor] = {}
        for name, value in self._received.items():
            stacked = value.expand(len(self._tasks), *value.shape)
            values[f"net.{name}"] = stacked.to(device, copy=True).contiguous()
        start: dict[str, Tensor] = {}
        if self._plan.train.proximal:
            start = {name: value.clone() for name, value in values.items()}
        sums = self._take_steps(values, start, inputs, labels)
        return self._unstack(values, sums)

    def _take_steps(
        self, values: dict[str, Tensor], start: dict[str, Tensor], inputs: Tensor, labels: Tensor
    ) -> Tensor:
        """Take every step, in place; return the sum of losses of each node `(nodes,)`."""
        losses_of = losses_as_named(self._plan.task, self._plan.train)
        if losses_of is None:
            raise ValueError(f"{self._plan.task.question} has no loss of a single example")
        tail = self._tail
        forward = vmap(lambda parameters, x: functional_call(tail, parameters, (x,)))
        added = self._balances()
        weights = self._class_weights()
        optimizer = new_stacked_optimizer(self._plan, list(values.values()), self._round)
        device = tail.device
        sums = torch.zeros(len(self._tasks), device=device)
        schedule = self._schedule
        for step in range(max(schedule.steps)):
            active = sum(count > step for count in schedule.steps)
            if active < len(optimizer.parameters[0]):
                optimizer = optimizer.first(active)
            leaves: dict[str, Tensor] = {}
            for name, value in zip(values, optimizer.parameters, strict=True):
                leaves[name] = value.detach().requires_grad_()
            positions = schedule.positions[:active, step].to(device)
            share = schedule.shares[:active, step].to(device)
            outputs = forward(leaves, inputs[positions]) + added[:active]
            losses = losses_of(outputs.flatten(0, 1), labels[positions].flatten(0, 1))
            # an empty place may be at infinity
            losses = torch.where(share > 0, losses.view(positions.shape), 0.0)
            if weights is not None:
                losses = losses * weights[:active].gather(1, labels[positions])
            loss = (losses * share).sum(1)
            gradients = torch.autograd.grad(loss.sum(), list(leaves.values()))
            for name, parameter, gradient in zip(
                values, optimizer.parameters, gradients, strict=True
            ):
                parameter.grad = gradient
                if start:
                    moved = parameter - start[name][:active]
                    gradient.add_(moved, alpha=self._plan.train.proximal)
            optimizer.step()
            sums[:active] += loss.detach() * (share > 0).sum(1)
        return sums

    def _balances(self) -> Tensor:
        """Return what each node's loss adds to its outputs, `(nodes, 1, outputs)`."""
        shifts: list[Tensor] = []
        for task in self._tasks:
            shift = local_steps.balance_of(self._plan, task.train.labels)
            if shift is not None:
                shifts.append(shift)
        if not shifts:
            return torch.zeros(len(self._tasks), 1, 1, device=self._tail.device)
        return torch.stack(shifts)[:, None].to(self._tail.device)

    def _class_weights(self) -> Tensor | None:
        """Return the weight of each class at each node, `(nodes, classes)`; None: all weigh 1."""
        weights: list[Tensor] = []
        for task in self._tasks:
            own = local_steps.weights_of(self._plan, task.train.labels)
            if own is not None:
                weights.append(own)
        return torch.stack(weights).to(self._tail.device) if weights else None

    def _unstack(self, values: dict[str, Tensor], sums: Tensor) -> list[TrainedNode]:
        trained: dict[int, TrainedNode] = {}
        epochs = self._plan.train.local_epochs
        for row, number in enumerate(self._by_steps):
            state: dict[str, Tensor] = {}
            for name in self._received:
                state[name] = values[f"net.{name}"][row].to("cpu", copy=True)
            seen = max(epochs * len(self._examples[row]), 1)
            steps = self._schedule.steps[row]
            taken = local_steps.Trained(steps=steps, loss=float(sums[row]) / seen)
            trained[number] = TrainedNode(state, taken)
        return [trained[number] for number in range(len(trained))]


@dataclass(frozen=True)
class BatchSchedule:
    """Which examples every node's steps are taken on.

    Attributes:
        positions: `(nodes, steps, batch)` in the joined inputs.
        shares: the same shape; 1 / (examples of the batch), and 0 for the empty places of a smaller
            one.
        steps: of each node.
    """

    positions: Tensor
    shares: Tensor
    steps: list[int]


def schedule_batches(
    tasks: Sequence[NodeTask], examples: Sequence[Examples], round_: int
) -> BatchSchedule:
    """Return the batches that each node would draw by itself."""
    plan = tasks[0].plan
    size = plan.train.batch_size
    epochs = plan.train.local_epochs
    steps = [epochs * -(-len(each) // size) for each in examples]
    positions = torch.zeros((len(tasks), max(steps), size), dtype=torch.int64)
    shares = torch.zeros(positions.shape)
    start = 0
    for row, (task, own) in enumerate(zip(tasks, examples, strict=True)):
        generator = round_generator(plan.seed, round_, task.node)
        step = 0
        for _ in range(epochs):
            order = torch.randperm(len(own), generator=generator)
            for batch in torch.split(order, size):
                positions[row, step, : len(batch)] = start + batch
                shares[row, step, : len(batch)] = 1 / len(batch)
                step += 1
        start += len(own)
    return BatchSchedule(positions, shares, steps)
