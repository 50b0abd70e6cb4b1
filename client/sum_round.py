"""A round of sums at one node, as one script: the head is solved from them at the server.

    the model as received → features of every record → integers → sums → what goes back

Features are computed in blocks of one size on one thread, and rounded before they are multiplied:
the sums of all nodes are those of their pooled records to the bit, however the records are dealt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.examples import Examples
from fedgraft.client.node_task import NodeTask
from fedgraft.client.round import check_frozen, require_budget
from fedgraft.client.store.activations import BLOCK
from fedgraft.common.errors import Code, Refused
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.model.pixel_head import pick_answers
from fedgraft.common.model.solve_head import (
    closed_form_of,
    noisy_form_of,
    releases_products,
    rounding_of,
    sums_products,
)
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.privacy.discrete_noise import draw_discrete_gaussian
from fedgraft.common.statistics.gram_sums import GramSums, sum_records, zero_sums
from fedgraft.common.statistics.noisy_places import Places, sum_places
from fedgraft.common.statistics.noisy_sums import (
    MOST_NUMBERS,
    NoisySums,
    count_products,
    sigma_of,
    sum_units,
    zero_noisy,
)

# records whose features are multiplied at once; their products are exact for fewer than 2^13
AT_ONCE = 2048


@dataclass(frozen=True)
class SumOutcome:
    """Sums over a node's training records, and the seconds that they took.

    Attributes:
        sums: with noise under differential privacy.
        spent: of the privacy budget.
    """

    sums: GramSums | NoisySums
    seconds: float
    spent: Spent | None = None


def run_sum_round(task: NodeTask, received: Mapping[str, Tensor], round_: int) -> SumOutcome:
    """Return the sums over this node's training records; with noise, and counted, where the plan is
    under differential privacy.

    Args:
        received: the shared adapter, tensors by name.
        round_: number of the round, from 1.

    Raises:
        Refused: the backbone is not the one agreed on, or moved; a record's features are not
            finite; or there are more records than sums of 64 bits hold.
    """
    started = time.perf_counter()
    # last bits of a network's outputs depend on how many threads share a product
    torch.set_num_threads(1)
    check_frozen(task, read=False)
    task.model.load_adapter_state(received)
    spent: Spent | None = None
    sums: GramSums | NoisySums
    if task.plan.privacy.at_node:
        sums = release_sums(task, round_)
        spent = require_budget(task).spent(task.plan)
    else:
        sums = sum_split(task)
    check_frozen(task, read=True)
    return SumOutcome(sums, time.perf_counter() - started, spent)


def sum_split(task: NodeTask) -> GramSums:
    """Return the sums over the training split under the task's plan. Raise as `run_sum_round`."""
    plan = task.plan
    closed = closed_form_of(plan)
    rounding = rounding_of(plan)
    stride = plan.task.stride
    if len(task.train) * task.model.count_places(stride) > rounding.most_records:
        what = f"more than {rounding.most_records:,} records or places, with {rounding.bits} bits"
        raise Refused(Code.MODEL, f"train.closed_form.bits: {what}")
    model, examples = task.for_training()
    labels = task.train.labels
    products = sums_products(plan)
    total = zero_sums(model.count_features(), closed.columns(plan.task), products=products)
    for start, features in list_features(model, examples):
        for places, answers in list_places(model, features, labels[start:], stride):
            integers = rounding.to_integers(places)
            targets = closed.targets(answers, plan.task)
            total = total + sum_records(integers, targets, rounding.bits, products=products)
    return total


