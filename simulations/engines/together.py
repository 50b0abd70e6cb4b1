"""One round of many nodes at once, where what they train is alike: their adapters are stacked, a
step is one product.

    adapters (nodes, …) × batches (nodes, batch, …) → logits → one gradient for each node → one
    optimizer step

A small head trains in microseconds, and calling torch for it costs more than the arithmetic; here
one call serves all nodes. Nodes are in order of their number of steps, so that those which still
train are always the first ones. The same steps as `client/training/local_steps.py` takes, to about
1e-6: a batched product adds in another order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedgraft.client.node_task import Workplace
from fedgraft.client.round import Outcome, adjustment, generator_of, must_be_frozen
from fedgraft.client.training import local_steps as training
from fedgraft.client.training.optimizers import new_optimizer
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.plan import Plan

MOST_BYTES = 64 * 2**20  # of one group's inputs


def is_a_win(plan: Plan, model: GraftedModel) -> bool:
    """Whether nodes of this plan gain: all that trains is linear layers (a stacked convolution is a
    grouped one, which is slower), without privacy's own loop and without augmentation.
    """
    inside = {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.Linear)
        for p in module.parameters()
    }
    linear = all(id(p) in inside for p in model.trainable_parameters().values())
    return linear and plan.privacy.mode == "none" and plan.train.augment == "none"


def run_rounds(
    places: Sequence[Workplace], received: Mapping[str, Tensor], round_: int
) -> list[Outcome]:
    """What `fedgraft.client.round.run_round` does, for several nodes of one plan that share one
    model.

    Raises:
        Refused: as there; for all of them.
    """
    plan, model = places[0].plan, places[0].model
    started = time.perf_counter()

    # ── the model as received ─────────────────────────────────────────────────────────────────────
    must_be_frozen(places[0], read=False)
    model.load_adapter_state(received)
    measured = [None] * len(places)
    if (round_ - 1) % plan.evaluate.every == 0:
        measured = [
            training.evaluate(*place.for_tests(), len(plan.task.classes)) for place in places
        ]

    # ── local training ────────────────────────────────────────────────────────────────────────────
    states, losses, steps = [], [], []
    for group in _groups(places):
        for found, one in zip(
            (states, losses, steps), _train(group, received, round_), strict=True
        ):
            found += one

    # ── what goes back ────────────────────────────────────────────────────────────────────────────
    must_be_frozen(places[0], read=True)
    each = (time.perf_counter() - started) / len(places)
    return [
        Outcome(
            state=state,
            examples=len(place.train),
            steps=count,
            train_loss=loss,
            seconds=each,
            received=sums,
        )
        for place, state, count, loss, sums in zip(
            places, states, steps, losses, measured, strict=True
        )
    ]


def _groups(places: Sequence[Workplace]) -> list[list[Workplace]]:
    """Consecutive nodes whose inputs fit into MOST_BYTES together."""
    groups: list[list[Workplace]] = []
    held = 0
    for place in places:
        _, split = place.for_training()
        size = len(split) * split.inputs(torch.zeros(1, dtype=torch.int64)).nbytes
        if not groups or held + size > MOST_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(place)
        held += size
    return groups


def _train(
    places: Sequence[Workplace], received: Mapping[str, Tensor], round_: int
) -> tuple[list[dict[str, Tensor]], list[float], list[int]]:
    """Adapters, mean losses and numbers of steps of a group, in its order."""
    plan = places[0].plan
    size, epochs = plan.train.batch_size, plan.train.local_epochs
    by_steps = sorted(range(len(places)), key=lambda number: -len(places[number].train))
    ordered = [places[number] for number in by_steps]
    tail = ordered[0].for_training()[0]
    splits = [place.for_training()[1] for place in ordered]
    inputs = torch.cat([split.inputs(torch.arange(len(split))) for split in splits])
    labels = torch.cat([split.labels for split in splits])
    at, shares, counts = _batches(
        [len(split) for split in splits], size, epochs, plan, round_, ordered
    )

    values = {
        f"net.{name}": value.expand(len(places), *value.shape).clone()
        for name, value in received.items()
    }
    start = {name: value.clone() for name, value in values.items()} if plan.train.proximal else {}
    shifts = [shift for place in ordered if (shift := adjustment(place)) is not None]
    added = torch.stack(shifts)[:, None] if shifts else torch.zeros(len(places), 1, 1)
    rate = training.learning_rate(
        plan.train.optimizer.lr, plan.train.schedule, round_, plan.train.rounds
    )
    optimizer = new_optimizer(values.values(), plan.train.optimizer, rate)
    sums = torch.zeros(len(places))
    forward = vmap(lambda parameters, x: functional_call(tail, parameters, (x,)))
    for step in range(max(counts)):
        active = sum(count > step for count in counts)
        if active < len(optimizer.parameters[0]):
            optimizer = optimizer.first(active)
        leaves = {
            name: value.detach().requires_grad_()
            for name, value in zip(values, optimizer.parameters, strict=True)
        }
        positions, share = at[:active, step], shares[:active, step]
        logits = forward(leaves, inputs[positions]) + added[:active]
        entropies = F.cross_entropy(
            logits.flatten(0, 1), labels[positions].flatten(), reduction="none"
        )
        entropies = torch.where(
            share > 0, entropies.view(positions.shape), 0.0
        )  # an empty place may be at infinity
        loss = (entropies * share).sum(1)
        gradients = torch.autograd.grad(loss.sum(), list(leaves.values()))
        for name, parameter, gradient in zip(values, optimizer.parameters, gradients, strict=True):
            parameter.grad = gradient
            if start:
                gradient.add_(parameter - start[name][:active], alpha=plan.train.proximal)
        optimizer.step()
        sums[:active] += loss.detach() * (share > 0).sum(1)

    states: list[dict[str, Tensor]] = [{}] * len(places)
    losses, steps = [0.0] * len(places), [0] * len(places)
    for row, number in enumerate(by_steps):
        states[number] = {name: values[f"net.{name}"][row].clone() for name in received}
        losses[number] = float(sums[row]) / max(epochs * len(splits[row]), 1)
        steps[number] = counts[row]
    return states, losses, steps


def _batches(
    lengths: Sequence[int],
    size: int,
    epochs: int,
    plan: Plan,
    round_: int,
    places: Sequence[Workplace],
) -> tuple[Tensor, Tensor, list[int]]:
    """Positions and shares (nodes, steps, batch) of every step's examples in the joined inputs, and
    steps by node.

    A share is 1 / (examples of the batch), and 0 for the empty places of a smaller one.
    """
    counts = [epochs * -(-length // size) for length in lengths]
    at = torch.zeros((len(lengths), max(counts), size), dtype=torch.int64)
    shares = torch.zeros(at.shape)
    start = 0
    for row, (length, place) in enumerate(zip(lengths, places, strict=True)):
        generator, step = generator_of(plan.seed, round_, place.node), 0
        for _ in range(epochs):
            for positions in torch.split(torch.randperm(length, generator=generator), size):
                at[row, step, : len(positions)] = start + positions
                shares[row, step, : len(positions)] = 1 / len(positions)
                step += 1
        start += length
    return at, shares, counts
