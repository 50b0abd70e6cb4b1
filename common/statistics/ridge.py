"""Ridge regression from sums, its constant by marginal likelihood from the same sums.

Features are centred and scaled by the sums themselves. The evidence of a ridge constant λ, the
variance of the noise profiled out, is that of Bayesian linear regression (Bishop 2006, section
3.5): with w the eigenvalues of the scaled Gram matrix and r its eigenvectors' products with the
targets t,

    −2 log p(t | λ) = n log σ² + Σ log (1 + w / λ),   σ² = (tᵀt − Σ r² / (w + λ)) / n
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from fedgraft.common.statistics.gram_sums import GramSums

# eigenvalues and basis of a Gram matrix
Spectrum = tuple[np.ndarray, np.ndarray]
# ridge constants that are tried, on features of variance 1
RIDGES = 10.0 ** np.arange(-2.0, 6.0, 0.1)
# of a feature, in integer steps: what varies less is left out, its rounding would be most of it
LEAST_DEVIATION = 2.0
# a mean leverage of 1 would leave nothing to be told from the records
MOST_LEVERAGE = 0.99


@dataclass(frozen=True)
class StandardSums:
    """Sums over features of mean 0 and deviation 1, and over targets of mean 0.

    Attributes:
        records: n.
        mean, deviation: of the features, in their own units, `(d,)`; the deviation of one that
            hardly varies is infinite, and its weight 0.
        gram: `(d, d)`.
        cross: `(d, k)`.
        target_mean, target_squares: `(k,)`; squares around the mean.
    """

    records: int
    mean: np.ndarray
    deviation: np.ndarray
    gram: np.ndarray
    cross: np.ndarray
    target_mean: np.ndarray
    target_squares: np.ndarray


def standardise(sums: GramSums, unit: float) -> StandardSums:
    """Return sums as if every feature had been centred and scaled first.

    Args:
        unit: what one integer step of a feature is worth.

    Raises:
        ValueError: no records.
    """
    if sums.records < 1:
        raise ValueError("no records")
    records = float(sums.records)
    mean = sums.total / records
    target_mean = sums.targets / records
    centred = sums.gram - records * np.outer(mean, mean)
    variance = np.maximum(np.diag(centred) / records, 0.0)
    # in integer steps, as everything here until the end
    deviation = np.sqrt(variance)
    deviation[deviation < LEAST_DEVIATION] = np.inf
    gram = centred / np.outer(deviation, deviation)
    cross = (sums.cross - records * np.outer(mean, target_mean)) / deviation[:, None]
    return StandardSums(
        records=sums.records,
        mean=mean * unit,
        deviation=deviation * unit,
        gram=(gram + gram.T) / 2,
        cross=cross,
        target_mean=target_mean,
        target_squares=sums.squares - records * target_mean**2,
    )


@dataclass(frozen=True)
class RidgeSolution:
    """A ridge regression and what it is certain of.

    Attributes:
        sums: that it was solved from.
        ridge: λ, on features of variance 1.
        weights: on standardised features, `(d, k)`.
        evidence: log marginal likelihood up to a constant that depends on the targets alone.
        noise: variance of the targets' noise, `(k,)`.
        leverage: mean of the records' leverages, the intercept's included: how far a record pulls
            its own prediction.
        eigenvalues, basis: of the scaled Gram matrix, `(d,)` and `(d, d)`.
    """

    sums: StandardSums
    ridge: float
    weights: np.ndarray
    evidence: float
    noise: np.ndarray
    leverage: float
    eigenvalues: np.ndarray
    basis: np.ndarray

    def head(self) -> tuple[np.ndarray, np.ndarray]:
        """Return weights `(k, d)` and bias `(k,)` on features as they are."""
        weights = (self.weights / self.sums.deviation[:, None]).T
        return weights, self.sums.target_mean - weights @ self.sums.mean


def solve_ridge(
    sums: StandardSums, ridge: float | None = None, spectrum: Spectrum | None = None
) -> RidgeSolution:
    """Return the ridge solution, on one thread: the same bits for the same sums.

    Args:
        ridge: λ; None: the one of `RIDGES` with the largest evidence.
        spectrum: of the scaled Gram matrix, where it is known.
    """
    with threadpool_limits(1):
        if spectrum is None:
            spectrum = decompose(sums.gram)
        eigenvalues, basis = spectrum
        rotated = basis.T @ sums.cross
        if ridge is None:
            evidences = [_evidence(sums, eigenvalues, rotated, each) for each in RIDGES]
            ridge = float(RIDGES[int(np.argmax(evidences))])
        weights = basis @ (rotated / (eigenvalues + ridge)[:, None])
    freedom = 1.0 + float((eigenvalues / (eigenvalues + ridge)).sum())
    return RidgeSolution(
        sums=sums,
        ridge=ridge,
        weights=weights,
        evidence=_evidence(sums, eigenvalues, rotated, ridge),
        noise=_noise(sums, eigenvalues, rotated, ridge),
        leverage=min(freedom / sums.records, MOST_LEVERAGE),
        eigenvalues=eigenvalues,
        basis=basis,
    )


def decompose(gram: np.ndarray) -> Spectrum:
    """Return eigenvalues `(d,)`, not below 0, and basis `(d, d)` of a Gram matrix."""
    eigenvalues, basis = np.linalg.eigh(gram)
    return np.maximum(eigenvalues, 0.0), basis


def _noise(
    sums: StandardSums, eigenvalues: np.ndarray, rotated: np.ndarray, ridge: float
) -> np.ndarray:
    explained = (rotated**2 / (eigenvalues + ridge)[:, None]).sum(0)
    left = np.maximum(sums.target_squares - explained, 1e-12 * (sums.target_squares + 1))
    return left / sums.records


def _evidence(
    sums: StandardSums, eigenvalues: np.ndarray, rotated: np.ndarray, ridge: float
) -> float:
    noise = _noise(sums, eigenvalues, rotated, ridge)
    volume = np.log1p(eigenvalues / ridge).sum()
    return -0.5 * float((sums.records * np.log(noise) + volume).sum())
