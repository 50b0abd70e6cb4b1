"""Aggregation alone: formulas by hand, order, memory, and how many updates a rule needs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.common.errors import RunFailed
from fedgraft.common.plan.aggregate_section import STRATEGIES, AggregateSection
from fedgraft.common.plan.plan import Plan
from fedgraft.common.wire.layout import Layout
from fedgraft.common.wire.update import AdapterUpdate
from fedgraft.server.aggregation.combiner import Combiner
from fedgraft.server.aggregation.plain_aggregation import PlainAggregation
from fedgraft.server.aggregation.rule import Rule, Updates
from fedgraft.server.aggregation.rules import RULES
from fedgraft.server.rounds import Round

# A message asks for the identity of the process that makes it, which Flower's runtimes set.
TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1

SHAPES = {"head.weight": (2, 3), "lora.a": (4,)}


def state_of(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def update(state: dict[str, torch.Tensor], examples: int = 10) -> AdapterUpdate:
    return AdapterUpdate(1, state, examples, steps=1, train_loss=0.5, seconds=0.1, received=None)


def flat(state: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([state[name].numpy().reshape(-1) for name in sorted(state)]).astype(
        np.float64
    )


LAYOUT = Layout.of(state_of(0))


def plan_of(aggregate: AggregateSection, seed: int = 0) -> Plan:
    content = {
        "name": "tiny",
        "task": {"kind": "image-classification", "classes": ["no", "yes"]},
        "backbone": {"name": "cifar-resnet8"},
        "adapter": {"method": "lora"},
        "seed": seed,
        "train": {"proximal": 0.1},
        "aggregate": aggregate,
    }
    return Plan.model_validate(content)


def run(
    aggregate: AggregateSection,
    sent: dict[str, torch.Tensor],
    rounds: list[list[AdapterUpdate]],
    stop: int = 0,
):
    """The state after some rounds; with `stop`, as if the server had been restarted after that
    round.
    """
    plan = plan_of(aggregate)
    aggregation = PlainAggregation(plan)
    for number, updates in enumerate(rounds, start=1):
        by_name = {f"n{k}": each for k, each in enumerate(updates)}
        sent = aggregation.aggregate(Round(plan, number, LAYOUT, sent, list(by_name)), by_name)
        if number == stop:
            memory = aggregation.memory()
            aggregation = PlainAggregation(plan)
            aggregation.restore(memory)
    return sent


def mean(updates: list[AdapterUpdate]) -> np.ndarray:
    """Weighted by examples, in double precision."""
    weights = np.array([each.examples for each in updates], np.float64)
    return (
        sum(w * flat(each.state) for w, each in zip(weights, updates, strict=True)) / weights.sum()
    )


ROUNDS = [[update(state_of(10 * r + k), examples=5 + 7 * k) for k in range(4)] for r in range(1, 4)]


@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=6))
@settings(max_examples=30, deadline=None)
def test_fedavg_weighs_by_examples(examples):
    """McMahan et al. 2017, algorithm 1: Σ n_k w_k / Σ n_k; not the plain mean."""
    updates = [update(state_of(k), count) for k, count in enumerate(examples)]
    found = flat(run(AggregateSection(strategy="fedavg"), state_of(99), [updates]))
    np.testing.assert_allclose(found, mean(updates), rtol=1e-5, atol=1e-6)


def test_the_order_of_arrival_changes_nothing():
    """Sums in the order of arrival: another last bit on every run."""
    updates = {f"n{k}": update(state_of(k), 3 + k) for k in range(5)}
    turned = dict(reversed(list(updates.items())))
    for name in ("fedavg", "median", "trimmed-mean", "krum"):
        aggregate = AggregateSection.model_validate({"strategy": name})
        plan = plan_of(aggregate)
        round_ = Round(plan, 1, LAYOUT, state_of(9), list(updates))
        found = [PlainAggregation(plan).aggregate(round_, each) for each in (updates, turned)]
        assert all(torch.equal(found[0][key], found[1][key]) for key in SHAPES)


@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=6))
@settings(max_examples=30, deadline=None)
def test_equal_weights_are_the_plain_mean(examples):
    """A site of ten images that its neighbour of a thousand drowns all the same."""
    updates = [update(state_of(k), count) for k, count in enumerate(examples)]
    aggregate = AggregateSection(strategy="fedavg", weighting="equal")
    found = flat(run(aggregate, state_of(99), [updates]))
    expected = np.mean([flat(each.state) for each in updates], axis=0, dtype=np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_fedavgm_is_momentum_on_the_server():
    """Hsu et al. 2019: v ← β v + Δ, w ← w − η v, with Δ = w − mean."""
    aggregate = AggregateSection(strategy="fedavgm", server_lr=0.5, server_momentum=0.7)
    w, v = flat(state_of(99)), 0.0
    for updates in ROUNDS:
        v = 0.7 * v + (w - mean(updates))
        w = w - 0.5 * v
    np.testing.assert_allclose(flat(run(aggregate, state_of(99), ROUNDS)), w, rtol=1e-4, atol=1e-5)


def test_fedyogi_and_fedadagrad_follow_their_paper():
    """Reddi et al. 2021, algorithm 2, with β1 0.9, β2 0.99, τ 1e-3 (Adagrad: no momentum); v starts
    at 0.
    """
    for name, beta1 in (("fedyogi", 0.9), ("fedadagrad", 0.0)):
        w, m, v = flat(state_of(99)), 0.0, np.zeros(10)
        for updates in ROUNDS:
            delta = mean(updates) - w
            m = beta1 * m + (1 - beta1) * delta
            v = (
                v + delta**2
                if name == "fedadagrad"
                else v - 0.01 * delta**2 * np.sign(v - delta**2)
            )
            w = w + 0.05 * m / (np.sqrt(v) + 1e-3)
        found = run(
            AggregateSection.model_validate({"strategy": name, "server_lr": 0.05}),
            state_of(99),
            ROUNDS,
        )
        np.testing.assert_allclose(flat(found), w, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_restart_changes_nothing(name):
    """Moments lost, or kept in another precision, over a restart of the server."""
    aggregate = AggregateSection(strategy=name)
    whole, cut = (run(aggregate, state_of(99), ROUNDS, stop) for stop in (0, 2))
    assert all(torch.equal(whole[key], cut[key]) for key in SHAPES)


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "krum"])
def test_robust_rules_withstand_one_liar(name):
    """Yin et al. 2018; Blanchard et al. 2017: one of seven sends a hundred times as much, and says
    it has all data.
    """
    honest = [
        update({key: value + 0.01 * k for key, value in state_of(1).items()}) for k in range(6)
    ]
    liar = update(state_of(5, scale=100.0), examples=10**6)
    aggregate = AggregateSection.model_validate({"strategy": name, "byzantine": 1})
    found = flat(run(aggregate, state_of(99), [[*honest, liar]]))
    lowest, highest = (
        np.stack([flat(each.state) for each in honest]).min(0),
        np.stack([flat(each.state) for each in honest]).max(0),
    )
    assert (found >= lowest - 1e-6).all()
    assert (found <= highest + 1e-6).all()


def test_too_few_updates_are_no_round():
    """An average of one, or Krum with fewer than its proof needs (2f + 3)."""
    updates = [update(state_of(k)) for k in range(4)]
    with pytest.raises(RunFailed, match="round 1: 1 valid updates, 2 are needed"):
        run(AggregateSection(), state_of(9), [updates[:1]])
    with pytest.raises(RunFailed, match="4 valid updates, 5 are needed"):
        run(AggregateSection(strategy="krum", byzantine=1), state_of(9), [updates])


@given(
    st.integers(1, 30),
    st.floats(0.01, 1.0),
    st.integers(1, 30),
    st.integers(0, 5),
    st.integers(1, 50),
)
@settings(max_examples=60, deadline=None)
def test_a_cohort_is_a_seeded_sample(count, fraction, least, seed, round_):
    """A cohort with a name twice, of another size, or that depends on the order in which nodes
    came.
    """
    names = [f"n{k}" for k in range(count)]
    aggregation = PlainAggregation(
        plan_of(AggregateSection(fraction=fraction, min_nodes=least), seed)
    )
    drawn = aggregation.choose_cohort(names, round_)
    assert drawn == aggregation.choose_cohort(names[::-1], round_)
    assert len(set(drawn)) == len(drawn) == min(count, max(least, round(fraction * count)))
    assert set(drawn) <= set(names)


# ── the seam ──────────────────────────────────────────────────────────────────────────────────────
def test_the_plan_and_the_server_know_the_same_rules():
    """A rule that no plan can name, or one that a plan takes for an average and that is none: the
    noise of mode central would not be scaled to it.
    """
    assert RULES.names == tuple(STRATEGIES)
    for name, strategy in STRATEGIES.items():
        assert RULES[name].is_average == strategy.is_average, name


def test_what_a_rule_must_see():
    """A rule of single updates behind a secure sum, where nobody sees them."""
    single = {name for name in RULES if RULES[name].sees == "single updates"}
    assert single == {"median", "trimmed-mean", "krum"}


def largest(state: None, updates: Updates) -> np.ndarray:
    return np.stack(list(updates.flat_states())).max(axis=0)


LARGEST = Rule(lambda aggregate: None, largest, sees="single updates", is_average=False)


def test_a_rule_of_ones_own_is_a_function_and_a_line(monkeypatch):
    """A seam that only Flower's strategies fit into."""
    monkeypatch.setattr(RULES, "_own", {**RULES.lines, "largest": f"{__name__}:LARGEST"})
    combiner = Combiner(AggregateSection.model_construct(strategy="largest"))
    states = [state_of(k) for k in range(3)]
    found = combiner.combine(Updates(1, LAYOUT, state_of(9), states, [1, 1, 1]))
    for name in SHAPES:
        assert torch.equal(found[name], torch.stack([state[name] for state in states]).amax(0))
    assert (combiner.fewest, combiner.memory()) == (1, {})
