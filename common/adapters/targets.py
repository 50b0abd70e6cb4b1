"""Which layers and which blocks of a backbone an adapter may serve, and which of them a plan
picks.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import nn

from fedgraft.common.adapters.method import Targets
from fedgraft.common.backbones import FAMILIES
from fedgraft.common.backbones.family import kind_of
from fedgraft.common.errors import UserError


def block_types() -> dict[str, bool]:
    """Return the residual blocks of all families, and whether their output has channels last."""
    types: dict[str, bool] = {}
    for family in FAMILIES.values():
        types |= family.block_types
    return types


def layers(net: nn.Module) -> dict[str, nn.Module]:
    """Linear, Conv2d and MultiheadAttention by name; the last stands for its projection to q, k and
    v.

    The layers of Swin v2 that make its table of positions are left out: they see no example.
    """
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention)
        and ".cpb_mlp." not in name
    }


def around(net: nn.Module, name: str) -> nn.Module:
    """The module that the named one is a child of."""
    return net.get_submodule(name.rpartition(".")[0])


def blocks(net: nn.Module) -> dict[str, nn.Module]:
    """Residual blocks by name, in order."""
    types = block_types()
    return {name: module for name, module in net.named_modules() if kind_of(module) in types}


def channels_last(block: nn.Module) -> bool:
    """Whether a block's output is (n, …, channels) rather than (n, channels, H, W)."""
    return block_types()[kind_of(block)]


def block_channels(block: nn.Module) -> int:
    """Channels of a block's output."""
    last = [module for module in block.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    return last.out_features if isinstance(last, nn.Linear) else last.out_channels


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each channel is convolved by itself."""
    return isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.groups == layer.in_channels


def select(
    candidates: Mapping[str, nn.Module], targets: Targets, net: nn.Module
) -> dict[str, nn.Module]:
    """The candidates that `targets` pick: all for "auto", those in the last residual block for
    "last-block", else those whose own name, or the name of a module around them, matches one of the
    patterns (`fnmatch`).

    Raises:
        UserError: nothing is picked, or "last-block" for a network without residual blocks.
    """
    if targets == "auto":
        return dict(candidates)
    if targets == "last-block":
        known = blocks(net)
        if not known:
            raise UserError(
                "no residual blocks are known in this backbone, so there is no last one",
                where="adapter.targets",
                remedy=f"write auto, or name patterns; its layers are {_some(candidates)}",
            )
        patterns: tuple[str, ...] = (list(known)[-1],)
    else:
        patterns = (targets,) if isinstance(targets, str) else tuple(targets)
    picked = {
        name: module
        for name, module in candidates.items()
        if any(fnmatchcase(part, pattern) for part in _and_around(name) for pattern in patterns)
    }
    if not picked:
        raise UserError(
            f"{', '.join(map(repr, patterns))} match nothing that this method can serve",
            where="adapter.targets",
            remedy=f"there are {_some(candidates)}",
        )
    return picked


def _and_around(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _some(candidates: Mapping[str, nn.Module]) -> str:
    names = list(candidates)
    shown = names if len(names) <= 5 else [*names[:3], "…", *names[-2:]]
    return ", ".join(shown) or "none"
