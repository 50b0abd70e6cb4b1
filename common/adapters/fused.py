"""LoRA on a convolution as one convolution with the merged weight, where that is cheaper than
three.

    W' = W + (alpha / rank) · B A,   y = W' * x,   dA and dB follow from dW'

Beside the frozen convolution, A costs rank/out of it and B rank/(in·k²), three times each (forward,
and two gradients); the merged one costs a gradient of the whole weight, which is once. So merging
is cheaper where 3 · rank · (1/out + 1/(in·k²)) is above 1; measured on one thread it pays from
about one half, because three small convolutions move more memory than one. Opacus needs the three:
private training has a way of its own.
"""

from __future__ import annotations

import math
import types

from torch import Tensor, nn

from fedgraft.common.adapters.convolutions import CONVOLUTIONS, Conv
from fedgraft.common.adapters.host import hook_adapter, unhook_adapter
from fedgraft.common.adapters.lora import Lora

CHEAPER = 0.5
# values of a weight; to merge a larger one costs more than three convolutions of small images
LARGEST = 200_000


def fuse(net: nn.Module, *, always: bool = False) -> int:
    """Let every convolution for which it is cheaper use its merged weight, and return how many do.

    Args:
        always: all whose weight is not large; cheaper where no gradient of the weight is asked for,
            as in `client/privacy/per_example.py`.
    """
    fused = 0
    for host in net.modules():
        adapter = host._modules.get("adapter")
        if not isinstance(host, CONVOLUTIONS) or not isinstance(adapter, Lora):
            continue
        if always:
            is_cheaper = host.weight.numel() <= LARGEST
        else:
            is_cheaper = cost_of_three(host, adapter) > CHEAPER
        if is_cheaper:
            unhook_adapter(host)
            host.forward = types.MethodType(_forward, host)  # type: ignore[method-assign]
            fused += 1
    return fused


def unfuse(net: nn.Module) -> None:
    """Go back to three convolutions, whose modules are really called."""
    for host in net.modules():
        if host.__dict__.pop("forward", None) is not None:
            hook_adapter(host)


def cost_of_three(host: Conv, adapter: Lora) -> float:
    """Return what A and B cost beside the frozen convolution, in gradients of its weight."""
    rank = adapter.lora_A.weight.shape[0]
    window = math.prod(host.kernel_size)
    return 3 * rank * (1 / host.out_channels + host.groups / (host.in_channels * window))


def _forward(host: Conv, x: Tensor) -> Tensor:
    adapter = host._modules["adapter"]
    assert isinstance(adapter, Lora)
    weight, bias = adapter.fold(host.weight, host.bias)
    return host._conv_forward(x, weight, bias)
