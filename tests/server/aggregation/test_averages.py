"""Node-level privacy and LoRA factors, as functions: moments of the noise, sensitivity, ε, best
low-rank means.
"""

from __future__ import annotations

import math

import dp_accounting as google
import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.accounting import epsilon
from fedgraft.common.privacy.clipping import apply_update, clip_update, norm_of, update_of
from fedgraft.common.privacy.noise_search import noise_for
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.server.aggregation.averages import Quantile, noisy_mean, split_noise
from fedgraft.server.aggregation.central_privacy import CentralPrivacy
from fedgraft.server.aggregation.lora_factors import svd_mean

State = dict[str, Tensor]
SHAPES = {"a.adapter.lora_A.weight": (8, 16, 3, 3), "head.weight": (120, 200), "head.bias": (7,)}


def state_of(seed: int, scale: float = 1.0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def flat(state: State) -> np.ndarray:
    return np.concatenate([state[name].double().numpy().reshape(-1) for name in sorted(state)])


def plan(**privacy: object) -> Plan:
    fraction, rounds = privacy.pop("fraction", 1.0), privacy.pop("rounds", 20)
    content = {
        "name": "tiny",
        "task": {"kind": "image-classification", "classes": ["no", "yes"]},
        "backbone": {"name": "cifar-resnet8"},
        "adapter": {"method": "lora"},
        "train": {"rounds": rounds},
        "aggregate": {"fraction": fraction},
        "privacy": {"mode": "central", **privacy},
    }
    return Plan.model_validate(content)


def by_hand(updates: list[State], clip: float) -> np.ndarray:
    """Σ Δ min(1, C / ‖Δ‖), one update after the other."""
    total = np.zeros(sum(math.prod(shape) for shape in SHAPES.values()))
    for update in updates:
        values = flat(update)
        total += values * min(1.0, clip / max(math.sqrt(float((values**2).sum())), 1e-300))
    return total


# ── noise ─────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("clipping", ["fixed", "adaptive"])
@pytest.mark.parametrize("answered", [5, 2, 0])
def test_moments_of_the_noise_of_a_real_average(answered: int, clipping: str) -> None:
    """Noise of another scale, or a denominator that follows who answered: 1 / 2 of the sum when 5
    were expected.

    z = 1.3, C = 0.4, 5 nodes, all drawn: a value's deviation is s = 0.104, whoever answered;
    adaptive clipping gives a tenth of the budget away: s / √0.9. Of k = 25,159 values, mean,
    variance, skewness and kurtosis have standard errors s/√k, s²√(2/k), √(6/k), √(24/k). Updates
    are longer than C, shorter than C, and zero.
    """
    z, clip = 1.3, 0.4
    central = CentralPrivacy.begin(
        plan(noise_multiplier=z, max_update_norm=clip, clipping=clipping), nodes=5
    )
    sent = state_of(99, 0.01)
    updates = [state_of(k, scale) for k, scale in enumerate([1.0, 1e-3, 0.0, 3.0, 1e-4][:answered])]
    states = {f"n{k}": apply_update(sent, update) for k, update in enumerate(updates)}
    received = [update_of(state, sent) for state in states.values()]  # float32 on the way
    noise = flat(update_of(central.average(sent, states, 1), sent)) - by_hand(received, clip) / 5
    k, spread = len(noise), z * clip / 5 / (math.sqrt(0.9) if clipping == "adaptive" else 1)
    assert k == 25_159
    assert abs(noise.mean()) < 5 * spread / math.sqrt(k)
    assert abs(noise.var() - spread**2) < 5 * spread**2 * math.sqrt(2 / k)
    assert abs(stats.skew(noise)) < 5 * math.sqrt(6 / k)
    assert abs(stats.kurtosis(noise)) < 5 * math.sqrt(24 / k)
    assert stats.kstest(noise / spread, "norm").pvalue > 1e-6
    assert (central.clip == clip) == (clipping == "fixed")


def test_noise_is_fresh_unless_seeded() -> None:
    """A restart, or a second run with the plan's seed, that draws the same noise again."""

    def mean(seeded: bool, round_: int = 1) -> np.ndarray:
        central = CentralPrivacy.begin(plan(noise_multiplier=1.0), nodes=4, seeded=seeded)
        return flat(central.average(state_of(0), {}, round_))

    assert np.array_equal(mean(True), mean(True))
    assert not np.array_equal(mean(True), mean(True, round_=2))
    assert not np.array_equal(mean(False), mean(False))


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=6), st.floats(1e-3, 10), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_one_node_moves_the_average_by_the_norm_over_the_cohort(
    scales: list[float], clip: float, which: int
) -> None:
    """Sensitivity: without one node, whatever it sent, the sum moves by C at most, and others'
    weights do not.
    """
    updates: list[State] = [state_of(k, scale) for k, scale in enumerate(scales)]
    rest = [update for k, update in enumerate(updates) if k != which % len(updates)]
    found = [
        flat(
            noisy_mean(
                some, updates[0], clip=clip, deviation=0.0, expected=7.0, randomness=Randomness()
            )
        )
        for some in (updates, rest)
    ]
    assert float(np.linalg.norm(found[0] - found[1])) <= clip / 7 * (1 + 1e-9)
    np.testing.assert_allclose(found[0], by_hand(updates, clip) / 7, rtol=1e-9, atol=1e-12)


