"""Local training under sample-level differential privacy: DP-SGD, with Opacus's per-example gradients.

    Poisson sampling → a gradient for each unit → clipped → summed → Gaussian noise → divided → optimizer

Abadi et al., "Deep learning with differential privacy" (CCS 2016), algorithm 1. The unit is an example, or a
patient with all of their examples. This is the only file that wraps or unwraps a model.

Three things differ from Opacus as it comes. Noise and sampling draw on the operating system, since a torch
generator keeps 32 bits of its seed. A gradient that is not finite counts as zero: one NaN in a sum would tell that
its example was there. The last step of rounding, to float32, follows the noise.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from client.batches import Split
from client.per_example import Tape, mean_by_owner, takes
from client.training import augmented
from common.accounting import Row, noise_for
from common.errors import Refused, UserError
from common.model import GraftedModel
from common.plan import Plan
from common.randomness import Randomness, poisson_sample

IMAGES_PER_PATIENT = 16  # of a patient with more, so many are drawn anew in each step: memory stays bounded
_PROBE_NORM = 1e-3  # small, so that a wrong norm of a gradient changes the clipped sum
_SIGNS_OF_OPACUS = ("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample", "_norm_sample")


@dataclass(frozen=True)
class Mechanism:
    """The noisy steps of one round at one node: what is run, and what is counted.

    Attributes:
        noise_multiplier: σ; the noise on a sum has standard deviation σ · max_grad_norm.
        sample_rate: q, the probability of each unit to enter a step, by its own coin.
        steps: optimizer steps of a round.
        expected: units that a step is expected to have; noisy sums are divided by it.
        max_grad_norm: L2 norm that each unit's gradient is clipped to; in mode local, the whole update.
        unit: "example", "patient" or, in mode local, "node".
        grad_sample_mode: "hooks" or "ghost".
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    expected: float
    max_grad_norm: float
    unit: str = "example"
    grad_sample_mode: str = "hooks"

    @property
    def row(self) -> Row:
        """One round's row of a privacy history."""
        return (self.noise_multiplier, self.sample_rate, self.steps)


def mechanism_for(plan: Plan, units: int, *, least_noise: float = 0.0, beside: tuple[Row, ...] = ()) -> Mechanism:
    """The noisy steps of one round, with the noise that all rounds together need.

    σ is the least with which *all* steps of *all* planned rounds stay within `privacy.target_epsilon`, or the
    plan's own noise_multiplier. In mode local a round is one step: the node's whole update.

    Args:
        units: examples or patients that this node trains on; in mode local 1.
        least_noise: the node's own floor under σ.
        beside: what else this plan will release here, over all rounds.

    Raises:
        UserError: no noise is enough for the target.
    """
    wanted, batch, local = plan.privacy, plan.train.batch_size, plan.privacy.mode == "local"
    rate = 1.0 if local else min(1.0, batch / units)
    steps = 1 if local else math.ceil(units / batch) * plan.train.local_epochs
    sigma = wanted.noise_multiplier
    if sigma is None:
        assert wanted.target_epsilon is not None  # the plan's door sees to these
        assert wanted.delta is not None
        all_steps = steps * plan.train.rounds
        sigma = _noise_for(wanted.target_epsilon, wanted.delta, rate, all_steps, wanted.accountant, beside)
    return Mechanism(
        noise_multiplier=max(sigma, least_noise),
        sample_rate=rate,
        steps=steps,
        expected=rate * units,
        max_grad_norm=wanted.max_update_norm if local else wanted.max_grad_norm,
        unit=wanted.unit,
        grad_sample_mode=wanted.grad_sample_mode,
    )


_noise_for = functools.lru_cache(maxsize=4096)(noise_for)


