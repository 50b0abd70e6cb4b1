"""DP-SGD against slow loops, moments and an independent accountant."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fedgraft.client.data.split import Split
from fedgraft.client.privacy import choose_engine, layer_gradients
from fedgraft.client.privacy.dp_sgd import PrivateTraining, make_private, train_privately
from fedgraft.client.privacy.ghost_clipping import ghost_hooks_class
from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.client.privacy.mechanism import Mechanism, calibrate
from fedgraft.client.privacy.opacus_hooks import hooks_class
from fedgraft.client.privacy.patients import IMAGES_PER_PATIENT, positions_by_patient
from fedgraft.client.training.optimizers import new_optimizer
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.table import TablePreparation
from fedgraft.common.model.grafted_model import GraftedModel, graft
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.train_section import OptimizerSection
from fedgraft.common.privacy.randomness import Randomness, poisson_sample
from fedgraft.common.tasks.classification import cross_entropies

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")
METHODS = ("head", "lora", "bottleneck", "scale-shift", "bias")


@cache
def backbone(name: str) -> Backbone:
    return load_backbone(
        name, image_size=8 if name != "mlp" else None, columns=5, hidden=(8, 6), seed=0
    )


def example(name: str, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, 5) if name == "mlp" else (n, 3, 8, 8)
    inputs = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (n,), generator=generator)


def lively(name: str, method: str, seed: int = 0) -> GraftedModel:
    """A float64 model whose adapters have left their first values, where some gradients are
    zero.
    """
    model = graft(backbone(name), method=method, classes=3, rank=2, width=3, seed=seed).double()
    generator = torch.Generator().manual_seed(seed)
    for p in model.trainable_parameters().values():
        p.data.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64), alpha=0.1)
    return model


def by_hand(
    model: GraftedModel, inputs: Tensor, labels: Tensor, norm: float, owners: Tensor | None = None
) -> Tensor:
    """The clipped sum, flat: one example at a time, no Opacus. A patient's gradient is the mean of
    theirs.
    """
    parameters = list(model.trainable_parameters().values())
    single = []
    for i in range(len(labels)):
        loss = F.cross_entropy(model(inputs[i : i + 1]), labels[i : i + 1])
        single.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    rows = torch.stack(single)
    if owners is not None:
        rows = torch.stack([rows[owners == k].mean(0) for k in range(int(owners.max()) + 1)])
    return sum(
        (row * min(1.0, norm / (float(row.norm()) + 1e-6)) for row in rows),
        torch.zeros_like(rows[0]),
    )


def noisy_step(
    model: GraftedModel,
    data: tuple[Tensor, Tensor] | None,
    *,
    sigma: float = 0.0,
    norm: float = 1.0,
    mode: str = "hooks",
    expected: float = 1.0,
    owners: Tensor | None = None,
    randomness: Randomness | None = None,
    **options: Any,
) -> Tensor:
    """What one step subtracts from the parameters, flat: SGD with learning rate 1."""
    parameters = list(model.trainable_parameters().values())
    before = torch.cat([p.detach().flatten() for p in parameters])
    unit = "example" if owners is None else "patient"
    mechanism = Mechanism(sigma, 1.0, 1, expected, norm, unit, mode)
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    training = PrivateTraining(mechanism, cross_entropies, **options)
    with make_private(model, optimizer, training, randomness or Randomness()) as private:
        if data is None:
            private.step_without_examples()
        else:
            private.step(*data, owners)
    return before - torch.cat([p.detach().flatten() for p in parameters])


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


# ── gradients ─────────────────────────────────────────────────────────────────────────────────────
@settings(max_examples=20, deadline=None)
@given(
    method=st.sampled_from((*METHODS, "full")),
    mode=st.sampled_from(("hooks", "ghost")),
    n=st.integers(1, 7),
    norm=st.sampled_from((1e-3, 0.3, 5.0, 1e6)),
    expected=st.sampled_from((1.0, 3.5)),
    seed=st.integers(0, 1000),
)
def test_the_clipped_sum_is_that_of_a_loop_on_a_table(
    method, mode, n, norm, expected, seed
) -> None:
    """Clipping of a batch's gradient instead of each example's, or a division by the batch as it
    came out.
    """
    model, data = (
        lively("mlp", method if method != "bottleneck" else "bias", seed),
        example("mlp", n, seed),
    )
    wanted = by_hand(model, *data, norm) / expected
    assert relative(noisy_step(model, data, norm=norm, mode=mode, expected=expected), wanted) < 1e-6


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("method", METHODS)
def test_the_clipped_sum_is_that_of_a_loop_on_images(method: str, mode: str) -> None:
    """A convolution whose gradients Opacus gets wrong: with channels-last images it did, without a
    word.
    """
    model, data = lively("cifar-resnet20", method), example("cifar-resnet20", 3)
    wanted = by_hand(model, *data, 0.5)
    assert relative(noisy_step(model, data, norm=0.5, mode=mode), wanted) < 1e-6


@pytest.mark.parametrize("ghost", [False, True])
def test_layers_see_contiguous_memory(ghost: bool) -> None:
    """Opacus 1.6 reads a convolution's windows by strides; on channels-last inputs it gave
    zeros.
    """
    layer = torch.nn.Conv2d(4, 3, 3, padding=1).double()
    inputs = torch.randn((2, 4, 6, 6), dtype=torch.float64).contiguous(
        memory_format=torch.channels_last
    )
    wanted = []
    for i in range(2):
        (gradient,) = torch.autograd.grad((layer(inputs[i : i + 1]) ** 2).sum(), [layer.weight])
        wanted.append(gradient)
    hooks = (ghost_hooks_class if ghost else hooks_class)()(layer, loss_reduction="sum")
    (layer(inputs) ** 2).sum().backward()
    norms = (
        vars(layer.weight)["_norm_sample"]
        if ghost
        else vars(layer.weight)["grad_sample"].flatten(1).norm(dim=1)
    )
    hooks.cleanup()
    torch.testing.assert_close(norms, torch.stack(wanted).flatten(1).norm(dim=1))


@pytest.mark.parametrize(
    ("chosen", "kind"),
    [
        (OptimizerSection(name="sgd", momentum=0.9, weight_decay=0.01), torch.optim.SGD),
        (OptimizerSection(name="adamw", weight_decay=0.01), torch.optim.AdamW),
    ],
)
@pytest.mark.parametrize(
    ("method", "known"), [("lora", True), ("lora", False), ("head", True), ("bias", False)]
)
def test_several_steps_are_those_of_opacus_and_its_optimizer(
    method, known, chosen, kind, monkeypatch
) -> None:
    """A sum that is divided twice or left over for the next step. Opacus 1.6 from end to end,
    without noise.
    """
    from opacus.grad_sample import GradSampleHooks
    from opacus.optimizers import DPOptimizer

    monkeypatch.setattr(choose_engine, "knows_layers", lambda model: known)
    batches = [example("cifar-resnet20", n, n) for n in (3, 1, 5)]
    ours, theirs = (lively("cifar-resnet20", method) for _ in range(2))
    optimizer = new_optimizer(ours.trainable_parameters().values(), chosen, 0.01)
    training = PrivateTraining(Mechanism(0.0, 0.5, 3, 3.5, 0.5), cross_entropies)
    with make_private(ours, optimizer, training, Randomness()) as private:
        for batch in batches:
            private.step(*batch)

    hooks = GradSampleHooks(theirs.train(), loss_reduction="mean")
    momentum = {"momentum": 0.9} if chosen.name == "sgd" else {}
    reference = DPOptimizer(
        kind(theirs.trainable_parameters().values(), lr=0.01, weight_decay=0.01, **momentum),
        noise_multiplier=0.0, max_grad_norm=0.5, expected_batch_size=3.5,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    for inputs, labels in batches:
        reference.zero_grad()
        F.cross_entropy(theirs(inputs), labels).backward()
        reference.step()
    hooks.cleanup()
    for a, b in zip(
        ours.trainable_parameters().values(), theirs.trainable_parameters().values(), strict=True
    ):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-7, atol=1e-9)


def test_channels_last_images_are_clipped_alike() -> None:
    """Opacus 1.6 reads a convolution's windows by strides: a sum that is not clipped has no ε."""
    model, (inputs, labels) = lively("cifar-resnet20", "lora"), example("cifar-resnet20", 3)
    wanted = by_hand(model, inputs, labels, 1e-2)
    turned = inputs.contiguous(memory_format=torch.channels_last)
    for mode in ("hooks", "ghost"):
        assert (
            relative(noisy_step(model.double(), (turned, labels), norm=1e-2, mode=mode), wanted)
            < 1e-6
        )
        model.load_adapter_state(lively("cifar-resnet20", "lora").adapter_state())