def test_an_update_of_zero_stays_zero_and_a_broken_one_becomes_zero() -> None:
    """Division by a norm of zero; a NaN that passes through a minimum."""
    zero = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    assert norm_of(clip_update(zero, 1.0)) == 0.0
    for bad in (math.nan, math.inf):
        assert norm_of(clip_update({**state_of(0), "head.bias": torch.full((7,), bad)}, 1.0)) == 0.0
    long = clip_update(state_of(0, 100.0), 0.25)
    assert norm_of(long) == pytest.approx(0.25, rel=1e-12)
    short = state_of(0, 1e-5)
    assert np.array_equal(flat(clip_update(short, 0.25)), flat(short))


# ── cohorts ───────────────────────────────────────────────────────────────────────────────────────
def test_cohorts_are_poisson_samples() -> None:
    """Cohorts of a fixed size, or at least `min_nodes`, do not have the ε that is counted: sizes
    are B(40, 0.1).
    """
    central = CentralPrivacy.begin(plan(noise_multiplier=1.0, fraction=0.1), nodes=40)
    names, times = [f"n{k:02}" for k in range(40)], 2000
    drawn = [central.choose_cohort(names, round_) for round_ in range(times)]
    sizes = np.bincount([len(each) for each in drawn], minlength=41)
    wanted = times * stats.binom.pmf(np.arange(41), 40, 0.1)
    kept = wanted > 5
    observed, expected = [*sizes[kept], sizes[~kept].sum()], [*wanted[kept], wanted[~kept].sum()]
    assert stats.chisquare(observed, np.array(expected) * times / sum(expected)).pvalue > 1e-4
    assert sizes[0] > 0, "an empty cohort is a cohort"
    assert central.expected == 4.0
    everybody = CentralPrivacy.begin(plan(noise_multiplier=1.0), nodes=40)
    assert everybody.choose_cohort(names, 1) == names


# ── ε ─────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("fraction", "rounds", "target"), [(1.0, 10, 8.0), (0.1, 100, 3.0), (0.5, 3, 1.0)]
)
def test_epsilon_of_a_run_as_google_counts_it(fraction: float, rounds: int, target: float) -> None:
    """Noise for one round only; sampling that is counted and not done, or done and not counted; a
    node's update that is left out where one that is replaced was promised.
    """
    central = CentralPrivacy.begin(
        plan(target_epsilon=target, fraction=fraction, rounds=rounds), nodes=30
    )
    spent = central.spent(rounds)
    assert (spent.unit, spent.delta) == ("node", 1e-5)
    assert "replaced" in spent.to_json()["neighbours"]
    assert 0.95 * target < spent.epsilon <= target
    assert central.spent(1).epsilon < spent.epsilon

    if fraction == 1:
        round_ = google.GaussianDpEvent(central.noise_multiplier / 2)
        truth = google_epsilon(round_, rounds, 1e-5)
    else:
        noise = google.GaussianDpEvent(central.noise_multiplier)
        round_ = google.PoissonSampledDpEvent(fraction, noise)
        half = spent.epsilon / 2
        truth = 2 * google_epsilon(round_, rounds, 1e-5 / (1 + math.exp(half)))
    assert truth - 1e-2 <= spent.epsilon <= truth + 0.06


