"""A public reference for features: where they lie and how they spread on records that anybody has.

Under differential privacy features are centred and whitened by it and brought to norm 1, so that
one record moves a sum by 1 at most, and what noise is added to is spread over all directions alike.
It belongs to the backbone: it is frozen, under its fingerprint, and a hospital approves it with it.
"""

from __future__ import annotations

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

# the child of a backbone's network
NAME = "reference"
# eigenvalues below this part of the largest are taken for it: there is nothing to be whitened
LEAST_SPREAD = 1e-10


class Reference(nn.Module):
    """Features (n, d), or (n, tokens, d), → centred, whitened, and of norm 1.

        reference = Reference(352)
        reference.fit(features_of_public_images)
        reference(features).norm(dim=1)  # 1

    Args:
        features: d.
    """

    mean: Tensor
    whiten: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("whiten", torch.eye(features))

    @torch.no_grad()
    def fit(self, features: Tensor, shrink: float = 0.0) -> None:
        """Take mean and covariance of public features `(n, d)`; on one thread.

        Args:
            shrink: how much of the covariance is taken for that of independent directions of one
                variance, 0 to 1; above 0 where records are few (Ledoit and Wolf 2004).
        """
        values = features.double().numpy()
        with threadpool_limits(1):
            mean = values.mean(0)
            spread, directions = np.linalg.eigh(np.cov(values.T))
            if shrink:
                spread = (1 - shrink) * spread + shrink * spread.mean()
            spread = np.maximum(spread, LEAST_SPREAD * spread.max())
            whiten = directions / np.sqrt(spread)
        self.mean.copy_(torch.from_numpy(mean))
        self.whiten.copy_(torch.from_numpy(whiten))

    @torch.no_grad()
    def set(self, mean: Tensor, whiten: Tensor) -> None:
        """Take a centre `(d,)` and a linear map `(d, d)` that were declared or made before."""
        self.mean.copy_(mean)
        self.whiten.copy_(whiten)

    def is_norm_alone(self) -> bool:
        """Whether nothing is known of the features: they are brought to norm 1 and no more."""
        is_moved = bool(self.mean.any())
        return not is_moved and torch.equal(self.whiten, torch.eye(len(self.mean)))

    def forward(self, features: Tensor) -> Tensor:
        """Return the features centred, whitened and of norm 1; 0 where they are the mean."""
        spread = (features - self.mean) @ self.whiten
        return nn.functional.normalize(spread, dim=-1)
