"""How far a head's scores may be off at a record: the predictive variance of Bayesian linear
regression (Bishop 2006, equations 3.58 and 3.59), from the sums that the head was solved from.

    σ² (1 + 1/n + zᵀ (G + λ I)⁻¹ z)

with z a record's standardised features, G their Gram matrix, n the records, and σ² the variance of
the targets around the scores. It grows where a record is unlike those that the sums are of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.statistics.ridge import RidgeSolution


@dataclass(frozen=True, eq=False)
class PredictiveVariance:
    """What the variance is computed from: 4 d² bytes for d features.

        variance = describe_variance(solution)
        variance.deviations(features)  # (n, targets)

    Attributes:
        mean: of the features, float32 `(d,)`.
        root: |root (φ − mean)|² is zᵀ (G + λ I)⁻¹ z, float32 `(d, d)`.
        noise: σ² (1 + 1/n) and σ² of each target, float32 `(2, targets)`.
    """

    mean: Tensor
    root: Tensor
    noise: Tensor

    def deviations(self, features: Tensor) -> Tensor:
        """Return the standard deviation of each score at features `(n, d)`: `(n, targets)`."""
        leverage = ((features - self.mean) @ self.root.T).square().sum(1, keepdim=True)
        always, by_leverage = self.noise
        return torch.sqrt(always + leverage * by_leverage)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is kept of it, by name."""
        return {"mean": self.mean, "root": self.root, "noise": self.noise}


def describe_variance(solution: RidgeSolution, unit: float = 1.0) -> PredictiveVariance:
    """Return the predictive variance of a ridge solution.

    Args:
        unit: what one step of a target is worth, where scores are told.
    """
    sums = solution.sums
    scaled = solution.basis / np.sqrt(solution.eigenvalues + solution.ridge)
    root = scaled.T / sums.deviation
    noise = unit**2 * solution.noise * np.array([[1 + 1 / sums.records], [1.0]])
    return PredictiveVariance(
        mean=torch.from_numpy(sums.mean).float(),
        root=torch.from_numpy(np.ascontiguousarray(root)).float(),
        noise=torch.from_numpy(noise).float(),
    )