# ── training ─────────────────────────────────────────────────────────────────────────────────────────
def train_privately(
    model: GraftedModel,
    split: Split,
    *,
    mechanism: Mechanism,
    optimizer: torch.optim.Optimizer,
    patients: Sequence[np.ndarray] | None = None,
    proximal: float = 0.0,
    augment: str = "none",
    randomness: Randomness,
) -> None:
    """Run a mechanism's steps on a split, in place. Nothing about the data comes back but the model.

    Args:
        patients: positions within the split of each patient's examples, where the unit is the patient.
        proximal: μ of FedProx. Its gradient does not look at the data: it is added behind the noise.

    Raises:
        Refused: Opacus cannot take this model.
    """
    units = len(split) if patients is None else len(patients)
    with wrapped(model, optimizer, mechanism, randomness=randomness, proximal=proximal) as private:
        for _ in range(mechanism.steps):
            drawn = poisson_sample(units, mechanism.sample_rate, randomness)
            owners = None
            if patients is not None:
                drawn, owners = _images_of(patients, drawn, randomness)
            if len(drawn) == 0:
                private.step_without_examples()
                continue
            positions = torch.from_numpy(drawn)
            inputs = augmented(split.inputs(positions), augment, randomness.generator())
            private.step(inputs, split.labels[positions], owners)


def _images_of(patients: Sequence[np.ndarray], drawn: np.ndarray, randomness: Randomness) -> tuple[np.ndarray, Tensor]:
    """Positions of the drawn patients' examples, and which of the drawn patients each belongs to."""
    chosen, owners = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for owner, patient in enumerate(drawn.tolist()):
        images = patients[patient]
        if len(images) > IMAGES_PER_PATIENT:
            images = images[np.argsort(randomness.uniform(len(images)))[:IMAGES_PER_PATIENT]]
        chosen.append(images)
        owners.append(np.full(len(images), owner))
    return np.concatenate(chosen), torch.from_numpy(np.concatenate(owners))


class PrivateModel:
    """A model whose every step is clipped and noised; made by `wrapped`."""

    def __init__(self, model: GraftedModel, hooks: Any, optimizer: Any, ghost: bool) -> None:
        self.model, self.hooks, self.optimizer, self.ghost = model, hooks, optimizer, ghost

    def step(self, inputs: Tensor, labels: Tensor, owners: Tensor | None = None) -> None:
        """One noisy step on examples `(n, …)`; their patients are numbered by `owners` (n,) from 0."""
        self.clip(inputs, labels, owners)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step_without_examples(self) -> None:
        """A step into which no unit was drawn: noise alone. To leave it out would tell that nobody was there."""
        for p in self.optimizer.params:
            p.grad, p.grad_sample = torch.zeros_like(p), torch.zeros((0, *p.shape), dtype=p.dtype)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def clip(self, inputs: Tensor, labels: Tensor, owners: Tensor | None = None) -> None:
        """Gradients of each unit, in the form that the optimizer then clips and sums."""
        losses = F.cross_entropy(self.model(inputs), labels, reduction="none")
        if isinstance(self.hooks, Tape):
            sums = self.hooks.clipped_sums(losses, self.optimizer.max_grad_norm, owners)
            for p in self.optimizer.params:
                p.grad = sums.get(p, torch.zeros_like(p))
            return
        if self.ghost:
            self._clip_by_norms(inputs, labels, losses)
            return
        losses.sum().backward()
        if owners is not None:
            for p in self.optimizer.params:
                p.grad_sample = mean_by_owner(p.grad_sample, owners)
        finite = torch.isfinite(_norms([p.grad_sample for p in self.optimizer.params]))
        if not bool(finite.all()):
            for p in self.optimizer.params:
                p.grad_sample[~finite] = 0.0

    def _clip_by_norms(self, inputs: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Ghost clipping (Li et al. 2022, section 4; Bu et al. 2022): norms first, then the clipped sum itself.

        Two passes backwards, and no gradient of a single example is ever held.
        """
        losses.sum().backward(retain_graph=True)
        finite = torch.isfinite(self.hooks.get_norm_sample())
        self.optimizer.zero_grad(set_to_none=True)
        if not bool(finite.all()):
            if not bool(finite.any()):
                for p in self.optimizer.params:
                    p.grad = torch.zeros_like(p)
            else:
                self.clip(inputs[finite], labels[finite])
            return
        factors = self.hooks.get_clipping_coef()
        self.hooks.disable_hooks()
        (factors * losses).sum().backward()
        self.hooks.enable_hooks()


def _norms(gradients: Sequence[Tensor]) -> Tensor:
    """L2 norm (n,) of each unit's gradient over all parameters together."""
    return torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients], dim=1).norm(dim=1)


