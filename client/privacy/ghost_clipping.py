"""Clipped sums by ghost clipping (Li et al. 2022, section 4; Bu et al. 2022): norms first, then the
clipped sum itself.

Two passes backwards, and no gradient of a single example is ever held.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.client.privacy.clipping_engine import Drawn, Losses
from fedgraft.client.privacy.opacus_hooks import (
    attach_hooks,
    remove_traces,
    trained_parameters,
    with_contiguous_samples,
)
from fedgraft.common.model.grafted_model import GraftedModel


class GhostClipping:
    """Opacus's norms of single examples' gradients, and a second pass for the sum."""

    def __init__(self, model: GraftedModel, losses: Losses, max_norm: float) -> None:
        self._model = model
        self._losses = losses
        self._hooks = attach_hooks(ghost_hooks_class(), model, max_grad_norm=max_norm)

    def sums(self, drawn: Drawn) -> dict[Tensor, Tensor]:
        """Return the clipped sums of a batch, by parameter. Owners are not known here."""
        losses = self._losses(self._model(drawn.inputs), drawn.targets)
        losses.sum().backward(retain_graph=True)
        finite = torch.isfinite(self._hooks.get_norm_sample())
        self._drop_gradients()
        if not bool(finite.all()):
            return self._sums_of(drawn, finite)

        factors = self._hooks.get_clipping_coef()
        self._hooks.disable_hooks()
        (factors * losses).sum().backward()
        self._hooks.enable_hooks()
        sums = {}
        for p in trained_parameters(self._model):
            if p.grad is not None:
                sums[p] = p.grad
        self._drop_gradients()
        return sums

    def _sums_of(self, drawn: Drawn, which: Tensor) -> dict[Tensor, Tensor]:
        """Return the sums of some examples `(n,)` only."""
        if not bool(which.any()):
            return {}
        return self.sums(Drawn(drawn.inputs[which], drawn.targets[which]))

    def _drop_gradients(self) -> None:
        for p in trained_parameters(self._model):
            p.grad = None

    def detach(self) -> None:
        """Leave the model as it was."""
        self._hooks.cleanup()
        remove_traces(self._model)


@functools.cache
def ghost_hooks_class() -> Any:
    """Return Opacus's hooks for ghost clipping; a slow import, so made on first use."""
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
        GradSampleHooksFastGradientClipping,
    )

    base = with_contiguous_samples(GradSampleHooksFastGradientClipping)

    class GhostHooks(base):
        def rearrange_grad_samples(self, **given: Any) -> tuple[list[Tensor], Tensor]:
            """Return Opacus's own, in float64 over tokens: there terms can cancel, and float32
            says zero.
            """
            activations, backprops = super().rearrange_grad_samples(**given)
            if isinstance(given["module"], nn.Linear):
                backprops = backprops.double()
            return activations, backprops

        def get_norm_sample(self) -> Tensor:
            """Return norms `(n,)` in float64, whatever each layer's are in."""
            for p in self.trainable_parameters:
                p._norm_sample = p._norm_sample.double()
            return super().get_norm_sample()

    return GhostHooks
