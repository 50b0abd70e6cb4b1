"""A plan's head out of sums over records: what the server does with them, and a baseline alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.backbones import family_of
from fedgraft.common.backbones.family import NetworkShape
from fedgraft.common.model.depth_features import LAST
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.plan.phases import has_hinges
from fedgraft.common.statistics.gram_sums import GramSums, Rounding
from fedgraft.common.statistics.noisy_sums import NoisySums
from fedgraft.common.statistics.ridge import RidgeSolution, solve_ridge, standardise
from fedgraft.common.statistics.two_priors import solve_two_groups
from fedgraft.common.tasks import TASKS
from fedgraft.common.tasks.closed_form import ClosedForm, Head, NoisyForm


@dataclass(frozen=True)
class SolvedHead:
    """A head, and the ridge solution that it is of; None: it is of class means.

    Attributes:
        tensors: `NAME.weight` `(outputs, d)` and `NAME.bias` `(outputs,)`, float32.
    """

    tensors: dict[str, Tensor]
    solution: RidgeSolution | None


def solve_head(sums: GramSums, plan: Agreement, head_name: str) -> SolvedHead:
    """Return the head that the sums of all nodes give under a plan: the same bits for the same
    sums.

    Raises:
        ValueError: sums of no records.
    """
    section = plan.train.closed_form
    if section.head == "class-means":
        head = means_of(plan)(sums, rounding_of(plan).unit, section.prior)
        return SolvedHead(name_head(head, head_name), None)
    standard = standardise(sums, rounding_of(plan).unit)
    joined = count_joined(plan)
    if joined:
        solution = solve_two_groups(standard, joined)
    else:
        solution = solve_ridge(standard)
    head = closed_form_of(plan).head(solution, plan.task, section.prior)
    return SolvedHead(name_head(head, head_name), solution)


def name_head(head: Head, name: str) -> dict[str, Tensor]:
    """Return a head's tensors, float32, by name."""
    weights, bias = head
    return {f"{name}.weight": _tensor(weights), f"{name}.bias": _tensor(bias)}


def means_of(plan: Agreement) -> Callable[[GramSums, float, str], Head]:
    """Return how class means are solved for. Raise `ValueError` where a question has none."""
    means = closed_form_of(plan).means
    if means is None:
        raise ValueError(f"{plan.task.question} has no class means")
    return means


def sums_products(plan: Agreement) -> bool:
    """Whether products of features with one another are in a plan's exact sums."""
    return plan.train.closed_form.head != "class-means"


def count_joined(plan: Agreement) -> int:
    """Return how many of a plan's features are a table's beside an image's: the last ones."""
    joined = family_of(plan.backbone.name).joined
    selected = plan.train.closed_form.features
    if joined is None or (selected not in ("all", "last") and LAST not in selected):
        return 0
    hinges = has_hinges(plan.train, plan.privacy)
    return joined(NetworkShape(category_sizes=plan.task.category_sizes, hinges=hinges))


def solve_noisy_head(noisy: NoisySums, plan: Agreement, head_name: str) -> dict[str, Tensor]:
    """Return the head's tensors that noisy sums give under a plan."""
    section = plan.train.closed_form
    head = noisy_form_of(plan).head(noisy, plan.task, section.shares, section.prior)
    return name_head(head, head_name)


def noisy_form_of(plan: Agreement) -> NoisyForm:
    """Return what a plan's question sums under differential privacy. Raise `ValueError` where it
    has nothing.
    """
    noisy = closed_form_of(plan).noisy
    if noisy is None:
        raise ValueError(f"{plan.task.question} has no closed form under differential privacy")
    return noisy


def releases_products(plan: Agreement) -> bool:
    """Whether products of features leave a node beside their sums, under noise."""
    return plan.train.closed_form.release == "products"


def rounding_of(plan: Agreement) -> Rounding:
    """Return how a plan's features become integers."""
    section = plan.train.closed_form
    return Rounding(section.bound, section.bits)


def closed_form_of(plan: Agreement) -> ClosedForm:
    """Return the closed form of a plan's question. Raise `ValueError` where it has none."""
    question = plan.task.question
    closed = TASKS[question].closed_form
    if closed is None:
        raise ValueError(f"{question} has no closed form")
    return closed


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