@settings(max_examples=15, deadline=None)
@given(
    owners=st.lists(st.integers(0, 3), min_size=1, max_size=8),
    norm=st.sampled_from((1e-2, 1.0, 1e3)),
)
def test_a_patient_is_clipped_as_one(owners: list[int], norm: float) -> None:
    """Many images of a patient, each clipped by itself, would move the sum by their number."""
    _, numbers = np.unique(owners, return_inverse=True)
    model, data, whose = (
        lively("mlp", "lora"),
        example("mlp", len(owners)),
        torch.from_numpy(numbers),
    )
    wanted = by_hand(model, *data, norm, whose)
    step = noisy_step(model, data, norm=norm, owners=whose)
    assert relative(step, wanted) < 1e-6
    assert float(step.norm()) <= norm * len(set(owners)) * (1 + 1e-9)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300])
def test_a_broken_example_counts_as_nothing(mode: str, bad: float) -> None:
    """One NaN in the sum tells that its example was there, and takes the model with it."""
    model, (inputs, labels) = lively("mlp", "full"), example("mlp", 4)
    good = by_hand(model, inputs[1:], labels[1:], 1.0)
    inputs = inputs.clone()
    inputs[0] = (
        bad if not math.isnan(bad) else math.inf
    )  # NaN itself is a missing value to this network
    if bad == 1e300:
        inputs[0, 0] = -bad
    alone = noisy_step(lively("mlp", "full"), (inputs[:1], labels[:1]), mode=mode)
    assert bool(torch.isfinite(alone).all())
    assert float(alone.norm()) <= 1 + 1e-9
    step = noisy_step(model, (inputs, labels), mode=mode)
    assert bool(torch.isfinite(step).all())
    assert float((step - good - alone).norm()) < 1e-6


