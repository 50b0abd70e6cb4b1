"""Clipped sums by Opacus's hooks: a gradient for each example at every layer, multiplied out."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from fedgraft.client.privacy.clipping_engine import Drawn, Losses
from fedgraft.client.privacy.example_gradients import Rows, clip_and_sum, mean_by_owner
from fedgraft.common.errors import Code, Refused
from fedgraft.common.model.grafted_model import GraftedModel

# what Opacus leaves on parameters and on modules
_ON_PARAMETERS = ("grad_sample", "_forward_counter", "_current_grad_sample", "_norm_sample")
_ON_MODULES = ("activations", "max_batch_len")


class OpacusHooks:
    """Opacus's own gradients of single examples."""

    def __init__(self, model: GraftedModel, losses: Losses, max_norm: float) -> None:
        self._model = model
        self._losses = losses
        self._max_norm = max_norm
        self._hooks = attach_hooks(hooks_class(), model)

    def sums(self, drawn: Drawn) -> dict[Tensor, Tensor]:
        """Return the clipped sums of a batch, by parameter.

        Raises:
            RuntimeError: a layer that was not called once with all examples; its gradient would be
                missing in the norm.
        """
        losses = self._losses(self._model(drawn.inputs), drawn.targets)
        losses.sum().backward()
        slices = self._model.slices or 1
        gradients = [_take_rows(p, len(losses), slices) for p in trained_parameters(self._model)]
        if drawn.owners is not None:
            for each in gradients:
                each.values = mean_by_owner(each.values, drawn.owners)
        with torch.no_grad():
            return clip_and_sum(gradients, self._max_norm)

    def detach(self) -> None:
        """Leave the model as it was."""
        self._hooks.cleanup()
        remove_traces(self._model)


def trained_parameters(model: GraftedModel) -> list[Tensor]:
    """Return the parameters that training changes, in the model's order."""
    return [p for p in model.parameters() if p.requires_grad]


def _take_rows(parameter: Tensor, examples: int, slices: int) -> Rows:
    """Return a parameter's gradients of single examples, and leave none on it.

    Args:
        slices: how many rows of a layer's first axis an example may be, beside one.
    """
    parameter.grad = None
    rows = vars(parameter).get("grad_sample")
    if rows is None or len(rows) not in (examples, examples * slices):
        raise RuntimeError("Opacus did not see every example once at every trained layer")
    vars(parameter)["grad_sample"] = None
    return Rows(parameter, rows).join(len(rows) // examples)


# ── Opacus ────────────────────────────────────────────────────────────────────────────────────────
def attach_hooks(hooks: Any, model: GraftedModel, **options: Any) -> Any:
    """Return Opacus's hooks, attached to a model.

    Raises:
        Refused: Opacus cannot take this model.
    """
    model.train()
    try:
        return hooks(model, loss_reduction="sum", **options)
    except Exception as error:
        remove_traces(model)
        if not isinstance(error, NotImplementedError):
            raise
        raise Refused(
            Code.MODEL,
            f"differential privacy needs a gradient for each example, and adapter {model.method}"
            " trains layers with buffers, such as BatchNorm's statistics over a batch, which"
            " Opacus does not take; write adapter.method: lora, bottleneck, scale-shift, bias or"
            " head, which leave them frozen",
        ) from None


@functools.cache
def hooks_class() -> Any:
    """Return Opacus's hooks, told the truth about memory; a slow import, so made on first use."""
    from opacus.grad_sample import GradSampleHooks

    return with_contiguous_samples(GradSampleHooks)


def with_contiguous_samples(base: Any) -> Any:
    """Return hooks of Opacus that see contiguous tensors.

    Opacus 1.6 reads the windows of a convolution by strides that it takes for granted:
    channels-last images gave wrong gradients and, in ghost mode, sums that were not clipped.
    """
    # The first trained layer's input needs no gradient, which torch finds worth a word at every
    # step.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")

    class ContiguousHooks(base):
        def rearrange_grad_samples(self, **given: Any) -> tuple[list[Tensor], Tensor]:
            """Return Opacus's own, contiguous."""
            activations, backprops = super().rearrange_grad_samples(**given)
            return [tensor.contiguous() for tensor in activations], backprops.contiguous()

    return ContiguousHooks


def remove_traces(model: GraftedModel) -> None:
    """Take away whatever Opacus has left on parameters and modules."""
    for p in model.parameters():
        p.grad = None
        for name in _ON_PARAMETERS:
            vars(p).pop(name, None)
    for module in model.modules():
        for name in _ON_MODULES:
            vars(module).pop(name, None)
