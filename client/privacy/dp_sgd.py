"""Local training under sample-level differential privacy: DP-SGD.

    Poisson sampling → a gradient for each unit → clipped → summed → Gaussian noise → divided →
    optimizer

Abadi et al., "Deep learning with differential privacy" (CCS 2016), algorithm 1. The unit is an
example, or a patient with all of their examples. This is the only file that wraps or unwraps a
model.

A unit's gradient is that of `client/privacy/per_example.py`, or of Opacus's hooks for layers that
are not known there and for ghost clipping. Opacus's optimizer is not used: noise and sampling draw
on the operating system, since a torch generator keeps 32 bits of its seed; a gradient that is not
finite counts as zero, since one NaN in a sum would tell that its example was there; the last step
of rounding, to float32, follows the noise. The tests compare with Opacus's hooks and optimizer.
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
from torch import Tensor, nn

from fedgraft.client.data.examples import Examples
from fedgraft.client.privacy.per_example import Rows, Tape, clip_and_sum, mean_by_owner, takes
from fedgraft.client.training.local_steps import Augment
from fedgraft.client.training.optimizers import Steps
from fedgraft.common.errors import Code, Refused, UserError
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.privacy.accounting import Row, noise_for
from fedgraft.common.privacy.randomness import Randomness, poisson_sample

IMAGES_PER_PATIENT = (
    16  # of a patient with more, so many are drawn anew in each step: memory stays bounded
)
_PROBE_NORM = 1e-3  # small, so that a wrong norm of a gradient changes the clipped sum
_SIGNS_OF_OPACUS = ("grad_sample", "_forward_counter", "_current_grad_sample", "_norm_sample")


@dataclass(frozen=True)
class Mechanism:
    """The noisy steps of one round at one node: what is run, and what is counted.

    Attributes:
        noise_multiplier: σ; the noise on a sum has standard deviation σ · max_grad_norm.
        sample_rate: q, the probability of each unit to enter a step, by its own coin.
        steps: optimizer steps of a round.
        expected: units that a step is expected to have; noisy sums are divided by it.
        max_grad_norm: L2 norm that each unit's gradient is clipped to; in mode local, the whole
            update.
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


def mechanism_for(
    plan: Agreement, units: int, *, least_noise: float = 0.0, beside: tuple[Row, ...] = ()
) -> Mechanism:
    """The noisy steps of one round, with the noise that all rounds together need.

    σ is the least with which *all* steps of *all* planned rounds stay within
    `privacy.target_epsilon`, or the plan's own noise_multiplier. In mode local a round is one step:
    the node's whole update.

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
        sigma = _noise_for(
            wanted.target_epsilon, wanted.delta, rate, all_steps, wanted.accountant, beside
        )
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


# ── training ──────────────────────────────────────────────────────────────────────────────────────
def train_privately(
    model: GraftedModel,
    split: Examples,
    *,
    mechanism: Mechanism,
    optimizer: Steps,
    patients: Sequence[np.ndarray] | None = None,
    proximal: float = 0.0,
    augment: Augment = lambda batch, generator: batch,
    randomness: Randomness,
) -> None:
    """Run a mechanism's steps on a split, in place. Nothing about the data comes back but the
    model.

    Args:
        patients: positions within the split of each patient's examples, where the unit is the
            patient.
        proximal: μ of FedProx. Its gradient does not look at the data: it is added behind the
            noise.

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
            inputs = augment(split.inputs(positions), randomness.generator())
            private.step(inputs, split.labels[positions], owners)