# ── noise ─────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("seed", [None, b"a seed"])
@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_moments_of_the_noise_of_a_real_step(mode: str, seed: bytes | None) -> None:
    """Noise of another scale or shape, of a scale that depends on the data, or left out where no
    unit was drawn.

    Step = (sum + N(0, (σC)²)) / expected: with σ = 1.5, C = 0.2, expected = 4 the deviation is
    0.075 a value. Of k = 35,103 values, mean, variance, skewness and kurtosis have standard errors
    s/√k, s²√(2/k), √(6/k), √(24/k).
    """
    sigma, norm, expected = 1.5, 0.2, 4.0
    spread = sigma * norm / expected
    for data in (example("mlp", 3), None):
        model = graft(
            load_backbone("mlp", columns=5, hidden=(180, 180), seed=0), method="full", classes=3
        ).double()
        wanted = 0.0 if data is None else by_hand(model, *data, norm) / expected
        options: dict[str, Any] = {
            "mode": mode,
            "expected": expected,
            "randomness": Randomness(seed),
        }
        noise = (noisy_step(model, data, sigma=sigma, norm=norm, **options) - wanted).numpy()
        k = len(noise)
        assert k == 35_103
        assert abs(noise.mean()) < 5 * spread / math.sqrt(k)
        assert abs(noise.var() - spread**2) < 5 * spread**2 * math.sqrt(2 / k)
        assert abs(stats.skew(noise)) < 5 * math.sqrt(6 / k)
        assert abs(stats.kurtosis(noise)) < 5 * math.sqrt(24 / k)
        assert stats.kstest(noise / spread, "norm").pvalue > 1e-6


