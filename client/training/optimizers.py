"""The plan's optimizers without torch's optimizer classes: the same arithmetic, bit for bit, a
second sooner.

The first `torch.optim.Optimizer` that a process makes imports `torch._dynamo`: about a second, in
every process, and a deployment starts one for each message. The functions that do the arithmetic
need none of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from fedgraft.common.plan.train_section import OptimizerSection


class Steps(Protocol):
    """What training asks of an optimizer."""

    def zero_grad(self, set_to_none: bool = True) -> None: ...  # noqa: D102

    def step(self) -> None: ...  # noqa: D102


class _Steps:
    """Parameters that take steps; those without a gradient stay."""

    def __init__(self, parameters: Iterable[Tensor], section: OptimizerSection, lr: float) -> None:
        self.parameters = list(parameters)
        self.lr = lr
        self.section = section

    def first(self, count: int) -> Self:
        """The same optimizer for the first `count` of stacked parameters `(n, …)`; memory and state
        are shared.
        """
        narrowed = copy.copy(self)
        narrowed.parameters = [p[:count] for p in self.parameters]
        return narrowed

    def _moving(self) -> list[int]:
        """Return the numbers of the parameters that have a gradient."""
        moving: list[int] = []
        for number, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                moving.append(number)
        return moving

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None


class Adam(_Steps):
    """Adam (Kingma and Ba 2015) with β = 0.9, 0.999 and ε = 1e-8; AdamW (Loshchilov and Hutter
    2019) by name.
    """

    def __init__(self, parameters: Iterable[Tensor], section: OptimizerSection, lr: float) -> None:
        super().__init__(parameters, section, lr)
        self._first = [torch.zeros_like(p) for p in self.parameters]
        self._second = [torch.zeros_like(p) for p in self.parameters]
        self._counts = [torch.tensor(0.0) for _ in self.parameters]

    def first(self, count: int) -> Self:
        """Narrowed, with the moments."""
        narrowed = super().first(count)
        narrowed._first, narrowed._second = (
            [m[:count] for m in each] for each in (self._first, self._second)
        )
        return narrowed

    @torch.no_grad()
    def step(self) -> None:
        """One step of every parameter that has a gradient."""
        at = self._moving()
        gradients: list[Any] = [self.parameters[number].grad for number in at]
        adam(
            [self.parameters[number] for number in at],
            gradients,
            [self._first[number] for number in at],
            [self._second[number] for number in at],
            [],
            [self._counts[number] for number in at],
            foreach=False,
            decoupled_weight_decay=self.section.name == "adamw",
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.lr,
            weight_decay=self.section.weight_decay,
            eps=1e-8,
            maximize=False,
        )


class Sgd(_Steps):
    """Stochastic gradient descent with momentum."""

    def __init__(self, parameters: Iterable[Tensor], section: OptimizerSection, lr: float) -> None:
        super().__init__(parameters, section, lr)
        self._momentum: list[Tensor | None] = [None] * len(self.parameters)

    def first(self, count: int) -> Self:
        """Narrowed, with the momentum."""
        narrowed = super().first(count)
        narrowed._momentum = [
            None if buffer is None else buffer[:count] for buffer in self._momentum
        ]
        return narrowed

    @torch.no_grad()
    def step(self) -> None:
        """One step of every parameter that has a gradient."""
        at = self._moving()
        gradients: list[Any] = [self.parameters[number].grad for number in at]
        buffers = [self._momentum[number] for number in at]
        sgd(
            [self.parameters[number] for number in at],
            gradients,
            buffers,
            foreach=False,
            weight_decay=self.section.weight_decay,
            momentum=self.section.momentum,
            lr=self.lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for number, buffer in zip(at, buffers, strict=True):
            self._momentum[number] = buffer


def new_optimizer(parameters: Iterable[Tensor], section: OptimizerSection, lr: float) -> Adam | Sgd:
    """Return the plan's optimizer over these parameters, at this round's learning rate."""
    if section.name == "sgd":
        return Sgd(parameters, section, lr)
    return Adam(parameters, section, lr)
