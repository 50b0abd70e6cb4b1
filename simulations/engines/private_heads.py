"""One private round of many nodes at once, where what they train is a linear head on features.

    each node: reserve → its own lots and noise ┐
    all nodes: clipped sums (nodes, …) + noise → one optimizer step, again and again
    each node: settle → release                 ┘

Of a node's round nothing is shared but the arithmetic: the mechanism, the ledger's line before the
first gradient and after the last, and every random number are its own, drawn in the order of
`client/privacy/dp_sgd.py`. Lots are of differing sizes; the empty places of a smaller one hold no
record, and slopes of zero. The same steps as one node takes alone, to about 1e-6: a batched product
adds in another order.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedgraft.client.handlers import OpenMessage
from fedgraft.client.node_task import NodeTask
from fedgraft.client.privacy.clipping_engine import losses_of
from fedgraft.client.privacy.linear_head import clip_products, find_linear_head
from fedgraft.client.privacy.lots import Lot, draw_lots
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.release.outgoing import Outgoing, ReleaseTerms
from fedgraft.client.release.release_chain import release
from fedgraft.client.round import (
    Outcome,
    check_frozen,
    compose_outcome,
    is_measured,
    require_budget,
)
from fedgraft.client.training import local_steps
from fedgraft.client.training.optimizers import Adam, Sgd, new_optimizer
from fedgraft.common.plan.agreement import Agreement

# what became of a node: an answer, a failure of its own, or nothing where it was not asked
Result = Outcome | Exception | None


def suits_private_heads(task: NodeTask) -> bool:
    """Return whether a node's plan is sample-level privacy of single examples, and what it trains
    is a linear head behind a frozen prefix.
    """
    plan = task.plan
    privacy = plan.privacy
    if privacy.mode != "sample" or privacy.unit != "example" or privacy.grad_sample_mode != "hooks":
        return False
    if plan.train.augment != "none":
        return False
    tail, _ = task.for_training()
    return len(tail.steps) == 1 and find_linear_head(tail) is not None


def run_private_rounds(opened: Sequence[OpenMessage], round_: int) -> list[Result]:
    """Do what `fedgraft.client.round.run_round` does under mode sample, for nodes of one plan that
    share one model. Nothing is raised: what goes wrong is a result of the nodes that it befell.
    What they reserved stays counted, and none may be asked a second time.
    """
    started = time.perf_counter()
    tasks = [each.task for each in opened]
    received = opened[0].state
    results: list[Result] = [None] * len(tasks)
    accounts: dict[int, Account] = {}
    states: dict[int, dict[str, Tensor]] = {}
    measured: list[object] = []
    try:
        # ── the model as received ─────────────────────────────────────────────────────────────────
        check_frozen(tasks[0], read=False)
        tasks[0].model.load_adapter_state(received)
        measured = [_measure(each, round_) for each in opened]

        # ── local training ────────────────────────────────────────────────────────────────────────
        for number, task in enumerate(tasks):
            try:
                accounts[number] = Account.open(task, round_)
            except Exception as error:
                results[number] = error
        states = _train(tasks, accounts, received, round_)
        for number in states:
            try:
                accounts[number].settle()
            except Exception as error:
                results[number] = error
        check_frozen(tasks[0], read=True)
    except Exception as error:
        return [own or error for own in results]

    # ── what goes back ────────────────────────────────────────────────────────────────────────────
    seconds = (time.perf_counter() - started) / len(tasks)
    for number, state in states.items():
        if results[number] is not None:
            continue
        task = tasks[number]
        terms = ReleaseTerms(task.plan, round_, layout=task.layout, memory=task.memory)
        trained = local_steps.Trained(steps=accounts[number].mechanism.steps, loss=0.0)
        try:
            outgoing = release(Outgoing(state, received), terms)
            results[number] = compose_outcome(
                task, outgoing, trained, measured=measured[number], seconds=seconds
            )
        except Exception as error:
            results[number] = error
    return results


def _measure(opened: OpenMessage, round_: int) -> object:
    """Return metric sums of the model as received; None where none may leave."""
    task = opened.task
    if not opened.reports_metrics or not is_measured(task, round_):
        return None
    tail, tests = task.for_tests()
    return local_steps.evaluate(tail, tests, task.plan.task, silent=True)


@dataclass(frozen=True, eq=False)
class Account:
    """What one node reserved for its round; unless it is settled, all of it stays counted.

    Attributes:
        lots: of each step, from the node's own randomness.
    """

    mechanism: Mechanism
    lots: Iterator[Lot]
    reservation: ExitStack

    @classmethod
    def open(cls, task: NodeTask, round_: int) -> Account:
        """Reserve a node's round. Raises `Refused` where policy or ledger do."""
        budget = require_budget(task)
        reservation = ExitStack()
        mechanism = reservation.enter_context(budget.spending(task.plan, round_))
        head = _find_head(task)
        values = head.weight.numel() + head.bias.numel()
        randomness = budget.randomness(task.plan, round_)
        lots = draw_lots(mechanism, len(task.train), values, randomness)
        return cls(mechanism, lots, reservation)

    def settle(self) -> None:
        """Settle in the ledger."""
        self.reservation.close()