def _images_of(
    patients: Sequence[np.ndarray], drawn: np.ndarray, randomness: Randomness
) -> tuple[np.ndarray, Tensor]:
    """Positions of the drawn patients' examples, and which of the drawn patients each belongs
    to.
    """
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

    def __init__(
        self,
        model: GraftedModel,
        hooks: Any,
        optimizer: Steps | None,
        mechanism: Mechanism,
        randomness: Randomness,
        proximal: float,
    ) -> None:
        self.model, self.hooks, self.mechanism = model, hooks, mechanism
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer, self._randomness, self._proximal = optimizer, randomness, proximal
        self._received = [p.detach().clone() for p in self.parameters] if proximal else []

    def step(self, inputs: Batch | Tensor, labels: Tensor, owners: Tensor | None = None) -> None:
        """One noisy step on examples `(n, …)`; their patients are numbered by `owners` (n,) from
        0.
        """
        self._take(self.gradient(inputs, labels, owners))

    def step_without_examples(self) -> None:
        """A step into which no unit was drawn: noise alone. To leave it out would tell that nobody
        was there.
        """
        self._take(self._released({}))

    def gradient(
        self, inputs: Batch | Tensor, labels: Tensor, owners: Tensor | None = None
    ) -> dict[Tensor, Tensor]:
        """What a step releases, by parameter: clipped, summed, noised and divided."""
        return self._released(self._clipped_sums(inputs, labels, owners))

    @torch.no_grad()
    def _take(self, gradient: dict[Tensor, Tensor]) -> None:
        assert self._optimizer is not None
        self._optimizer.zero_grad(set_to_none=True)  # nothing but what was noised
        for p in self.parameters:
            p.grad = gradient[p]
        for p, received in zip(
            self.parameters, self._received, strict=False
        ):  # μ(w − w_received), behind the noise
            gradient[p].add_(p - received, alpha=self._proximal)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _released(self, sums: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Noise on the sums of all parameters at once, added in float64, and the division; no sum
        counts as zero.
        """
        flat = torch.cat(
            [sums[p].reshape(-1) if p in sums else p.new_zeros(p.numel()) for p in self.parameters]
        )
        deviation = self.mechanism.noise_multiplier * self.mechanism.max_grad_norm
        noise = torch.from_numpy(self._randomness.normal(len(flat))).mul_(deviation)
        noisy = noise.add_(flat).to(flat.dtype).div_(self.mechanism.expected)
        parts = noisy.split([p.numel() for p in self.parameters])
        return {p: part.view_as(p) for p, part in zip(self.parameters, parts, strict=True)}

    def _clipped_sums(
        self, inputs: Batch | Tensor, labels: Tensor, owners: Tensor | None
    ) -> dict[Tensor, Tensor]:
        """The sum over units of each one's clipped gradient, by parameter."""
        losses, most = (
            F.cross_entropy(self.model(inputs), labels, reduction="none"),
            self.mechanism.max_grad_norm,
        )
        if isinstance(self.hooks, Tape):
            return self.hooks.clipped_sums(losses, most, owners)
        if self.mechanism.grad_sample_mode == "ghost":
            return self._by_norms(inputs, labels, losses)
        losses.sum().backward()
        found: list[Rows] = []
        for p in self.parameters:
            rows, p.grad = vars(p).get("grad_sample"), None
            if rows is None or len(rows) != len(
                losses
            ):  # or a gradient would be missing in the norm
                raise RuntimeError("Opacus did not see every example once at every trained layer")
            vars(p)["grad_sample"] = None
            found.append(Rows(p, rows if owners is None else mean_by_owner(rows, owners)))
        with torch.no_grad():
            return clip_and_sum(found, most)

    def _by_norms(
        self, inputs: Batch | Tensor, labels: Tensor, losses: Tensor
    ) -> dict[Tensor, Tensor]:
        """Ghost clipping (Li et al. 2022, section 4; Bu et al. 2022): norms first, then the clipped
        sum itself.

        Two passes backwards, and no gradient of a single example is ever held.
        """
        losses.sum().backward(retain_graph=True)
        finite = torch.isfinite(self.hooks.get_norm_sample())
        for p in self.parameters:
            p.grad = None
        if not bool(finite.all()):
            return (
                self._clipped_sums(inputs[finite], labels[finite], None)
                if bool(finite.any())
                else {}
            )
        factors = self.hooks.get_clipping_coef()
        self.hooks.disable_hooks()
        (factors * losses).sum().backward()
        self.hooks.enable_hooks()
        sums: dict[Tensor, Tensor] = {p: p.grad for p in self.parameters if p.grad is not None}
        for p in sums:
            p.grad = None
        return sums


# ── wrapping and unwrapping ───────────────────────────────────────────────────────────────────────
@contextlib.contextmanager
def wrapped(
    model: GraftedModel,
    optimizer: Steps | None,
    mechanism: Mechanism,
    *,
    randomness: Randomness,
    proximal: float = 0.0,
) -> Iterator[PrivateModel]:
    """Attach per-example gradients to a model, and leave no trace of them, whatever happens.

    Args:
        optimizer: over all trainable parameters of the model; None where no step is taken.

    Raises:
        Refused: Opacus cannot take this model.
    """
    ghost = mechanism.grad_sample_mode == "ghost"
    if ghost and mechanism.unit == "patient":
        raise Refused(
            Code.MODEL,
            "ghost clipping knows the norm of an example's gradient, not of a patient's; "
            "write privacy.grad_sample_mode: hooks, or unit: example",
        )
    hooks = None
    try:
        hooks = _hooks(model, ghost, mechanism.max_grad_norm)
        yield PrivateModel(model, hooks, optimizer, mechanism, randomness, proximal)
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
        raise Refused(
            Code.MODEL,
            f"differential privacy needs a gradient for each example, and adapter {model.method}"
            " trains layers with buffers, such as BatchNorm's statistics over a batch, which"
            " Opacus does not take; write adapter.method: lora, bottleneck, scale-shift, bias or"
            " head, which leave them frozen",
        ) from None


@functools.cache
def _hooks_class(ghost: bool) -> Any:
    """Opacus's hooks, told the truth about memory; a slow import, so made on first use."""
    from opacus.grad_sample import GradSampleHooks
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
        GradSampleHooksFastGradientClipping,
    )

    # The first trained layer's input needs no gradient, which torch finds worth a word at every
    # step.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    base: Any = GradSampleHooksFastGradientClipping if ghost else GradSampleHooks

    class Hooks(base):
        def rearrange_grad_samples(self, **given: Any) -> tuple[list[Tensor], Tensor]:
            """Contiguous: Opacus 1.6 reads the windows of a convolution by strides that it takes
            for granted.

            Channels-last images gave wrong gradients and, in ghost mode, sums that were not
            clipped.
            """
            activations, backprops = super().rearrange_grad_samples(**given)
            if ghost and isinstance(
                given["module"], nn.Linear
            ):  # over tokens, terms can cancel: float32 says zero
                backprops = backprops.double()
            return [tensor.contiguous() for tensor in activations], backprops.contiguous()

        def get_norm_sample(self) -> Tensor:
            """In float64, whatever each layer's are in."""
            for p in self.trainable_parameters:
                p._norm_sample = p._norm_sample.double()
            return super().get_norm_sample()

    return Hooks


