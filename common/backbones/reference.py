"""A public reference for features: where they lie and how they spread on images that anybody has.

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
    """Features (n, d) → centred, whitened, and of norm 1 (n, d).

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
    def fit(self, features: Tensor) -> None:
        """Take mean and covariance of public features `(n, d)`, n > d; on one thread."""
        values = features.double().numpy()
        with threadpool_limits(1):
            mean = values.mean(0)
            spread, directions = np.linalg.eigh(np.cov(values.T))
            spread = np.maximum(spread, LEAST_SPREAD * spread.max())
            whiten = directions / np.sqrt(spread)
        self.mean.copy_(torch.from_numpy(mean))
        self.whiten.copy_(torch.from_numpy(whiten))

    def forward(self, features: Tensor) -> Tensor:
        """Return the features centred, whitened and of norm 1; 0 where they are the mean."""
        spread = (features - self.mean) @ self.whiten
        return nn.functional.normalize(spread, dim=1)
