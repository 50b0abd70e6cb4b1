"""Adapters: small trainable modules beside frozen layers; one method a file, one closed registry.

A method attaches its modules to a copy of the backbone. The copy shares every frozen tensor, and
the modules it has keep their names; an adapter is the child `adapter` of the layer or block that it
serves, called by a forward hook. So a frozen tensor is called the same with and without adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgraft.common.registry import Line, Registry

if TYPE_CHECKING:
    from fedgraft.common.adapters.method import Method


@dataclass(frozen=True)
class MethodLine(Line):
    """A method, and what a plan must know of it without importing it.

    Attributes:
        has_factors: whether its updates are products of two factors, which may be combined as such.
    """

    has_factors: bool = False


_LINES = {
    "head": MethodLine("fedgraft.common.adapters.ends:HEAD"),
    "lora": MethodLine("fedgraft.common.adapters.lora:LORA", has_factors=True),
    "bottleneck": MethodLine("fedgraft.common.adapters.bottleneck:BOTTLENECK"),
    "scale-shift": MethodLine("fedgraft.common.adapters.scale_shift:SCALE_SHIFT"),
    "bias": MethodLine("fedgraft.common.adapters.bias:BIAS"),
    "full": MethodLine("fedgraft.common.adapters.ends:FULL"),
}
METHODS: Registry[Method] = Registry("adapter.method", "adapter method", _LINES)


def method_line(name: str) -> MethodLine:
    """Return the line of a method. Raise `UserError` for a name that is none."""
    if name not in METHODS:
        raise METHODS.unknown(name)
    return METHODS.lines[name]
