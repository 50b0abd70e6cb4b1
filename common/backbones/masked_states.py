"""States of tokens and their mask as one tensor: what passes between the stages of a network for
texts.

`(n, tokens, width + 1)`: the states, and in the last channel 1 where there is a token and 0 behind
the end of a text. So a mask goes wherever the states go: into kept activations, through `vmap`,
past an adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Run = Callable[..., Any]


def pack(states: Tensor, here: Tensor) -> Tensor:
    """Return states with the mask as their last channel."""
    return torch.cat([states, here.to(states.dtype)[..., None]], dim=-1)


def unpack(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the opposite of `pack`."""
    return x[..., :-1].contiguous(), x[..., -1]


def call_block(net: Any, run: Run, x: Tensor) -> Tensor:
    """Run a block, or an adapter behind one, on states and mask (n, length, width + 1)."""
    states, here = unpack(x)
    return pack(first_of(net.call(run, states, here)), here)


def first_of(output: Any) -> Tensor:
    """Return the states that a block gives, alone or first of several outputs."""
    return output[0] if isinstance(output, tuple) else output


def last_token(states: Tensor, here: Tensor) -> Tensor:
    """Return the states at the end of each text (n, width)."""
    follows = F.pad(here[:, 1:], (0, 1))
    is_last = here * (1 - follows)
    return (states * is_last[..., None]).sum(1)