def test_draws_are_fresh_and_uniform() -> None:
    """Noise that can be repeated can be subtracted; 32 bits of seed can be tried one by one."""
    one, two = Randomness(), Randomness()
    assert not np.intersect1d(one.normal(1000), two.normal(1000)).size
    draws = one.uniform(50_000)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-6
    assert len(one.normal(7)) == 7
    assert np.array_equal(Randomness(b"x").normal(9), Randomness(b"x").normal(9))
    assert not np.array_equal(Randomness(b"x").normal(9), Randomness(b"y").normal(9))


def test_batch_sizes_are_binomial() -> None:
    """Batches of a fixed size, or a shuffle cut into pieces, do not have the ε that is counted for
    Poisson sampling.

    4,000 draws of B(100, 0.07): χ² over the sizes, and each unit as often as the others.
    """
    randomness, units, rate, times = Randomness(b"binomial"), 100, 0.07, 4000
    drawn = [poisson_sample(units, rate, randomness) for _ in range(times)]
    sizes = np.bincount([len(each) for each in drawn], minlength=20)[:20]
    wanted = times * stats.binom.pmf(np.arange(20), units, rate)
    kept = wanted > 5
    observed, expected = [*sizes[kept], sizes[~kept].sum()], [*wanted[kept], wanted[~kept].sum()]
    assert (
        stats.chisquare(observed, np.array(expected) * sum(observed) / sum(expected)).pvalue > 1e-4
    )
    each = np.bincount(np.concatenate(drawn), minlength=units)
    assert abs((each - times * rate) / math.sqrt(times * rate * (1 - rate))).max() < 5


# ── training ──────────────────────────────────────────────────────────────────────────────────────
class Table:
    """Records of a small random table, which write down what was read."""

    def __init__(self, rows: int) -> None:
        generator = np.random.default_rng(0)
        self.values = torch.from_numpy(generator.normal(size=(rows, 5)).astype(np.float32))
        self.labels = generator.integers(0, 3, rows)
        self.read_sizes: list[int] = []

    def read(self, rows: np.ndarray) -> Tensor:
        return self.values[torch.from_numpy(np.asarray(rows))]

    def prepare(self, rows: np.ndarray, preparation: Any) -> Batch:
        self.read_sizes.append(len(rows))
        return preparation(self.read(rows))

    def targets(self, rows: np.ndarray, preparation: Any) -> Tensor:
        return torch.from_numpy(self.labels[rows])


def table(rows: int = 60) -> Split:
    return Split(Table(rows), np.arange(rows), TablePreparation())  # type: ignore[arg-type]


def run(
    model: GraftedModel,
    split: Split,
    mechanism: Mechanism,
    seed: bytes | None = b"s",
    **options: Any,
) -> None:
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=0.01)
    training = PrivateTraining(mechanism, cross_entropies, **options)
    train_privately(model, split, optimizer, training, Randomness(seed))


