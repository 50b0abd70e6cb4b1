"""The frozen part of a model in bfloat16: products of numbers with 8 significant bits, added up in
float32.

What torch's autocast computes, bit for bit but for the layout of images: it rounds weights at each
call, and here they are rounded once. Torch's own attention is opened first: under autocast it makes
a copy of its weight for every place, two thirds of a ViT-B/16's time. Norms and sums beside the
products keep their inputs' precision. What is trained, and what privacy bounds, is float32 as ever.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.adapters.attention import open_plain_attention
from fedgraft.common.adapters.convolutions import CONVOLUTIONS
from fedgraft.common.errors import UserError
from fedgraft.common.model.depth_features import widen
from fedgraft.common.model.frozen_prefix import Stage, frozen_prefix, list_stages_of
from fedgraft.common.model.grafted_model import GraftedModel

# whose weights autocast rounds
ROUNDED = (nn.Linear, nn.MultiheadAttention, *CONVOLUTIONS)
ROUNDED_TO = torch.bfloat16
# convolutions are faster where the channels of a place lie together, by the axes of a batch
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


class Bfloat16Front:
    """What is in front of the first trained layer, in bfloat16.

        front = Bfloat16Front(model, stages=12)
        front(x)  # float32, what enters the first trained layer

    Args:
        model: the whole.
        stages: how many of its stages are in front.
    """

    def __init__(self, model: GraftedModel, stages: int) -> None:
        self._model = model
        self._stages = stages
        # of a copy with rounded weights
        self._rounded: tuple[Stage, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Prepared inputs (n, …) → what enters the first trained layer (n, …), float32."""
        if not self._rounded:
            # when it is first asked for: a model that only reads kept activations needs none
            stages = tuple(list_stages_of(round_weights(self._model)))
            self._rounded = stages[: self._stages]
        return run_in_bfloat16(self._run, x)

    def _run(self, x: Tensor) -> Tensor:
        for stage in self._rounded:
            x = stage.run(x)
        return x

    def __deepcopy__(self, memo: dict[int, Any]) -> Bfloat16Front:
        """Return one of the copied model, which rounds its own weights."""
        return Bfloat16Front(copy.deepcopy(self._model, memo), self._stages)


def run_frozen_in_bfloat16(model: GraftedModel) -> None:
    """Let a model run what is in front of its first trained layer in bfloat16.

    Raises:
        UserError: nothing worth it is frozen there, or the network's order is not known.
    """
    prefix = frozen_prefix(model)
    if prefix is None:
        raise UserError(
            "bfloat16, and nothing worth it is frozen in front of the first layer that is trained",
            where="backbone.precision",
            remedy="leave it out, or train later layers alone, such as adapter.targets: last-block",
        )
    model.front = Bfloat16Front(model, len(prefix.stages))
    model.steps = (model.front, *prefix.tail.steps)


def run_in_bfloat16(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return what a network with rounded weights gives for inputs `(n, …)`, in float32."""
    if x.ndim in LAYOUTS:
        x = x.contiguous(memory_format=LAYOUTS[x.ndim])
    with torch.autocast(x.device.type, dtype=ROUNDED_TO):
        x = run(x)
    return widen(x)


def round_weights(model: GraftedModel) -> GraftedModel:
    """Return a copy of a model whose frozen layers hold weights in bfloat16; every other tensor is
    the model's own.
    """
    rounded = copy.copy(model)
    net, depths = copy.deepcopy((model.net, model.depths), list_rounded(model.net))
    open_plain_attention(net)
    rounded.__dict__["_modules"] = {"net": net}
    rounded.depths = depths
    return rounded


def list_rounded(net: nn.Module) -> dict[int, Any]:
    """Return what a deep copy of a network is to take for each of its tensors, by identity: of its
    frozen layers' weights those in bfloat16, of all others the same.
    """
    aliases: dict[int, Any] = {}
    for tensor in (*net.parameters(), *net.buffers()):
        aliases[id(tensor)] = tensor
    owners = count_owners(net)
    for module in net.modules():
        if not isinstance(module, ROUNDED):
            continue
        for parameter in module.parameters(recurse=False):
            # a table of tokens may be the weight of a layer, too
            if parameter.requires_grad or owners[id(parameter)] > 1:
                continue
            aliases[id(parameter)] = _round(parameter)
    return aliases


def rounded_bytes(net: nn.Module) -> int:
    """Return the bytes of a network's rounded weights, which are kept beside its own."""
    rounded = 0
    for tensor in list_rounded(net).values():
        if tensor.dtype == ROUNDED_TO:
            rounded += tensor.nbytes
    return rounded


def _round(parameter: nn.Parameter) -> nn.Parameter:
    """Return a layer's parameter in bfloat16, a convolution's with its channels together."""
    values = parameter.detach().to(ROUNDED_TO)
    layout = LAYOUTS.get(values.ndim)
    if layout is not None:
        values = values.contiguous(memory_format=layout)
    return nn.Parameter(values, requires_grad=False)


def count_owners(net: nn.Module) -> Counter[int]:
    """Return how many modules hold each parameter, by its identity."""
    owners: Counter[int] = Counter()
    for module in net.modules():
        owners.update(id(parameter) for parameter in module._parameters.values())
    return owners
