"""A grafted model in two parts: what is frozen up to the first trainable layer, and the rest.

What enters the first trainable layer does not change while adapters train, so it can be computed
once. The known networks call their children in a fixed order, written down here; their Sequentials
are entered, and a residual block that is trained by nothing but an adapter behind it is on the
frozen side. The stages in that order are the network, operation for operation.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.adapters.host import call
from fedgraft.common.backbones import FAMILIES
from fedgraft.common.backbones.family import kind_of
from fedgraft.common.model.grafted_model import GraftedModel

LEAST_SHARE = (
    0.1  # of the layers: a shorter prefix saves less than reading its wide activations costs
)
Step = (
    str | Callable[[Any, Tensor], Tensor]
)  # a child's dotted name, or a function of the network and its input


@dataclass(frozen=True)
class Stage:
    """One step of a network: its name, what it does, whether it trains, and how many frozen layers
    it has.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    trains: bool = False
    layers: int = 0


@dataclass(frozen=True, eq=False)
class FrozenPrefix:
    """The frozen part in front of the first trainable layer.

    Attributes:
        name: of the stage behind it, the first that trains: `layer3.2`, or `layer3.2.adapter`
            behind that block.
        stages: what it does, in order.
        tail: the rest, as a model that shares every module of the whole: activations → logits.
    """

    name: str
    stages: tuple[Stage, ...]
    tail: GraftedModel

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Prepared inputs (n, …) → what enters the first trainable layer (n, …)."""
        for stage in self.stages:
            x = stage.run(x)
        return x


def frozen_prefix(model: GraftedModel) -> FrozenPrefix | None:
    """The longest frozen prefix; None where the network's order is not known, or next to nothing is
    frozen there.
    """
    stages = tuple(_stages(model.net))
    first = next((number for number, stage in enumerate(stages) if stage.trains), 0)
    if (
        sum(stage.layers for stage in stages[:first])
        < LEAST_SHARE * sum(stage.layers for stage in stages)
        or not first
    ):
        return None
    tail = copy.copy(model)
    tail.steps = tuple(stage.run for stage in stages[first:])
    return FrozenPrefix(stages[first].name, stages[:first], tail)


def _stages(net: nn.Module) -> Iterator[Stage]:
    """Yield what a network does, in its order; nothing where that is not known."""
    kind = kind_of(net)
    for family in FAMILIES.values():
        for number, step in enumerate(family.order.get(kind, ())):
            if isinstance(step, str):
                yield from _inside(step, net.get_submodule(step))
                continue
            used = [net.get_submodule(name) for name in family.used_by_steps.get(step, ())]
            trains = any(map(_trains, used))
            layers = sum(map(_layers, used))
            yield Stage(f"step-{number}", functools.partial(step, net), trains, layers)


def _inside(name: str, module: nn.Module) -> Iterator[Stage]:
    """A module as stages: the children of a Sequential, the layers of a dense block, a block and
    its adapter.
    """
    hooks = [
        *module._forward_pre_hooks.values(),
        *module._forward_hooks.values(),
        *_replaced(module),
    ]
    adapter = module._modules.get("adapter")
    if not hooks and (
        type(module).forward is nn.Sequential.forward or isinstance(module, nn.ModuleList)
    ):
        for child, inner in module.named_children():
            yield from _inside(f"{name}.{child}", inner)
    elif not hooks and type(module).__qualname__ == "_DenseBlock":
        for child, inner in module.named_children():
            yield Stage(
                f"{name}.{child}", functools.partial(_grown, inner), _trains(inner), _layers(inner)
            )
    elif (
        adapter is not None
        and hooks == [call]
        and not adapter.parallel
        and not _trains(module, but=adapter)
    ):
        yield Stage(name, module.forward, False, _layers(module))
        yield Stage(f"{name}.adapter", adapter, True)
    else:
        yield Stage(name, module, _trains(module), _layers(module))


def _replaced(module: nn.Module) -> list[Any]:
    return [module.__dict__["forward"]] if "forward" in module.__dict__ else []


def _trains(module: nn.Module, but: nn.Module | None = None) -> bool:
    spared = {id(p) for p in but.parameters()} if but is not None else set()
    return any(p.requires_grad and id(p) not in spared for p in module.parameters())


def _layers(module: nn.Module) -> int:
    """Frozen layers with weights in a module."""
    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    return sum(isinstance(each, kinds) and not _trains_itself(each) for each in module.modules())


def _trains_itself(module: nn.Module) -> bool:
    return any(p is not None and p.requires_grad for p in module._parameters.values())


def _grown(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer of a dense block: its output behind all that came before it."""
    return torch.cat([x, layer(x)], 1)
