"""Gradient checkpointing: of a network's stages only their inputs are kept for the way back, and
what lies between is computed again there (Chen et al. 2016, "Training deep nets with sublinear
memory cost", section 3).

A third more time, the same bits: nothing in a grafted model is drawn at random while it trains.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedgraft.common.errors import UserError
from fedgraft.common.model.allocator import return_freed_memory
from fedgraft.common.model.frozen_prefix import list_stages_of
from fedgraft.common.model.grafted_model import GraftedModel


def checkpoint_gradients(model: GraftedModel) -> None:
    """Let a model keep only what enters its stages while it trains, and this process give back what
    it frees.

    Raises:
        UserError: the network's order is not known.
    """
    stages = tuple(list_stages_of(model))
    if not stages:
        raise UserError(
            "true, and in which order this network calls its layers is not known",
            where="train.gradient_checkpointing",
            remedy="leave it out, and make train.batch_size smaller",
        )
    if model.front is None:
        model.steps = tuple(stage.run for stage in stages)
    model.run_step = run_again
    return_freed_memory()


def run_again(step: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run a step so that it is run again on the way back, in place of keeping what it makes."""
    if not torch.is_grad_enabled():
        return step(x)
    y: Tensor = checkpoint(step, x, use_reentrant=False, preserve_rng_state=False)
    return y