def list_places(
    model: GraftedModel, features: np.ndarray, labels: Tensor, stride: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield the rows that sums are taken over, `(m, d)`, and their answers: the records, their
    tokens, or the places of one record after another.

    Args:
        features: what the head reads of some records, `(n, …)`.
        labels: their targets come first.
        stride: every so many-th place each way is read.
    """
    own = labels[: len(features)]
    if model.count_places(stride) == 1:
        yield features, own
        return
    if model.tokens is not None:
        there = own >= 0
        yield features[there.numpy()], own[there]
        return
    yield from list_records(model, features, own, stride)


def list_records(
    model: GraftedModel, features: np.ndarray, labels: Tensor, stride: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield the places of one record after another, `(m, d)`, and their answers `(m,)`, below 0
    where a place is none of its record's.

    Args:
        features: what the head reads of the records, `(n, …)`.
        labels: their targets, `(n, …)`.
        stride: as of `list_places`.
    """
    for record, answers in zip(features, labels, strict=True):
        if model.tokens is not None:
            yield record, answers
            continue
        places = model.read_places(torch.from_numpy(record[None]), stride)
        yield places.numpy(), pick_answers(answers, stride)


def release_sums(task: NodeTask, round_: int) -> NoisySums:
    """Return the sums with discrete Gaussian noise: reserve, sum, add noise, settle.

    Raises:
        Refused: policy or ledger refuse; nothing was spent.
    """
    plan = task.plan
    budget = require_budget(task)
    codes, counts = noisy_form_of(plan).shape(plan.task, plan.train.closed_form.shares)
    features = task.model.count_features()
    count = features * codes + counts
    if releases_products(plan):
        count += count_products(features)
    if count > MOST_NUMBERS:
        what = f"train.closed_form: {count:,} noisy numbers at once"
        raise Refused(Code.MODEL, f"{what}; at most {MOST_NUMBERS:,} are proved to be private")
    with budget.spending(plan, round_) as mechanism:
        sums = sum_privately(task, budget.patients)
        sigma = sigma_of(mechanism.noise_multiplier, products=releases_products(plan))
        randomness = budget.randomness(plan, round_)
        draw = partial(draw_discrete_gaussian, randomness=randomness)
        return sums.with_noise(sigma, draw)


def sum_privately(task: NodeTask, patients: Sequence[np.ndarray] | None) -> NoisySums:
    """Return the sums that noise is added to, each unit's share of them bounded."""
    plan = task.plan
    form = noisy_form_of(plan)
    model, examples = task.for_training()
    labels = task.train.labels
    in_unit = share_in_unit(len(labels), patients)
    width = model.count_features()
    products = count_products(width) if releases_products(plan) else 0
    codes, counts = form.shape(plan.task, plan.train.closed_form.shares)
    total = zero_noisy(width, codes, counts, products)
    for start, features in list_features(model, examples, silent=True):
        rows = slice(start, start + len(features))
        if form.parts is None:
            total = total + sum_rows(features, labels[rows], in_unit[rows], plan)
            continue
        records = list_records(model, features, labels[rows], plan.task.stride)
        for (places, answers), share in zip(records, in_unit[rows].tolist(), strict=True):
            total = total + sum_record(places, answers, share, plan)
    return total


def sum_rows(
    features: np.ndarray, labels: Tensor, shares: np.ndarray, plan: Agreement
) -> NoisySums:
    """Return the sums over records of which each is one row.

    Args:
        features: `(n, d)`.
        labels: their targets, `(n, …)`.
        shares: of each record in its unit, `(n,)`.
    """
    form = noisy_form_of(plan)
    kind = plan.train.closed_form.shares
    return sum_units(
        features,
        form.codes(labels, plan.task, kind),
        form.counted(labels, plan.task, kind),
        shares,
        products=releases_products(plan),
    )


def sum_record(places: np.ndarray, answers: Tensor, share: float, plan: Agreement) -> NoisySums:
    """Return the sums over the places of one record.

    A place that is none of its record's stays, with no weight: how long sums take does not tell how
    long a text is.

    Args:
        places: `(m, d)`.
        answers: of each, below 0 where it is none of the record's, `(m,)`.
        share: of the record in its unit.
    """
    form = noisy_form_of(plan)
    if form.parts is None:
        raise ValueError(f"a record of {plan.task.question} has no places")
    kind = plan.train.closed_form.shares
    known = answers.clamp(min=0)
    each = Places(
        places,
        form.codes(known, plan.task, kind),
        form.counted(known, plan.task, kind),
        form.parts(answers[None])[0],
    )
    return sum_places(each, share, products=releases_products(plan))


def share_in_unit(records: int, patients: Sequence[np.ndarray] | None) -> np.ndarray:
    """Return one over the records of each record's patient, or 1 for each where the unit is the
    example: `(records,)`.
    """
    shares = np.ones(records)
    for positions in patients or ():
        shares[positions] = 1 / len(positions)
    return shares


def list_features(
    model: GraftedModel, examples: Examples, *, silent: bool = False
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield features float32 `(m, d)` of the examples in their order, and where they begin.

    Args:
        silent: features that are not finite are no error: under differential privacy a refusal
            would tell of a record.
    """
    # maps of a record are megabytes
    at_once = AT_ONCE if model.count_places(stride=1) == 1 else BLOCK
    for start in range(0, len(examples), at_once):
        end = min(start + at_once, len(examples))
        blocks = []
        for first in range(start, end, BLOCK):
            positions = torch.arange(first, min(first + BLOCK, end))
            blocks.append(compute_features(model, examples.inputs(positions)))
        features = torch.cat(blocks)
        if not silent and not bool(torch.isfinite(features).all()):
            raise Refused(Code.OUTPUT, "a record's features are not finite; no sums are sent")
        yield start, features.numpy()


def compute_features(model: GraftedModel, inputs: Batch) -> Tensor:
    """Return the features of at most BLOCK inputs, as if they filled a block: `(n, d)`."""
    block = inputs.empty_like(BLOCK).map(torch.zero_)
    block.write(slice(0, len(inputs)), inputs)
    return model.features(block)[: len(inputs)]
