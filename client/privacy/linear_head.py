"""Clipped sums of single examples' gradients where all that trains is a linear head on features.

    features φ → outputs y = φ Wᵀ + b → g = ∂loss/∂y → ‖g ⊗ (φ, 1)‖² = ‖g‖² · (‖φ‖² + 1)

An example's gradient is the product of two vectors, and the norm of a product is the product of the
norms (Goodfellow 2015, "Efficient per-example gradient computations", section 4). So nothing is
asked of torch but the slope of the loss at the outputs, which it gives for any loss, and the sum is
one product of matrices. No terms cancel: all are squares. The operations are those of
`client/privacy/one_pass.py`, bit for bit, without its hooks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.client.privacy.clipping_engine import Drawn, Losses
from fedgraft.client.privacy.example_gradients import TINY, Rows, clip_and_sum, mean_by_owner
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.model.grafted_model import GraftedModel


def find_linear_head(model: GraftedModel) -> nn.Linear | None:
    """Return the linear head that is all that a model trains, weight and bias, and the last thing
    that it does; None for any other model, and where rows are not records.
    """
    head = model.steps[-1]
    if not isinstance(head, nn.Linear) or head.bias is None or model.tokens is not None:
        return None
    # a layer that does more than its class says is left to the engines with hooks
    if (
        type(head) is not nn.Linear
        or head._forward_hooks
        or head._forward_pre_hooks
        or "forward" in head.__dict__
    ):
        return None
    trained = [p for p in model.parameters() if p.requires_grad]
    if {id(p) for p in trained} != {id(head.weight), id(head.bias)}:
        return None
    return head


class LinearHead:
    """The gradients of a head's examples; nothing is changed at the model.

    engine = LinearHead(model, head, losses, max_norm=1.0)
    sums = engine.sums(Drawn(features, targets))
    """

    def __init__(
        self, model: GraftedModel, head: nn.Linear, losses: Losses, max_norm: float
    ) -> None:
        self._before = model.steps[:-1]
        self._head = head
        self._losses = losses
        self._max_norm = max_norm

    def sums(self, drawn: Drawn) -> dict[Tensor, Tensor]:
        """Return the clipped sums of a batch, by parameter.

        Raises:
            RuntimeError: the head does not see one row of features for each example.
        """
        head = self._head
        x = self._features(drawn)
        with torch.no_grad():
            outputs = F.linear(x, head.weight, head.bias)
        outputs.requires_grad_()
        losses = self._losses(outputs, drawn.targets)
        if x.ndim != 2 or losses.shape != x.shape[:1]:
            raise RuntimeError("a linear head does not have the examples as its rows")
        (g,) = torch.autograd.grad(losses, [outputs], [torch.ones_like(losses)])
        with torch.no_grad():
            if drawn.owners is not None:
                return self._sums_by_owner(x, g, drawn.owners)
            factors, x, g = clip_products(x, g, self._max_norm)
            # as a product of one node's, for the last bits of `example_gradients.py`
            weight = (g * factors[:, None]).mT[None] @ x[None]
            return {head.weight: weight[0], head.bias: factors @ g}

    def detach(self) -> None:
        """Leave the model as it was."""

    @torch.no_grad()
    def _features(self, drawn: Drawn) -> Tensor:
        """Return what the head reads of a batch."""
        x = drawn.inputs
        if isinstance(x, Batch):
            x = x.joined
        x = x.to(self._head.weight.device)
        for step in self._before:
            x = step(x)
        return x

    def _sums_by_owner(self, x: Tensor, g: Tensor, owners: Tensor) -> dict[Tensor, Tensor]:
        """Return the sum over owners: the mean of products is no product."""
        weights = mean_by_owner(g[:, :, None] * x[:, None, :], owners)
        biases = mean_by_owner(g, owners)
        gradients = [Rows(self._head.weight, weights), Rows(self._head.bias, biases)]
        return clip_and_sum(gradients, self._max_norm)


def clip_products(x: Tensor, g: Tensor, max_norm: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return by what each example's gradient is multiplied `(…, n)`, x and g: g ⊗ (x, 1) is clipped
    to `max_norm`, and where it is not finite, factor, x and g are zero.

    Args:
        x: features `(…, n, d)`; leading axes are of nodes, or there are none.
        g: slopes of the losses at the outputs `(…, n, outputs)`.
    """
    slopes = g.square().sum(-1)
    norms = (slopes * x.square().sum(-1)).add_(slopes).sqrt_()
    factors = (max_norm / (norms + TINY)).clamp_(max=1.0)
    # a sum that is too large for its type is looked at closely as well
    if math.isfinite(float(norms.sum())):
        return factors, x, g
    broken = ~torch.isfinite(norms)
    # zero times infinity is no zero
    by_example = broken[..., None]
    return (
        factors.masked_fill(broken, 0.0),
        x.masked_fill(by_example, 0.0),
        g.masked_fill(by_example, 0.0),
    )