def google_epsilon(round_: google.DpEvent, rounds: int, delta: float) -> float:
    """ε as Google's accountant counts it, with one record left out or added."""
    accountant = PLDAccountant().compose(google.SelfComposedDpEvent(round_, rounds))
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("noise", [0.6, 1.0, 3.0])
def test_a_replaced_update_costs_no_more_than_is_stated(fraction: float, noise: float) -> None:
    """Twice the clipping norm between two sums, counted as once. Against the two mixtures that a
    round's sum really is, integrated.
    """
    central = CentralPrivacy.begin(plan(noise_multiplier=noise, fraction=fraction), nodes=30)
    stated = central.spent(1).epsilon
    at = np.linspace(-12, 12, 200_001) * max(noise, 1)

    def density(update: float) -> np.ndarray:
        drawn = fraction * stats.norm.pdf(at, update, noise)
        return drawn + (1 - fraction) * stats.norm.pdf(at, 0, noise)

    one, other = density(1.0), density(-1.0)
    delta = np.trapezoid(np.maximum(one - math.exp(stated) * other, 0), at)
    assert delta <= 1e-5
    # one that is left out is stated as less: half of the truth
    left_out = epsilon([(noise, fraction, 1)], 1e-5)
    delta = np.trapezoid(np.maximum(one - math.exp(left_out) * other, 0), at)
    assert delta > 1e-5


@given(st.floats(0.3, 30), st.floats(1, 2000))
@settings(max_examples=30, deadline=None)
def test_updates_and_quantile_together_cost_what_is_counted(noise: float, expected: float) -> None:
    """Noise on the quantile that nobody counts (Andrew et al. 2021, theorem 1: z⁻² = z_Δ⁻² +
    (2σ_b)⁻²).

    Two Gaussian mechanisms on one cohort are one on both: Rényi divergences α/2z² add up, at every
    order.
    """
    on_updates, on_bits = split_noise(noise, expected)
    assert on_updates <= noise / math.sqrt(0.9) * (1 + 1e-12)
    orders = [2.0, 8.0, 32.0]
    both, one = RdpAccountant(orders), RdpAccountant(orders)
    both.compose(google.GaussianDpEvent(on_updates)).compose(google.GaussianDpEvent(2 * on_bits))
    one.compose(google.GaussianDpEvent(noise))
    assert both.get_epsilon(1e-5) == pytest.approx(one.get_epsilon(1e-5), rel=1e-9)


def test_sigma_is_that_of_all_rounds() -> None:
    """The same noise as the accountant's own search, from the plan's rounds and fraction."""
    central = CentralPrivacy.begin(
        plan(target_epsilon=4.0, delta=1e-6, fraction=0.2, rounds=50), nodes=10
    )
    assert central.noise_multiplier == noise_for(1.9999, 1e-6 / (1 + math.exp(1.9999)), 0.2, 50)


# ── the clipping norm ─────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_the_clipping_norm_finds_its_quantile(quantile: float) -> None:
    """A step in the wrong direction, or a bias in b̃: from 0.01 and from 100, without noise, to the
    norms' quantile.
    """
    norms = np.random.default_rng(0).lognormal(0.0, 0.5, 200)
    for clip in (0.01, 100.0):
        for _ in range(300):
            within = [bool(norm <= clip) for norm in norms]
            clip = Quantile(quantile, 0.0, 200.0).next_clip(clip, within, Randomness())
        assert float(np.mean(norms <= clip)) == pytest.approx(quantile, abs=0.01)


def test_the_noise_on_the_quantile() -> None:
    """log(C'/C) = −0.2 (b̃ − γ) with b̃ ~ N(3/4, (2/20)²) for 20 nodes of which 15 are within, σ_b
    = 2.
    """
    randomness = Randomness(b"bits")
    aim = Quantile(target=0.5, deviation=2.0, expected=20.0)
    within = [True] * 15 + [False] * 5
    logs = np.array([math.log(aim.next_clip(1.0, within, randomness)) for _ in range(4000)])
    part = 0.5 - logs / 0.2
    middle = part[
        (part > 0.5) & (part < 1.0)
    ]  # where it is not cut off at 1, and as far on the other side
    assert abs(np.median(part) - 0.75) < 5 * 0.1 * 1.25 / math.sqrt(4000)
    assert stats.kstest(middle, stats.truncnorm(-2.5, 2.5, loc=0.75, scale=0.1).cdf).pvalue > 1e-4