def _unwrap(model: GraftedModel, hooks: Any) -> None:
    if hooks is not None:
        hooks.detach() if isinstance(hooks, Tape) else hooks.cleanup()
    for p in model.parameters():
        p.grad = None
        for name in _SIGNS_OF_OPACUS:
            vars(p).pop(name, None)
    for module in model.modules():
        for name in ("activations", "max_batch_len"):
            vars(module).pop(name, None)
    model.eval()


# ── what Opacus cannot take ───────────────────────────────────────────────────────────────────────
def must_suit(model: GraftedModel, grad_sample_mode: str, example: Tensor) -> None:
    """Compare the clipped sum with a loop over single examples, on two random inputs, in float64
    and in float32.

    A layer that hides from its hooks gives a wrong gradient without a word, so no list of layers is
    trusted; nor is the machine's arithmetic in the type that is trained.

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
        single = [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(parameters, gradients, strict=True)
        ]
        norm = float(torch.cat([g.flatten() for g in single]).norm()) + 1e-6  # as Opacus has it
        for total, gradient in zip(wanted, single, strict=True):
            total.add_(gradient, alpha=_PROBE_NORM / max(norm, _PROBE_NORM))

    noiseless = Mechanism(0.0, 1.0, 1, 1.0, _PROBE_NORM, "example", grad_sample_mode)
    remedy = "write adapter.method: lora, bottleneck, scale-shift, bias or head"
    if grad_sample_mode == "ghost":
        remedy = "write privacy.grad_sample_mode: hooks"
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.float32, 1e-2)):
        probe.to(dtype)
        try:
            with wrapped(probe, None, noiseless, randomness=Randomness(b"probe")) as private:
                gradient = private.gradient(inputs.to(dtype), labels)
        except (
            RuntimeError,
            ValueError,
            AttributeError,
            TypeError,
            NotImplementedError,
            LookupError,
        ) as error:
            raise Refused(
                Code.MODEL,
                f"Opacus cannot take adapter {model.method} on this backbone"
                f" ({type(error).__name__}); {remedy}",
            ) from error
        found = [gradient[p] for p in probe.trainable_parameters().values()]
        off = torch.cat([(f - w).flatten() for f, w in zip(found, wanted, strict=True)])
        if not float(off.norm()) < tolerance * _PROBE_NORM:
            raise Refused(
                Code.MODEL,
                f"Opacus does not see every layer that adapter {model.method} trains here; {remedy}",
            )


def positions_by_patient(
    identities: Sequence[str], rows: np.ndarray, where: str
) -> list[np.ndarray]:
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
            raise UserError(
                "a row without a patient", where=where, remedy="say for every row whose it is"
            )
        found.setdefault(identity, []).append(position)
    return [np.array(positions, np.int64) for positions in found.values()]
