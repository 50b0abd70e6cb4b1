"""Empirical ε of the real mechanism: never above what is stated, and above it where the mechanism
is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.data.split import Split
from fedgraft.client.privacy import lots, one_pass
from fedgraft.client.privacy.example_gradients import Gradient
from fedgraft.client.privacy.mechanism import Mechanism, calibrate
from fedgraft.client.store.activations import Activations
from fedgraft.client.store.cut_models import Cut, behind_prefix
from fedgraft.common.model.assembly import plan_backbone, plan_model
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.simulations.attacks import ATTACKS
from fedgraft.simulations.attacks.canaries import score_canaries
from fedgraft.simulations.attacks.canary_model import WithCanaries, add_canaries
from fedgraft.simulations.attacks.empirical_epsilon import Audit, audit_guesses
from fedgraft.simulations.attacks.target import open_nodes
from fedgraft.simulations.benchmarks.leak_tasks import AUDITED
from fedgraft.simulations.engines.engine import nodes_on_disk

CANARIES = 400


@pytest.fixture(scope="module")
def hospital(xrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Split]]:
    """A plan's file, and one node of it with some hundred real chest X-rays."""
    path = tmp_path_factory.mktemp("audited") / "plan.yaml"
    path.write_text(AUDITED)
    plan = load_plan(path)
    with nodes_on_disk(plan, path) as nodes:
        data, _ = open_nodes(plan, nodes[:1], plan_backbone(plan, path.parent).preprocess)
        yield path, data[0].train


def opened(path: Path, *overrides: str) -> tuple[Plan, GraftedModel]:
    plan = load_plan(path, overrides)
    return plan, plan_model(plan_backbone(plan, path.parent), plan)


def audited(
    path: Path, split: Split, *overrides: str, mechanism: Mechanism | None = None, seed: int = 0
) -> tuple[Audit, float]:
    """The audit of a plan's mechanism, and the ε that the plan states."""
    plan, model = opened(path, *overrides)
    mechanism = mechanism or calibrate(plan, 100)
    coins = np.random.default_rng([seed, 99]).random(CANARIES) < 0.5
    scores = score_canaries(plan, model, split, coins, mechanism=mechanism, seed=seed)
    assert plan.privacy.target_epsilon is not None
    return audit_guesses(scores, coins, delta=1e-5), plan.privacy.target_epsilon


# ── canaries ──────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("method", ["head", "lora", "bottleneck"])
def test_a_canarys_gradient_is_its_own(hospital, method) -> None:
    """Canaries that share a direction with records or with each other, or that the model learns by
    and by.
    """
    path, split = hospital
    _, model = opened(path, f"adapter.method={method}")
    probed = add_canaries(model, 6)
    data = WithCanaries(split, torch.tensor([1, 4]), outputs=2)
    with torch.no_grad():
        probed.head.linear.weight.add_(3.0)  # as if it had been learnt
    parameters = list(probed.model.trainable_parameters().values())
    at = next(k for k, p in enumerate(parameters) if p is probed.head.linear.weight)
    for position in (0, len(split), len(split) + 1):
        inputs, labels = data.inputs(torch.tensor([position])), data.labels[[position]]
        gradients = torch.autograd.grad(
            F.cross_entropy(probed.model(inputs), labels), parameters, allow_unused=True
        )
        squares = [0.0 if g is None else float(g.double().square().sum()) for g in gradients]
        added = gradients[at][:, probed.head.features :].double().square().sum(0)
        if position == 0:
            assert float(added.sum()) == 0
        else:
            own = {len(split): 1, len(split) + 1: 4}[position]
            assert float(added[own]) > 0.999 * sum(squares)
            assert sum(squares) ** 0.5 > 20  # clipped at any usual norm


def test_records_are_seen_as_the_plans_model_sees_them(hospital) -> None:
    """A probe that trains another model than the plan's."""
    path, split = hospital
    _, model = opened(path, "adapter.method=lora")
    probed, inputs = add_canaries(model, 5), split.inputs(torch.arange(4))
    with torch.no_grad():
        assert torch.allclose(probed.model(inputs), model(inputs), atol=1e-5)


@pytest.mark.parametrize("adapter", ["{method: head}", "{method: lora, targets: last-block}"])
def test_an_audit_behind_the_frozen_layers_scores_the_same(hospital, adapter: str) -> None:
    """Canaries that are lost where activations stand for images, or records that move them."""
    path, split = hospital
    plan, model = opened(path, f"adapter={adapter}", "train.rounds=1")
    cut = Cut(plan.backbone.name, model.frozen_fingerprint(), "float32")
    _, kept = behind_prefix(model, split, cut, None)
    assert isinstance(kept, Activations)
    included = np.arange(CANARIES) % 2 == 0
    scores = []
    for records in (split, kept):
        mechanism = calibrate(plan, 100)
        scores.append(score_canaries(plan, model, records, included, mechanism=mechanism, seed=1))
    assert np.allclose(*scores, rtol=1e-3, atol=1e-4 * np.abs(scores[0]).max())


# ── a correct mechanism ───────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("privacy.target_epsilon=0.5",),
        (
            "privacy.target_epsilon=2",
            "train.batch_size=20",
            "train.local_epochs=2",
        ),  # Poisson sampling, q = 1/5
        ("privacy.target_epsilon=4", "privacy.grad_sample_mode=ghost"),
        (
            "privacy.target_epsilon=4",
            "adapter={method: bottleneck, targets: last-block}",
            "train.local_epochs=2",
        ),
    ],
)
def test_a_correct_mechanism_is_never_found_above_its_epsilon(hospital, overrides) -> None:
    """A bound that accuses who keeps their word."""
    for seed in (0, 1):
        found, stated = audited(*hospital, *overrides, seed=seed)
        assert found.epsilon <= stated
        assert found.ceiling > 4  # it could have said more


# ── a broken one ──────────────────────────────────────────────────────────────────────────────────
def less_noise(share: float) -> Callable[[np.ndarray], np.ndarray]:
    honest = lots.to_normal
    return lambda uniform: share * honest(uniform)


def no_clipping(found: Sequence[Gradient], max_norm: float) -> dict[Tensor, Tensor]:
    ones = torch.ones(len(found[0].squared_norms()))
    return {each.parameter: each.total(ones) for each in found}


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["noise off", "a tenth of the noise", "clipping off"])
@pytest.mark.parametrize("batch", [100, 20])
def test_a_broken_mechanism_is_found_out(hospital, broken, batch, monkeypatch) -> None:
    """An audit that any implementation passes. The code itself is broken here; the plan states ε =
    2 all the same.
    """
    match broken:
        case "noise off":
            monkeypatch.setattr(lots, "to_normal", less_noise(0.0))
        case "a tenth of the noise":
            monkeypatch.setattr(lots, "to_normal", less_noise(0.1))
        case _:
            monkeypatch.setattr(one_pass, "clip_and_sum", no_clipping)
    found, stated = audited(*hospital, f"train.batch_size={batch}")
    assert found.epsilon > 1.4 * stated


# ── on a run ──────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_the_bound_is_set_beside_what_the_run_states(planted, private) -> None:
    """A stated ε that is another's, or an audit of no privacy at all that finds nothing."""
    found = ATTACKS["audit"](private.plan, private.run, private.nodes, 0)
    assert 0.9 < found["stated_epsilon"] <= 1
    assert found["epsilon"] <= found["stated_epsilon"]
    leak = ATTACKS["audit"](planted.plan, planted.run, planted.nodes, 0)
    assert leak["stated_epsilon"] is None
    assert leak["epsilon"] > 3
