"""The two ends of the scale: train nothing but the head (feature extraction), or everything (the
baseline).
"""

from __future__ import annotations

from torch import nn

from fedgraft.common.adapters.options import Options
from fedgraft.common.errors import UserError


def place_head(net: nn.Module, options: Options) -> None:
    """Nothing beside the head, which every method has."""
    _refuse_targets("head", options)


def place_full(net: nn.Module, options: Options) -> None:
    """Replace every frozen parameter by a trainable copy. Buffers (BatchNorm's statistics) stay
    frozen.
    """
    _refuse_targets("full", options)
    copies: dict[int, nn.Parameter] = {}
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                copy = copies.setdefault(id(parameter), nn.Parameter(parameter.detach().clone()))
                module._parameters[name] = copy


def _refuse_targets(method: str, options: Options) -> None:
    if options.targets != "auto":
        raise UserError(
            f"{method} takes no targets, and the plan names {options.targets!r}",
            where="adapter.targets",
            remedy="leave targets out",
        )