def test_real_batches_are_poisson_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poisson sampling that is announced and not used; an empty batch that stops the training or
    takes no step.
    """
    monkeypatch.setattr(
        "fedgraft.client.data.split.KEPT_BYTES", -1
    )  # so that every batch is really read
    split = table(40)
    mechanism = Mechanism(1.0, 0.03, 1000, 1.2, 1.0)
    model = graft(backbone("mlp"), method="head", classes=3)
    run(model, split, mechanism)
    sizes = np.array(split.records.read_sizes[1:])  # type: ignore[attr-defined]
    empty = mechanism.steps - len(sizes)
    spread = math.sqrt(1000 * 0.97**40 * (1 - 0.97**40))
    assert abs(empty - 1000 * 0.97**40) < 5 * spread  # (1 − q)ⁿ of the steps have nobody in them
    mean, variance = sizes.sum() / 1000, (sizes**2).sum() / 1000 - (sizes.sum() / 1000) ** 2
    assert mean == pytest.approx(1.2, abs=5 * math.sqrt(1.164 / 1000))
    assert variance == pytest.approx(40 * 0.03 * 0.97, rel=0.2)


def test_targets_are_changed_with_their_records() -> None:
    """An image that is mirrored and a mask that is not: what is learnt is not there."""
    mechanism = Mechanism(1.0, 0.2, 5, 12.0, 1.0)
    other = table()
    other.records.labels[:] = 2 - other.records.labels
    states = []
    for split, change in ((table(), True), (other, False)):
        model = graft(backbone("mlp"), method="head", classes=3)

        def augment(
            batch: Batch, labels: Tensor, generator: torch.Generator, *, swap: bool = change
        ) -> tuple[Batch, Tensor]:
            return batch, 2 - labels if swap else labels

        run(model, split, mechanism, augment=augment)
        states.append(model.adapter_state())
    first, second = states
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("method", ["head", "lora", "full"])
def test_training_leaves_no_trace_but_the_adapter(method: str, mode: str) -> None:
    """A frozen value that moved, a name with a prefix, a hook or an attribute that stayed, a state
    that differs.
    """
    model = graft(backbone("mlp"), method=method, classes=3, rank=2)
    frozen, before, names = (
        model.frozen_fingerprint(),
        model.adapter_state(),
        list(model.state_dict()),
    )
    look = {
        name: (set(vars(m)), len(m._forward_hooks), len(m._backward_hooks))
        for name, m in model.named_modules()
    }
    run(model, table(), Mechanism(1.0, 0.2, 5, 12.0, 1.0, "example", mode), proximal=0.1)
    after = model.adapter_state()
    assert model.frozen_fingerprint() == frozen
    assert list(model.state_dict()) == names
    assert list(after) == list(before)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert not model.training
    assert not any(m.training for m in model.modules())
    assert all(not vars(p) and p.grad is None for p in model.parameters())
    assert look == {
        name: (set(vars(m)), len(m._forward_hooks), len(m._backward_hooks))
        for name, m in model.named_modules()
    }
    other = graft(backbone("mlp"), method=method, classes=3, rank=2)
    other.load_adapter_state(after)
    inputs = table().records.read(np.arange(10))
    assert torch.equal(model(inputs), other(inputs))


def test_an_error_within_a_step_leaves_no_trace() -> None:
    """Hooks that stay after a failed round would count the next one's gradients, or keep patients'
    activations.
    """
    model = graft(backbone("mlp"), method="lora", classes=3)
    with pytest.raises(RuntimeError):
        noisy_step(model, (torch.zeros(2, 99), torch.tensor([0, 1])))
    assert all(not vars(p) for p in model.parameters())
    assert not any(hasattr(m, "activations") or m.training for m in model.modules())


def test_a_seed_repeats_and_no_seed_does_not() -> None:
    """A simulation that cannot be repeated, or a deployment whose noise can."""
    states = []
    for seed in (b"1", b"1", b"2", None, None):
        model = graft(backbone("mlp"), method="lora", classes=3)
        run(model, table(), Mechanism(1.0, 0.2, 3, 12.0, 1.0), seed)
        states.append(torch.cat([t.flatten() for t in model.adapter_state().values()]))
    same = [[torch.equal(a, b) for b in states] for a in states]
    assert same[0] == [True, True, False, False, False]
    assert sum(map(sum, same)) == 5 + 2


def test_the_proximal_term_stands_behind_the_noise() -> None:
    """A proximal gradient that is clipped with the data's, or that scales the noise. μ(w − w₀)
    after a first step.
    """
    model, data = lively("mlp", "lora"), example("mlp", 3)
    parameters = list(model.trainable_parameters().values())
    start = torch.cat([p.detach().flatten() for p in parameters])
    mechanism = Mechanism(0.0, 1.0, 2, 1.0, 1e-3)
    training = PrivateTraining(mechanism, cross_entropies, proximal=100.0)
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    with make_private(model, optimizer, training, Randomness()) as private:
        private.step(*data)
        first = torch.cat([p.detach().flatten() for p in parameters])
        private.step(*data)
    second = torch.cat([p.detach().flatten() for p in parameters])
    model.load_adapter_state(
        dict(zip(model.trainable_parameters(), _unflat(first, parameters), strict=True))
    )
    wanted = first - 0.5 * (by_hand(model, *data, 1e-3) + 100.0 * (first - start))
    assert relative(second, wanted) < 1e-9


def _unflat(flat: Tensor, like: list[Any]) -> list[Tensor]:
    return [
        part.view_as(p) for part, p in zip(flat.split([p.numel() for p in like]), like, strict=True)
    ]


# ── calibration ───────────────────────────────────────────────────────────────────────────────────
def plan(**privacy: Any) -> Plan:
    return Plan.model_validate(
        {
            "name": "tiny",
            "task": {"kind": "tabular-classification", "classes": ["no", "yes"], "columns": ["a"]},
            "backbone": {"name": "mlp"},
            "adapter": {"method": "lora"},
            "train": {"rounds": 7, "local_epochs": 2, "batch_size": 32},
            "privacy": {"mode": "sample", "delta": 1e-5, **privacy},
        }
    )


@pytest.mark.parametrize(("units", "target"), [(588, 3.0), (85, 1.0), (20, 8.0)])
def test_noise_is_calibrated_over_all_rounds(units: int, target: float) -> None:
    """ε of one round, or of one epoch, in place of all of them. By Google's accountant, over the
    whole run.
    """
    dp_accounting = pytest.importorskip("dp_accounting")
    mechanism = calibrate(plan(target_epsilon=target, accountant="rdp"), units)
    assert mechanism.sample_rate == min(1.0, 32 / units)
    assert mechanism.steps == 2 * math.ceil(units / 32)
    assert mechanism.expected == min(32, units)
    accountant = dp_accounting.rdp.RdpAccountant()
    event = dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
    accountant.compose(
        dp_accounting.PoissonSampledDpEvent(mechanism.sample_rate, event), 7 * mechanism.steps
    )
    spent = accountant.get_epsilon(1e-5)
    assert 0.97 * target < spent <= target * 1.001


def test_noise_that_is_given_is_used_and_the_floor_holds() -> None:
    """The plan's own noise multiplier changed, or a node's floor that is not one."""
    given = plan(noise_multiplier=0.9)
    assert calibrate(given, 100).noise_multiplier == 0.9
    assert calibrate(given, 100, least_noise=1.3).noise_multiplier == 1.3


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_what_opacus_cannot_take_is_refused_with_an_alternative(mode: str) -> None:
    """BatchNorm trained under DP mixes examples; the run must not begin."""
    model = graft(backbone("cifar-resnet20"), method="full", classes=3)
    with pytest.raises(Refused, match=r"BatchNorm.*lora, bottleneck"):
        check_gradients(model, mode, torch.randn(2, 3, 8, 8), cross_entropies)
    for method in METHODS:
        fine = graft(backbone("cifar-resnet20"), method=method, classes=3, rank=2)
        before = fine.adapter_state()
        check_gradients(fine, mode, torch.randn(2, 3, 8, 8), cross_entropies)
        assert all(torch.equal(before[name], t) for name, t in fine.adapter_state().items())


def test_a_layer_that_hides_from_opacus_is_found() -> None:
    """A weight that is used without calling its layer has no gradient that Opacus sees, and raises
    nothing.
    """
    model = graft(backbone("mlp"), method="head", classes=3)
    head = model.net.get_submodule(model.head_name)

    def add_unseen(module: Any, inputs: Any, output: Any) -> Any:
        return output + F.linear(inputs[0], module.weight)

    head.register_forward_hook(add_unseen)
    with pytest.raises(Refused, match="does not see every layer"):
        check_gradients(model, "hooks", torch.randn(2, 5), cross_entropies)


def test_a_norm_of_which_the_terms_cancel_is_not_taken_for_zero() -> None:
    """An example whose gradient is not clipped, since ‖Σ g_t x_tᵀ‖² came out of float32 as zero.

    Two tokens, x and x + ½, with g and −g: the gradient is g (½, …, ½)ᵀ, so of norm ‖g‖ · ½ √64 = 4
    ‖g‖, where ‖x‖² is about 64 · 10⁸.
    """
    layer, x = torch.nn.Linear(64, 3, bias=False), torch.full((1, 1, 64), 1e4)
    hooks = ghost_hooks_class()(layer, loss_reduction="sum", max_grad_norm=1.0)
    y = layer(torch.cat([x, x + 0.5], dim=1))
    g = torch.tensor([[[1.0, 2.0, 2.0], [-1.0, -2.0, -2.0]]])
    y.backward(g)
    assert float(hooks.get_norm_sample()) == pytest.approx(4 * 3)
    assert float(hooks.get_clipping_coef()) == pytest.approx(1 / 12, rel=1e-4)
    hooks.cleanup()


def test_the_arithmetic_that_is_trained_is_probed_too(monkeypatch) -> None:
    """A wrong gradient in float32 only, on a machine whose library for convolutions is broken."""
    gradients = layer_gradients._WEIGHT_GRADIENTS
    right = gradients[torch.nn.Conv2d]
    monkeypatch.setitem(gradients, torch.nn.Conv2d, lambda *given: -right(*given))
    model = graft(backbone("cifar-resnet8"), method="lora", classes=3)
    with pytest.raises(Refused, match="does not see every layer"):
        check_gradients(model, "hooks", example("cifar-resnet8", 2)[0], cross_entropies)


def test_ghost_clipping_of_patients_is_refused() -> None:
    """The norm of a patient's gradient is not to be had from the norms of their examples'."""
    with pytest.raises(Refused, match="hooks"):
        noisy_step(
            lively("mlp", "lora"), example("mlp", 2), mode="ghost", owners=torch.tensor([0, 0])
        )


def test_patients_and_their_rows() -> None:
    """A row without a patient hidden among another's, or rows of one patient counted as several."""
    found = positions_by_patient(["a", "b", "a", "c", "b "], np.array([4, 0, 1, 2]), "x.csv")
    assert [each.tolist() for each in found] == [[0, 2], [1, 3]]
    with pytest.raises(UserError, match="without a patient"):
        positions_by_patient(["a", " "], np.array([0, 1]), "x.csv")


def test_a_patient_of_many_images_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patient of a thousand images in one batch fills the memory."""
    monkeypatch.setattr("fedgraft.client.data.split.KEPT_BYTES", -1)
    split = table(100)
    patients = [np.arange(90), np.arange(90, 95), np.arange(95, 100)]
    run(
        graft(backbone("mlp"), method="head", classes=3),
        split,
        Mechanism(1.0, 1.0, 4, 3.0, 1.0, "patient"),
        patients=patients,
    )
    assert split.records.read_sizes[1:] == [IMAGES_PER_PATIENT + 10] * 4  # type: ignore[attr-defined]
