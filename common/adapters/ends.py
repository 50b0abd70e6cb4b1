"""The two ends of the scale: train nothing but the head (feature extraction), or everything (the
baseline).
"""

from __future__ import annotations

from torch import nn

from fedgraft.common.adapters.method import Attachment, Method, Targets
from fedgraft.common.errors import UserError


def attach_head(net: nn.Module, attachment: Attachment) -> None:
    """Attach nothing beside the head, which every method has."""
    refuse_targets("head", attachment.targets)


def attach_full(net: nn.Module, attachment: Attachment) -> None:
    """Replace every frozen parameter by a trainable copy. Buffers (BatchNorm's statistics) stay
    frozen.
    """
    refuse_targets("full", attachment.targets)
    # by the frozen one: two layers that share a parameter share its copy
    copies: dict[int, nn.Parameter] = {}
    for parameter in net.parameters():
        copies[id(parameter)] = nn.Parameter(parameter.detach().clone())
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = copies[id(parameter)]


def refuse_targets(method: str, targets: Targets) -> None:
    """Raise `UserError` where a plan names targets for a method that has none."""
    if targets != "auto":
        what = f"{method} takes no targets, and the plan names {targets!r}"
        raise UserError(what, where="adapter.targets", remedy="leave targets out")


HEAD = Method("head", attach_head, describe=lambda options: "new classifier only")
FULL = Method(
    "full",
    attach_full,
    describe=lambda options: "whole network: all of it is trained and travels",
    trains_all=True,
)
