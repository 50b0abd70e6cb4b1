"""Adapters: small trainable modules beside frozen layers; one method a file, one closed registry.

A method is a function `(net, options) → None` that places its modules on a copy of the backbone.
The copy shares every frozen tensor, and the modules it has keep their names; an adapter is the
child `adapter` of the layer or block that it serves, called by a forward hook. So a frozen tensor
is called the same with and without adapters.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fedgraft.common.adapters.bias import place_bias
from fedgraft.common.adapters.bottleneck import place_bottleneck
from fedgraft.common.adapters.ends import place_full, place_head
from fedgraft.common.adapters.lora import place_lora
from fedgraft.common.adapters.options import Options
from fedgraft.common.adapters.scale_shift import place_scale_shift

METHODS: dict[str, Callable[[nn.Module, Options], None]] = {
    "head": place_head,
    "lora": place_lora,
    "bottleneck": place_bottleneck,
    "scale-shift": place_scale_shift,
    "bias": place_bias,
    "full": place_full,
}

__all__ = ["METHODS", "Options"]
