"""A grafted model in two parts: what is frozen up to the first trainable layer, and the rest.

What enters the first trainable layer does not change while adapters train, so it can be computed
once. The known networks call their children in a fixed order, written down here; their Sequentials
are entered, and a residual block that is trained by nothing but an adapter behind it is on the
frozen side. The stages in that order are the network, operation for operation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.adapters.convolutions import CONVOLUTIONS
from fedgraft.common.adapters.host import call_adapter
from fedgraft.common.backbones import FAMILIES
from fedgraft.common.backbones.family import Family, kind_of
from fedgraft.common.model.grafted_model import GraftedModel

# of the layers: a shorter prefix saves less than reading its wide activations costs
LEAST_SHARE = 0.1
LAYERS = (nn.Linear, *CONVOLUTIONS, nn.MultiheadAttention)


@dataclass(frozen=True)
class Stage:
    """One step of a network.

    Attributes:
        name: of the module, or of the step between modules.
        run: what it does.
        trains: whether something in it is trained.
        layers: how many frozen layers with weights it has.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    trains: bool = False
    layers: int = 0


@dataclass(frozen=True, eq=False)
class FrozenPrefix:
    """The frozen part in front of the first trainable layer.

        prefix = frozen_prefix(model)
        activations = prefix(x)
        prefix.tail(activations)  # as model(x)

    Attributes:
        name: of the stage behind it, the first that trains: `layer3.2`, or `layer3.2.adapter`
            behind that block.
        stages: what it does, in order.
        tail: the rest, as a model that shares every module of the whole: activations → outputs.
        front: the stages in another precision than float32; None: as they are.
    """

    name: str
    stages: tuple[Stage, ...]
    tail: GraftedModel
    front: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Prepared inputs (n, …), wherever they lie → what enters the first trainable layer (n, …),
        on the model's device.
        """
        x = x.to(self.tail.device)
        if self.front is not None:
            return self.front(x)
        for stage in self.stages:
            x = stage.run(x)
        return x


def frozen_prefix(model: GraftedModel) -> FrozenPrefix | None:
    """Return the longest frozen prefix; None where the network's order is not known, or next to
    nothing is frozen there.
    """
    stages = tuple(list_stages_of(model))
    first = _find_first_trained(stages)
    if first == 0:
        return None
    front = stages[:first]
    frozen = sum(stage.layers for stage in front)
    if frozen < LEAST_SHARE * sum(stage.layers for stage in stages):
        return None
    tail = copy.copy(model)
    tail.front = None
    tail.steps = tuple(stage.run for stage in stages[first:])
    return FrozenPrefix(stages[first].name, front, tail, model.front)


def _find_first_trained(stages: tuple[Stage, ...]) -> int:
    """Return the position of the first stage that trains; 0 where there is none."""
    for position, stage in enumerate(stages):
        if stage.trains:
            return position
    return 0


# ── a network as stages ───────────────────────────────────────────────────────────────────────────
def list_stages_of(model: GraftedModel) -> Iterator[Stage]:
    """Yield what a model does, in its order; nothing where that is not known."""
    if model.depths is None and model.slices is not None:
        # what would be kept between stages is no longer a row a record
        return
    if model.depths is None:
        yield from _list_stages(model.net)
        return
    # features of all depths come out of one pass through the whole network
    head = model.net.get_submodule(model.head_name)
    network = [child for child in model.net.children() if child is not head]
    yield Stage(
        name="depths-" + "-".join((*model.depths.stages, model.depths.pool)),
        run=model.depths,
        trains=any(map(_trains, network)),
        layers=sum(map(_count_layers, network)),
    )
    yield _stage_of(model.head_name, head, head)


def _list_stages(net: nn.Module) -> Iterator[Stage]:
    """Yield what a network does, in its order; nothing where that is not known."""
    for family in FAMILIES.values():
        if kind_of(net) in family.order:
            yield from _stages_of(net, family)


def _stages_of(net: nn.Module, family: Family) -> Iterator[Stage]:
    for number, step in enumerate(family.order[kind_of(net)]):
        if isinstance(step, str):
            yield from _enter(step, net.get_submodule(step), _Caller(net, family))
            continue
        names = family.used_by_steps.get(step, ())
        used = [module for name, module in net.named_modules() if name in names]
        yield Stage(
            f"step-{number}",
            partial(step, net),
            trains=any(map(_trains, used)),
            layers=sum(map(_count_layers, used)),
        )


@dataclass(frozen=True, eq=False)
class _Caller:
    """How blocks of a network are called that take more than one tensor."""

    net: nn.Module
    family: Family

    def find(self, module: nn.Module) -> Callable[[Callable[..., Any], Tensor], Tensor] | None:
        """Return how a module is called; None: with what passes between stages alone."""
        call = self.family.calls.get(kind_of(module))
        return None if call is None else partial(call, self.net)


def _enter(name: str, module: nn.Module, caller: _Caller) -> Iterator[Stage]:
    """Yield a module as stages: the children of a Sequential, the layers of a dense block, a block
    and its adapter.
    """
    hooks = _list_hooks(module)
    call = caller.find(module) or _call_alone
    if not hooks and _is_sequence(module):
        for child, inner in module.named_children():
            yield from _enter(f"{name}.{child}", inner, caller)
    elif not hooks and type(module).__qualname__ == "_DenseBlock":
        for child, inner in module.named_children():
            yield _stage_of(f"{name}.{child}", inner, partial(_grow, inner))
    elif hooks == [call_adapter] and _trains_behind_alone(module):
        yield Stage(name, partial(call, module.forward), layers=_count_layers(module))
        adapter = partial(_adapt, module.get_submodule("adapter"))
        yield Stage(f"{name}.adapter", partial(call, adapter), trains=True)
    elif call is _call_alone:
        yield _stage_of(name, module, module)
    else:
        yield _stage_of(name, module, partial(call, module))


def _call_alone(run: Callable[..., Any], x: Tensor) -> Tensor:
    """Run a module on what passes between stages."""
    return run(x)


def _adapt(adapter: nn.Module, y: Tensor, *beside: Any, **more: Any) -> Tensor:
    """Return a block's output adapted, whatever else the block itself was called with."""
    return adapter(y)


def _stage_of(name: str, module: nn.Module, run: Callable[[Tensor], Tensor]) -> Stage:
    return Stage(name, run, _trains(module), _count_layers(module))


def _list_hooks(module: nn.Module) -> list[Any]:
    """Return what a module does beside its class's forward pass."""
    hooks: list[Any] = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    if "forward" in module.__dict__:
        hooks.append(module.__dict__["forward"])
    return hooks


def _is_sequence(module: nn.Module) -> bool:
    """Whether a module does nothing but call its children one after the other."""
    return type(module).forward is nn.Sequential.forward or isinstance(module, nn.ModuleList)


def _grow(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a dense block's layer behind all that came before it."""
    return torch.cat([x, layer(x)], 1)


# ── what trains ───────────────────────────────────────────────────────────────────────────────────
def _trains_behind_alone(module: nn.Module) -> bool:
    """Whether nothing of a block is trained but an adapter that maps its output."""
    adapter = module._modules.get("adapter")
    if adapter is None or adapter.parallel:
        return False
    behind = set(map(id, adapter.parameters()))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return behind.issuperset(map(id, trained))


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _count_layers(module: nn.Module) -> int:
    """Return how many frozen layers with weights are in a module."""
    count = 0
    for layer in module.modules():
        trains_itself = any(p.requires_grad for p in layer.parameters(recurse=False))
        if isinstance(layer, LAYERS) and not trains_itself:
            count += 1
    return count
