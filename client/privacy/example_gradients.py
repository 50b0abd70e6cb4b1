"""Gradients of single examples, clipped and summed without being multiplied out where that costs
more.

For a linear map an example's gradient is a product of two matrices, Σ_t g_t x_tᵀ over its positions
t (pixels, tokens). It is multiplied out where that is cheaper; else its norm is had from the two
alone, ‖·‖² = Σ (GᵀG ∘ XᵀX) (Goodfellow 2015; Li et al. 2022, section 4), and the sum is one product
over all examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# as Opacus has it
TINY = 1e-6


@dataclass
class Rows:
    """A gradient for each example, `(n, *shape of the parameter)`."""

    parameter: Tensor
    values: Tensor

    def squared_norms(self) -> Tensor:
        """Return `(n,)`."""
        return self.values.flatten(1).square().sum(1)

    def rows(self) -> Tensor:
        """Return `(n, *shape)`."""
        return self.values

    def join(self, parts: int) -> Rows:
        """Return the gradients of examples that are so many rows after one another."""
        if parts == 1:
            return self
        return Rows(self.parameter, self.values.unflatten(0, (-1, parts)).sum(1))

    def drop(self, which: Tensor) -> None:
        """Set the gradients of some examples `(n,)` to zero."""
        self.values = self.values.masked_fill(_beside(which, self.values), 0.0)

    def total(self, factors: Tensor) -> Tensor:
        """Return their sum, each times its factor `(n,)`."""
        return (factors @ self.values.flatten(1)).view_as(self.parameter)


@dataclass
class Products:
    """Gradients that are a product of two matrices each, not multiplied out.

    Attributes:
        left: `(n, groups, a, t)`.
        right: `(n, groups, b, t)`; an example's gradient is left @ rightᵀ.
        form: `(n, groups, a, b)` → `(n, *shape of the parameter)`.
    """

    parameter: Tensor
    left: Tensor
    right: Tensor
    form: Callable[[Tensor], Tensor]

    def cheapest(self) -> Rows | Products:
        """Return them multiplied out, unless the norms cost less without."""
        if norms_are_cheaper(self.left.shape[-1], self.left.shape[-2], self.right.shape[-2]):
            return self
        return Rows(self.parameter, self.rows())

    def rows(self) -> Tensor:
        """Return `(n, *shape)`."""
        return self.form(self.left @ self.right.transpose(-1, -2))

    def squared_norms(self) -> Tensor:
        """Return `(n,)`.

        In float64 where terms can cancel: a norm that comes out too small would be clipped too
        little.
        """
        left = self.left
        right = self.right
        if left.shape[-1] == 1:
            return (left.square().sum((-2, -1)) * right.square().sum((-2, -1))).sum(-1)
        left = left.double()
        right = right.double()
        grams = (left.transpose(-1, -2) @ left) * (right.transpose(-1, -2) @ right)
        return grams.sum((1, 2, 3)).clamp(min=0.0).to(self.left.dtype)

    def join(self, parts: int) -> Products:
        """Return the gradients of examples that are so many rows after one another: their positions
        are all rows'.
        """
        if parts == 1:
            return self
        return replace(self, left=_join(self.left, parts), right=_join(self.right, parts))

    def drop(self, which: Tensor) -> None:
        """Set the gradients of some examples `(n,)` to zero."""
        self.left = self.left.masked_fill(_beside(which, self.left), 0.0)
        self.right = self.right.masked_fill(_beside(which, self.right), 0.0)

    def total(self, factors: Tensor) -> Tensor:
        """Return their sum, each times its factor `(n,)`."""
        scaled = self.left * _beside(factors, self.left)
        # (groups, a, n·t) and (groups, n·t, b)
        left = scaled.permute(1, 2, 0, 3).flatten(2)
        right = self.right.permute(1, 0, 3, 2).flatten(1, 2)
        return self.form((left @ right)[None])[0]


Gradient = Rows | Products


def norms_are_cheaper(positions: int, a: int, b: int) -> bool:
    """Return whether the norm of a product costs less from its factors than multiplied out.

    By multiplications, of factors (a, positions) and (b, positions): two Gram matrices in float64,
    twice as dear, against the product and what is done with it after.
    """
    if positions == 1:
        return True
    return 4 * positions**2 * (a + b) < a * b * (positions + 8)


def clip_and_sum(gradients: Sequence[Gradient], max_norm: float) -> dict[Tensor, Tensor]:
    """Return the sum over examples of each one's gradient, by parameter.

    Each is clipped to `max_norm` over all parameters together. An example whose gradient is not
    finite counts as zero.
    """
    squares = torch.stack([each.squared_norms() for each in gradients])
    norms = squares.sum(0).sqrt()
    factors = (max_norm / (norms + TINY)).clamp(max=1.0)
    broken = ~torch.isfinite(norms)
    if bool(broken.any()):
        factors = factors.masked_fill(broken, 0.0)
        # zero times infinity is no zero
        for each in gradients:
            each.drop(broken)
    return {each.parameter: each.total(factors) for each in gradients}


def mean_by_owner(gradients: Tensor, owners: Tensor) -> Tensor:
    """Return the mean over each owner's examples: (n, …) by example → (owners, …)."""
    count = int(owners.max()) + 1
    sums = gradients.new_zeros(count, *gradients.shape[1:])
    sums.index_add_(0, owners, gradients)
    return sums / _beside(owners.bincount(), sums)


def _join(values: Tensor, parts: int) -> Tensor:
    """(n · parts, groups, a, t) → (n, groups, a, parts · t)."""
    return values.unflatten(0, (-1, parts)).permute(0, 2, 3, 1, 4).flatten(3)


def _beside(values: Tensor, tensor: Tensor) -> Tensor:
    """Return values `(n,)` with the dimensions of a tensor `(n, …)`."""
    return values.view(-1, *[1] * (tensor.ndim - 1))