def _find_head(task: NodeTask) -> nn.Linear:
    tail, _ = task.for_training()
    head = find_linear_head(tail)
    if head is None:
        raise RuntimeError("not a linear head alone")
    return head


def _train(
    tasks: Sequence[NodeTask],
    accounts: Mapping[int, Account],
    received: Mapping[str, Tensor],
    round_: int,
) -> dict[int, dict[str, Tensor]]:
    """Take all steps of the nodes that have an account; return their adapters by number."""
    # those that still train are always the first ones
    order = sorted(accounts, key=lambda number: -accounts[number].mechanism.steps)
    if not order:
        return {}
    mechanisms = [accounts[number].mechanism for number in order]
    lots = [accounts[number].lots for number in order]
    stack = PrivateStack([tasks[number] for number in order], mechanisms, received, round_)
    for step in range(mechanisms[0].steps):
        active = sum(mechanism.steps > step for mechanism in mechanisms)
        stack.step([next(own) for own in lots[:active]])
    states = stack.unstack()
    return dict(zip(order, states, strict=True))


class PrivateStack:
    """The heads of some nodes as one tensor with an axis of nodes, those with most steps first.

        stack = PrivateStack(tasks, mechanisms, received, round_=1)
        stack.step(lots)
        states = stack.unstack()

    Args:
        received: the shared head, tensors by name.
    """

    def __init__(
        self,
        tasks: Sequence[NodeTask],
        mechanisms: Sequence[Mechanism],
        received: Mapping[str, Tensor],
        round_: int,
    ) -> None:
        plan = tasks[0].plan
        head = _find_head(tasks[0])
        device = head.weight.device
        self._head = head
        self._names = list(received)
        self._losses = losses_of(plan.task, plan.train)
        self._norm = mechanisms[0].max_grad_norm
        self._proximal = plan.train.proximal
        self._deviations = _column(m.noise_multiplier * m.max_grad_norm for m in mechanisms)
        self._expected = _column(m.expected for m in mechanisms)
        self._features, self._targets, self._starts = _join(tasks, device)
        tail, _ = tasks[0].for_training()
        named = tail.trainable_parameters()
        # as `PrivateModel.parameters` has them: weight, bias
        self._order = [_name_of(parameter, named) for parameter in (head.weight, head.bias)]
        self._values = []
        for name in self._order:
            value = received[name].expand(len(tasks), *received[name].shape)
            self._values.append(value.to(device, copy=True).contiguous())
        self._received = [value.clone() for value in self._values]
        self._optimizer = new_stacked_optimizer(plan, self._values, round_)

    @torch.no_grad()
    def step(self, lots: Sequence[Lot]) -> None:
        """Take one noisy step of the first nodes, each on its lot."""
        active = len(lots)
        if active < len(self._optimizer.parameters[0]):
            self._optimizer = self._optimizer.first(active)
        parameters = self._optimizer.parameters
        sums = self._sum_clipped(parameters, lots)
        noise = torch.from_numpy(np.stack([lot.noise for lot in lots]))
        # in float64 on the host; the last step of rounding follows the noise
        noisy = noise.mul_(self._deviations[:active]).add_(sums.cpu()).to(sums.dtype)
        noisy = noisy.div_(self._expected[:active]).to(sums.device)

        sizes = [parameter[0].numel() for parameter in parameters]
        released = noisy.split(sizes, 1)
        for parameter, received, part in zip(parameters, self._received, released, strict=True):
            parameter.grad = part.reshape(parameter.shape)
            if self._proximal:
                # behind the noise
                parameter.grad.add_(parameter - received[:active], alpha=self._proximal)
        self._optimizer.step()

    def unstack(self) -> list[dict[str, Tensor]]:
        """Return every node's head, tensors by name in the order that was given."""
        states = []
        for row in range(len(self._values[0])):
            own: dict[str, Tensor] = {}
            for name, value in zip(self._order, self._values, strict=True):
                own[name] = value[row].to("cpu", copy=True)
            states.append({name: own[name] for name in self._names})
        return states

    def _sum_clipped(self, parameters: Sequence[Tensor], lots: Sequence[Lot]) -> Tensor:
        """Return the clipped sum of each node's lot, `(nodes, values)`."""
        weight, bias = parameters
        places = self._place(lots)
        x = self._features[places]
        outputs = torch.baddbmm(bias[:, None], x, weight.mT)
        g = self._slopes(outputs, self._targets[places])
        g = g.masked_fill((places == len(self._features) - 1)[..., None], 0.0)
        factors, x, g = clip_products(x, g, self._norm)
        weights = (g * factors[..., None]).mT @ x
        biases = factors[:, None] @ g
        return torch.cat([weights.flatten(1), biases.flatten(1)], 1)

    def _place(self, lots: Sequence[Lot]) -> Tensor:
        """Return the rows of each lot `(nodes, largest lot)`; the last row of all where a lot is
        smaller.
        """
        most = max(len(lot.positions) for lot in lots)
        places = np.full((len(lots), most), len(self._features) - 1)
        for row, (lot, start) in enumerate(zip(lots, self._starts, strict=False)):
            places[row, : len(lot.positions)] = start + lot.positions
        return torch.from_numpy(places).to(self._features.device)

    def _slopes(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the slope of each example's loss at its outputs `(nodes, n, outputs)`."""
        if outputs.numel() == 0:
            return outputs
        with torch.enable_grad():
            leaf = outputs.flatten(0, 1).requires_grad_()
            losses = self._losses(leaf, targets.flatten(0, 1))
            (g,) = torch.autograd.grad(losses, [leaf], [torch.ones_like(losses)])
        return g.view_as(outputs)


def new_stacked_optimizer(plan: Agreement, values: Sequence[Tensor], round_: int) -> Adam | Sgd:
    """Return the plan's optimizer over stacked parameters, at a round's learning rate."""
    section = plan.train
    rate = local_steps.learning_rate(section.optimizer.lr, section.schedule, round_, section.rounds)
    return new_optimizer(values, section.optimizer, rate)


def _join(tasks: Sequence[NodeTask], device: torch.device) -> tuple[Tensor, Tensor, list[int]]:
    """Return all nodes' features `(n + 1, d)` and targets, whose last row is nobody's, and where
    each node's begin.
    """
    features: list[Tensor] = []
    targets: list[Tensor] = []
    starts: list[int] = []
    count = 0
    for task in tasks:
        _, examples = task.for_training()
        features.append(examples.inputs(torch.arange(len(examples))).joined)
        targets.append(examples.labels)
        starts.append(count)
        count += len(examples)
    features.append(torch.zeros_like(features[0][:1]))
    targets.append(torch.zeros_like(targets[0][:1]))
    return torch.cat(features).to(device), torch.cat(targets).to(device), starts


def _column(numbers: Iterable[float]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.float64)[:, None]


def _name_of(parameter: Tensor, named: Mapping[str, Tensor]) -> str:
    """Return the name of a parameter among those that travel."""
    for name, other in named.items():
        if other is parameter:
            return name
    raise RuntimeError("a head whose parameters do not travel")