# ── wrapping and unwrapping ──────────────────────────────────────────────────────────────────────────
@contextlib.contextmanager
def wrapped(
    model: GraftedModel,
    optimizer: torch.optim.Optimizer,
    mechanism: Mechanism,
    *,
    randomness: Randomness,
    proximal: float = 0.0,
) -> Iterator[PrivateModel]:
    """Attach Opacus to a model and its optimizer, and leave no trace of it, whatever happens.

    Args:
        optimizer: over all trainable parameters of the model.

    Raises:
        Refused: Opacus cannot take this model.
    """
    ghost = mechanism.grad_sample_mode == "ghost"
    if ghost and mechanism.unit == "patient":
        raise Refused(
            "ghost clipping knows the norm of an example's gradient, not of a patient's; "
            "write privacy.grad_sample_mode: hooks, or unit: example"
        )
    hooks = _hooks(model, ghost, mechanism.max_grad_norm)
    try:
        private = _optimizer_class(ghost or isinstance(hooks, Tape))(  # the one that finds its sums clipped already
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.max_grad_norm,
            expected_batch_size=mechanism.expected,
            loss_reduction="mean",  # the noisy sum is divided by the expected number of units
        )
        private.randomness = randomness
        private.zero_grad(set_to_none=True)
        if proximal:
            start = [p.detach().clone() for p in private.params]
            private.attach_step_hook(functools.partial(_pull_back, start=start, strength=proximal))
        yield PrivateModel(model, hooks, private, ghost)
    finally:
        _unwrap(model, hooks)


def _hooks(model: GraftedModel, ghost: bool, max_grad_norm: float) -> Any:
    if not ghost and takes(model):
        return Tape(model)
    model.train()
    clip: dict[str, Any] = {"max_grad_norm": max_grad_norm} if ghost else {}
    try:
        return _hooks_class(ghost)(model, loss_reduction="sum", **clip)
    except NotImplementedError:
        model.eval()
        raise Refused(
            f"differential privacy needs a gradient for each example, and adapter {model.method} trains layers with "
            "buffers, such as BatchNorm's statistics over a batch, which Opacus does not take; write adapter.method: "
            "lora, bottleneck, scale-shift, bias or head, which leave them frozen"
        ) from None


@functools.cache
def _hooks_class(ghost: bool) -> Any:
    """Opacus's hooks, told the truth about memory; a slow import, so made on first use."""
    from opacus.grad_sample import GradSampleHooks
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping

    # The first trained layer's input needs no gradient, which torch finds worth a word at every step.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    base: Any = GradSampleHooksFastGradientClipping if ghost else GradSampleHooks

    class Hooks(base):
        def rearrange_grad_samples(self, **given: Any) -> tuple[list[Tensor], Tensor]:
            """Contiguous: Opacus 1.6 reads the windows of a convolution by strides that it takes for granted.

            Channels-last images gave wrong gradients and, in ghost mode, sums that were not clipped.
            """
            activations, backprops = super().rearrange_grad_samples(**given)
            return [tensor.contiguous() for tensor in activations], backprops.contiguous()

    return Hooks


def _unwrap(model: GraftedModel, hooks: Any) -> None:
    hooks.detach() if isinstance(hooks, Tape) else hooks.cleanup()
    for p in model.parameters():
        p.grad = None
        for name in _SIGNS_OF_OPACUS:
            vars(p).pop(name, None)
    for module in model.modules():
        for name in ("activations", "max_batch_len"):
            vars(module).pop(name, None)
    model.eval()


def _pull_back(optimizer: Any, *, start: list[Tensor], strength: float) -> None:
    """The proximal gradient μ(w − w_received), behind clipping, noise and division."""
    for p, received in zip(optimizer.params, start, strict=True):
        p.grad.add_(p.detach() - received, alpha=strength)


