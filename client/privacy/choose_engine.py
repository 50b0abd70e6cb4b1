"""Which engine gives the clipped sums of a model."""

from __future__ import annotations

from fedgraft.client.privacy.clipping_engine import ClippingEngine, Losses
from fedgraft.client.privacy.ghost_clipping import GhostClipping
from fedgraft.client.privacy.linear_head import LinearHead, find_linear_head
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.privacy.one_pass import OnePass, knows_layers
from fedgraft.client.privacy.opacus_hooks import OpacusHooks
from fedgraft.common.errors import Code, Refused
from fedgraft.common.model.grafted_model import GraftedModel, run_once


def attach_engine(model: GraftedModel, losses: Losses, mechanism: Mechanism) -> ClippingEngine:
    """Attach per-example gradients to a model.

    Ghost clipping where the plan asks for it, no pass backwards where a linear head is all that
    trains, our own pass where it knows every trained layer, Opacus's hooks otherwise.

    Raises:
        Refused: the engine cannot take this model, or this unit.
    """
    if mechanism.grad_sample_mode == "ghost":
        _refuse_checkpointing(model, "ghost clipping")
        if mechanism.unit == "patient":
            raise Refused(
                Code.MODEL,
                "ghost clipping knows the norm of an example's gradient, not of a patient's; "
                "write privacy.grad_sample_mode: hooks, or unit: example",
            )
        if model.slices is not None:
            raise Refused(
                Code.MODEL,
                "ghost clipping knows the norm of a slice's gradient, not of a volume's; "
                "write privacy.grad_sample_mode: hooks",
            )
        return GhostClipping(model, losses, mechanism.max_grad_norm)
    head = find_linear_head(model)
    if head is not None:
        return LinearHead(model, head, losses, mechanism.max_grad_norm)
    if knows_layers(model):
        return OnePass(model, losses, mechanism.max_grad_norm)
    _refuse_checkpointing(model, "Opacus's hooks, which some layer here needs,")
    return OpacusHooks(model, losses, mechanism.max_grad_norm)


def _refuse_checkpointing(model: GraftedModel, who: str) -> None:
    """Raise `Refused` where stages are run again on the way back."""
    if model.run_step is not run_once:
        what = f"{who} would count a layer twice that is run again on the way back"
        raise Refused(Code.MODEL, f"{what}; write train.gradient_checkpointing: false")
