"""Whether the gradients of single examples can be had for a model: tried out before any record."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fedgraft.client.privacy.clipping_engine import Losses
from fedgraft.client.privacy.dp_sgd import PrivateTraining, make_private
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.common.errors import Code, Refused
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.privacy.randomness import Randomness

TWO_CLASSES = torch.tensor([0, 1])
# small, so that a wrong norm of a gradient changes the clipped sum
_PROBE_NORM = 1e-3
# how far a clipped sum may be off, as a part of its largest norm
_TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-2}
# what Opacus raises at a layer that it cannot take
_BROKEN = (RuntimeError, ValueError, AttributeError, TypeError, NotImplementedError, LookupError)


def check_gradients(
    model: GraftedModel,
    grad_sample_mode: str,
    probes: Tensor,
    losses: Losses,
    targets: Tensor = TWO_CLASSES,
) -> None:
    """Compare the clipped sum with a loop over single examples, on two random inputs, in float64
    and in float32.

    A layer that hides from its hooks gives a wrong gradient without a word, so no list of layers is
    trusted; nor is the machine's arithmetic in the type that is trained.

    Args:
        grad_sample_mode: "hooks" or "ghost".
        probes: two random inputs (2, …), see `common/inputs/probes.py`.
        losses: outputs and targets → the loss of each example.
        targets: two of them (2, …), see `Task.probes`.

    Raises:
        Refused: they differ, or Opacus fails; says what to write instead.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = _in_precision(probes, torch.float64)
    probe = copy.deepcopy(model).double()
    # at their first values some adapters have no gradient to compare
    for p in probe.trainable_parameters().values():
        p.data.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64), alpha=0.05)
    expected = _clipped_by_loop(probe, inputs, _in_precision(targets, torch.float64), losses)

    remedy = "write adapter.method: lora, bottleneck, scale-shift, bias or head"
    if grad_sample_mode == "ghost":
        remedy = "write privacy.grad_sample_mode: hooks"
    noiseless = Mechanism(0.0, 1.0, 1, 1.0, _PROBE_NORM, "example", grad_sample_mode)
    training = PrivateTraining(noiseless, losses)
    for dtype, tolerance in _TOLERANCES.items():
        probe.to(dtype)
        try:
            typed = _in_precision(targets, dtype)
            gradient = _released(probe, training, _in_precision(inputs, dtype), typed)
        except _BROKEN as error:
            what = f"Opacus cannot take adapter {model.method} on this backbone"
            reason = f"{what} ({type(error).__name__}); {remedy}"
            raise Refused(Code.MODEL, reason) from error
        off = gradient - expected
        # a NaN is no small difference
        if not float(off.norm()) < tolerance * _PROBE_NORM:
            what = f"Opacus does not see every layer that adapter {model.method} trains here"
            raise Refused(Code.MODEL, f"{what}; {remedy}")


def _in_precision(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers in a precision; tokens are whole numbers and stay so."""
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


def _released(
    probe: GraftedModel, training: PrivateTraining, inputs: Tensor, targets: Tensor
) -> Tensor:
    """Return the gradient that a step would release, flat."""
    with make_private(probe, None, training, Randomness(b"probe")) as private:
        gradient = private.gradient(inputs, targets)
    parameters = probe.trainable_parameters().values()
    return torch.cat([gradient[p].flatten() for p in parameters])


def _clipped_by_loop(
    probe: GraftedModel, inputs: Tensor, targets: Tensor, losses: Losses
) -> Tensor:
    """Return the clipped sum, flat: one example at a time."""
    parameters = list(probe.trainable_parameters().values())
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for i in range(len(inputs)):
        loss = losses(probe(inputs[i : i + 1]), targets[i : i + 1]).sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        parts = []
        for p, gradient in zip(parameters, gradients, strict=True):
            parts.append(torch.zeros_like(p) if gradient is None else gradient)
        flat = torch.cat([part.flatten() for part in parts])
        # as Opacus has it
        norm = float(flat.norm()) + 1e-6
        total.add_(flat, alpha=_PROBE_NORM / max(norm, _PROBE_NORM))
    return total
