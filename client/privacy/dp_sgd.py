"""Local training under sample-level differential privacy: DP-SGD.

    Poisson sampling → a gradient for each unit → clipped → summed → Gaussian noise → divided →
    optimizer

Abadi et al., "Deep learning with differential privacy" (CCS 2016), algorithm 1. The unit is an
example, or a patient with all of their examples. `client/privacy/clipping_engine.py` says who gives
the clipped sums.

Opacus's optimizer is not used: noise and sampling draw on the operating system, since a torch
generator keeps 32 bits of its seed; a gradient that is not finite counts as zero, since one NaN in
a sum would tell that its example was there; the last step of rounding, to float32, follows the
noise. The tests compare with Opacus's hooks and optimizer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.examples import Examples
from fedgraft.client.privacy.choose_engine import attach_engine
from fedgraft.client.privacy.clipping_engine import ClippingEngine, Drawn, Losses
from fedgraft.client.privacy.lots import draw_lots
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.training.local_steps import AugmentPairs
from fedgraft.client.training.optimizers import Steps
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.privacy.randomness import Randomness


@dataclass(frozen=True)
class PrivateTraining:
    """How a node trains in one round under DP-SGD.

        PrivateTraining(mechanism, TASKS[plan.task.question].losses)

    Attributes:
        losses: outputs and targets → the loss of each example `(n,)`.
        patients: positions within the split of each patient's examples, where the unit is the
            patient.
        proximal: μ of FedProx. Its gradient does not look at the data: it is added behind the
            noise.
        augment: (batch, targets, generator) → both, changed at random: masks with their images.
        block: examples that go through the model at once; None: all that were drawn. Of patients,
            whose examples belong together, always all.
    """

    mechanism: Mechanism
    losses: Losses
    patients: Sequence[np.ndarray] | None = None
    proximal: float = 0.0
    augment: AugmentPairs = lambda batch, targets, generator: (batch, targets)
    block: int | None = None


def train_privately(
    model: GraftedModel,
    examples: Examples,
    optimizer: Steps,
    training: PrivateTraining,
    randomness: Randomness,
) -> None:
    """Run a mechanism's steps on a node's examples, in place.

    Nothing about the data comes back but the model.

    Raises:
        Refused: per-example gradients cannot be had for this model.
    """
    mechanism = training.mechanism
    patients = training.patients
    units = len(examples) if patients is None else len(patients)
    with make_private(model, optimizer, training, randomness) as private:
        for lot in draw_lots(mechanism, units, private.values, randomness, patients):
            if lot.generator is None:
                private.step_without_examples(lot.noise)
                continue
            rows = torch.from_numpy(lot.positions)
            inputs, targets = training.augment(
                examples.inputs(rows), examples.labels[rows], lot.generator
            )
            private.step(inputs, targets, lot.owners, noise=lot.noise)


@contextlib.contextmanager
def make_private(
    model: GraftedModel,
    optimizer: Steps | None,
    training: PrivateTraining,
    randomness: Randomness,
) -> Iterator[PrivateModel]:
    """Attach per-example gradients to a model, and leave no trace of them, whatever happens.

    Args:
        optimizer: over all trainable parameters of the model; None where no step is taken.

    Raises:
        Refused: per-example gradients cannot be had for this model.
    """
    engine = None
    try:
        engine = attach_engine(model, training.losses, training.mechanism)
        yield PrivateModel(model, engine, optimizer, training, randomness)
    finally:
        if engine is not None:
            engine.detach()
        for p in model.parameters():
            p.grad = None
        model.eval()


class PrivateModel:
    """A model whose every step is clipped and noised.

    with make_private(model, optimizer, training, Randomness()) as private:
        private.step(inputs, targets)

    Attributes:
        parameters: that are trained.
        values: of all of them together.
    """

    def __init__(
        self,
        model: GraftedModel,
        engine: ClippingEngine,
        optimizer: Steps | None,
        training: PrivateTraining,
        randomness: Randomness,
    ) -> None:
        self.engine = engine
        self.mechanism = training.mechanism
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.values = sum(p.numel() for p in self.parameters)
        self._optimizer = optimizer
        self._randomness = randomness
        self._proximal = training.proximal
        self._block = training.block
        self._received: list[Tensor] = []
        if self._proximal:
            self._received = [p.detach().clone() for p in self.parameters]

    def step(
        self,
        inputs: Batch | Tensor,
        targets: Tensor,
        owners: Tensor | None = None,
        *,
        noise: np.ndarray | None = None,
    ) -> None:
        """Take one noisy step on examples `(n, …)`.

        Args:
            owners: whose each example is, `(n,)` numbers from 0; None: each is a unit.
            noise: standard normal numbers `(values,)` of this step alone; None: drawn here.
        """
        self._take(self._release(self._sums(inputs, targets, owners), noise))

    def step_without_examples(self, noise: np.ndarray | None = None) -> None:
        """Take a step into which no unit was drawn: noise alone.

        To leave it out would tell that nobody was there.
        """
        self._take(self._release({}, noise))

    def gradient(
        self, inputs: Batch | Tensor, targets: Tensor, owners: Tensor | None = None
    ) -> dict[Tensor, Tensor]:
        """Return what a step releases, by parameter: clipped, summed, noised and divided."""
        return self._release(self._sums(inputs, targets, owners))

    def _sums(
        self, inputs: Batch | Tensor, targets: Tensor, owners: Tensor | None
    ) -> dict[Tensor, Tensor]:
        """Return the clipped sums, by parameter."""
        device = self.parameters[0].device
        targets = targets.to(device)
        if owners is not None:
            return self.engine.sums(Drawn(inputs, targets, owners.to(device)))
        if self._block is None or self._block >= len(targets):
            return self.engine.sums(Drawn(inputs, targets))
        sums: dict[Tensor, Tensor] = {}
        for start in range(0, len(targets), self._block):
            rows = slice(start, start + self._block)
            for p, part in self.engine.sums(Drawn(inputs[rows], targets[rows])).items():
                sums[p] = sums[p] + part if p in sums else part
        return sums

    @torch.no_grad()
    def _take(self, gradient: dict[Tensor, Tensor]) -> None:
        assert self._optimizer is not None
        # nothing but what was noised
        self._optimizer.zero_grad(set_to_none=True)
        for p in self.parameters:
            p.grad = gradient[p]
        if self._received:
            # μ(w − w_received), behind the noise
            for p, received in zip(self.parameters, self._received, strict=True):
                gradient[p].add_(p - received, alpha=self._proximal)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _release(
        self, sums: dict[Tensor, Tensor], noise: np.ndarray | None = None
    ) -> dict[Tensor, Tensor]:
        """Return noisy sums, divided: noise on all parameters at once, in float64 on the host.

        No sum counts as zero.
        """
        parts = []
        for p in self.parameters:
            parts.append(sums[p].reshape(-1) if p in sums else p.new_zeros(p.numel()))
        flat = torch.cat(parts)
        if noise is None:
            noise = self._randomness.normal(self.values)
        noisy = add_noise(flat.cpu(), noise, self.mechanism).to(flat.device)
        released = noisy.split([p.numel() for p in self.parameters])
        pairs = zip(self.parameters, released, strict=True)
        return {p: part.view_as(p) for p, part in pairs}


def add_noise(sums: Tensor, noise: np.ndarray, mechanism: Mechanism) -> Tensor:
    """Return clipped sums with a mechanism's noise, divided by the units that are expected: added
    in float64, and then rounded to the sums' type.

    Args:
        sums: any shape, on the host.
        noise: standard normal numbers, the same shape.
    """
    deviation = mechanism.noise_multiplier * mechanism.max_grad_norm
    noisy = torch.from_numpy(noise * deviation).add_(sums)
    return noisy.to(sums.dtype).div_(mechanism.expected)