@functools.cache
def _optimizer_class(ghost: bool) -> Any:
    """Opacus's optimizer with our noise; a slow import, so made on first use."""
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping

    base: Any = DPOptimizerFastGradientClipping if ghost else DPOptimizer

    class NoisyOptimizer(base):
        randomness: Randomness

        def accumulate(self) -> None:
            """One batch is one step here: its sums are taken as they are, and not copied."""
            if not ghost:
                return super().accumulate()
            for p in self.params:
                p.summed_grad = p.grad

        def add_noise(self) -> None:
            """Noise for all parameters at once, added in float64."""
            deviation = self.noise_multiplier * self.max_grad_norm
            noise = torch.from_numpy(self.randomness.normal(sum(p.numel() for p in self.params)) * deviation)
            sums = torch.cat([p.summed_grad.reshape(-1) for p in self.params])
            noisy = (sums.double() + noise).to(sums.dtype)
            for p, part in zip(self.params, noisy.split([p.numel() for p in self.params]), strict=True):
                p.grad = part.view_as(p)

    return NoisyOptimizer


# ── what Opacus cannot take ──────────────────────────────────────────────────────────────────────────
def must_suit(model: GraftedModel, grad_sample_mode: str, example: Tensor) -> None:
    """Compare Opacus's clipped sum with a loop over single examples, on two random inputs, in float64.

    A layer that hides from its hooks gives a wrong gradient without a word, so no list of layers is trusted.

    Args:
        grad_sample_mode: "hooks" or "ghost".
        example: any inputs (n, …): their shape is used, their values are not.

    Raises:
        Refused: they differ, or Opacus fails; says what to write instead.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn((2, *example.shape[1:]), generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1])
    probe = copy.deepcopy(model).double()
    parameters = list(probe.trainable_parameters().values())
    for p in parameters:  # at their first values some adapters have no gradient to compare
        p.data.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64), alpha=0.05)
    wanted = [torch.zeros_like(p) for p in parameters]
    for i in range(2):
        loss = F.cross_entropy(probe(inputs[i : i + 1]), labels[i : i + 1])
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        single = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        norm = float(_norms([g[None] for g in single])[0]) + 1e-6  # as Opacus has it
        for total, gradient in zip(wanted, single, strict=True):
            total.add_(gradient, alpha=_PROBE_NORM / max(norm, _PROBE_NORM))

    noiseless = Mechanism(0.0, 1.0, 1, 1.0, _PROBE_NORM, "example", grad_sample_mode)
    remedy = "write adapter.method: lora, bottleneck, scale-shift, bias or head"
    if grad_sample_mode == "ghost":
        remedy = "write privacy.grad_sample_mode: hooks"
    before = [p.detach().clone() for p in parameters]
    try:
        with wrapped(probe, torch.optim.SGD(parameters, lr=1.0), noiseless, randomness=Randomness(b"probe")) as private:
            private.step(inputs, labels)
    except (RuntimeError, ValueError, AttributeError, TypeError, NotImplementedError, KeyError, IndexError) as error:
        raise Refused(
            f"Opacus cannot take adapter {model.method} on this backbone ({type(error).__name__}); {remedy}"
        ) from error
    off = _norms([(b - p.detach() - w)[None] for b, p, w in zip(before, parameters, wanted, strict=True)])
    if not float(off) < 1e-4 * _PROBE_NORM:
        raise Refused(f"Opacus does not see every layer that adapter {model.method} trains here; {remedy}")


def positions_by_patient(identities: Sequence[str], rows: np.ndarray, where: str) -> list[np.ndarray]:
    """Positions within a split of each patient's examples.

    Args:
        identities: of every row of the file.
        rows: row numbers of the split.

    Raises:
        UserError: a row that does not say whose it is.
    """
    found: dict[str, list[int]] = {}
    for position, row in enumerate(rows.tolist()):
        identity = str(identities[row]).strip()
        if not identity:
            raise UserError("a row without a patient", where=where, remedy="say for every row whose it is")
        found.setdefault(identity, []).append(position)
    return [np.array(positions, np.int64) for positions in found.values()]