def test_a_restart_keeps_the_norm_and_the_denominator() -> None:
    """A resumed run that starts from the first clipping norm, or counts the nodes anew."""
    one = CentralPrivacy.begin(plan(noise_multiplier=1.0, clipping="adaptive"), nodes=9)
    one.average(state_of(0), {"n": state_of(1)}, 1)
    two = CentralPrivacy.begin(plan(noise_multiplier=1.0, clipping="adaptive"), nodes=3)
    two.restore(one.memory())
    assert (two.expected, two.clip, two.noise_multiplier) == (9.0, one.clip, 1.0)
    assert one.clip != 1.0


# ── LoRA ──────────────────────────────────────────────────────────────────────────────────────────
KINDS = {  # shapes of A and B, and the groups
    "linear": ((3, 10), (7, 3), 1),
    "convolution": ((3, 4, 3, 3), (6, 3, 1, 1), 1),
    "grouped": ((6, 2, 3, 3), (8, 3, 1, 1), 2),
    "wide": ((5, 4), (3, 5), 1),  # a rank above both sides
}


def factors(kind: str, seed: int, rank: int | None = None) -> State:
    shape_a, shape_b, _ = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(shape_a, generator=generator), torch.randn(shape_b, generator=generator)
    if rank is not None:  # of each block
        b[:, rank:] = 0.0
    return {"x.adapter.lora_A.weight": a, "x.adapter.lora_B.weight": b, "head.bias": torch.ones(2)}


def product(state: State, kind: str) -> np.ndarray:
    """B·A of each block, (groups, out/groups, in)."""
    _, shape_b, groups = KINDS[kind]
    a = state["x.adapter.lora_A.weight"].double().numpy().reshape(groups, shape_b[1], -1)
    b = state["x.adapter.lora_B.weight"].double().numpy().reshape(groups, shape_b[0] // groups, -1)
    return b @ a


@pytest.mark.parametrize("kind", KINDS)
def test_svd_is_the_best_of_its_rank(kind: str) -> None:
    """Against NumPy's SVD of the dense mean: no pair of this rank is closer (Eckart and Young)."""
    states, weights = [factors(kind, seed) for seed in range(4)], [1.0, 5.0, 2.0, 2.0]
    dense = sum(w * product(state, kind) for w, state in zip(weights, states, strict=True)) / 10.0
    rank = KINDS[kind][1][1]
    u, s, v = np.linalg.svd(dense, full_matrices=False)
    s[:, rank:] = 0.0
    found = svd_mean(states, weights)
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: states[0][name].shape for name in states[0] if "lora" in name
    }
    np.testing.assert_allclose(product(found, kind), u * s[:, None] @ v, atol=1e-5)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())


@pytest.mark.parametrize("kind", KINDS)
def test_svd_is_exact_where_the_rank_is_enough(kind: str) -> None:
    """Three nodes of rank 1: their mean has rank 3. Averaging A and B apart is not even near."""
    states = [factors(kind, seed, rank=1) for seed in range(3)]
    dense = sum(product(state, kind) for state in states) / 3
    np.testing.assert_allclose(product(svd_mean(states, [1.0] * 3), kind), dense, atol=1e-5)
    apart = {name: sum(state[name] for state in states) / 3 for name in states[0]}
    assert np.abs(product(apart, kind) - dense).max() > 0.05  # type: ignore[arg-type]


def test_directions_that_are_not_used_can_still_be_learnt() -> None:
    """Where B·A = 0, as before any training, A = 0 as well would be without a gradient for ever."""
    state = factors("convolution", 0)
    state["x.adapter.lora_B.weight"].zero_()
    found = svd_mean([state, state], [1.0, 1.0])
    rows = found["x.adapter.lora_A.weight"].reshape(3, -1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(3), atol=1e-5, rtol=0)
    assert not found["x.adapter.lora_B.weight"].any()
