"""Membership inference: it must find a leak that was planted, and must not find one at ε = 1."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity
from scipy import stats

from fedgraft.server.papers.run_folder import RunFolder
from fedgraft.simulations.attacks import ATTACKS
from fedgraft.simulations.attacks.candidates import (
    Candidates,
    choose_candidates,
    match_strata,
)
from fedgraft.simulations.attacks.likelihood import (
    Evidence,
    scale_confidences,
    score_above_others,
    score_by_ratio,
)
from fedgraft.simulations.attacks.lira import attack_by_likelihood
from fedgraft.simulations.attacks.shadows import (
    count_affordable,
    draw_halves,
    train_federation,
)
from fedgraft.simulations.attacks.target import open_target
from fedgraft.simulations.benchmarks.planted_runs import finish_run

pytestmark = pytest.mark.slow


def test_the_last_updates_are_made_again(planted, private) -> None:
    """An attack on an update that no node ever sent. Both nodes have as many examples: the mean is
    the shared model.
    """
    for cell in (planted, private):
        target = open_target(cell.plan, cell.run, cell.nodes)
        first, second = target.update(0), target.update(1)
        for name, tensor in target.shared.items():
            assert torch.allclose((first[name] + second[name]) / 2, tensor, atol=1e-6), name


def test_members_and_others_have_the_same_classes(planted) -> None:
    """An attack that wins by the class alone, at a node where sick people are many."""
    target = open_target(planted.plan, planted.run, planted.nodes)
    for data in target.nodes:
        strata = target.strata(data.train), target.strata(data.others)
        mine, theirs = match_strata(*strata, np.random.default_rng(0))
        shares = [
            s.labels[rows].double().mean()
            for s, rows in ((data.train, mine), (data.others, theirs))
        ]
        assert float(shares[0]) == pytest.approx(float(shares[1]), abs=0.01)
        assert len(mine) == len(data.train)
    assert not set(target.nodes[0].train.rows) & set(target.nodes[0].others.rows)


def test_the_loss_tells_members_of_an_overfitted_model(planted) -> None:
    """An attack that cannot see a leak that is there."""
    found = ATTACKS["loss-threshold"](planted.plan, planted.run, planted.nodes, 0)
    assert found["others_from"] == "val"
    for view in ("shared model", "node updates"):
        assert found["views"][view]["auc_interval"][0] > 0.6, view


def test_rows_that_a_choice_used_are_nobodys_strangers(xrays, tmp_path) -> None:
    """Non-members by which the round was chosen: their losses are low by choice. And an attack on
    the last round's model where another one is shared.
    """
    sets = ("adapter.method=head", "train.local_epochs=5", "train.optimizer.lr=0.2")
    chosen = ("train.rounds=6", "train.keep=best", "train.patience=2", "evaluate.every=1")
    with finish_run(tmp_path, (*sets, *chosen)) as cell:
        folder = RunFolder(cell.run)
        last, kept = folder.latest(), folder.kept()
        assert last is not None
        assert kept is not None
        validation = last.so_far.validation
        assert validation is not None
        target = open_target(cell.plan, cell.run, cell.nodes)
        assert (target.last, target.kept) == (last.round, validation.best)
        assert target.kept < target.last
        for name, tensor in kept.adapter.items():
            assert torch.equal(target.shared[name], tensor)
        # the last round's updates, and not those of the round that is kept
        first, second = target.update(0), target.update(1)
        for name, tensor in last.adapter.items():
            assert torch.allclose((first[name] + second[name]) / 2, tensor, atol=1e-6), name
        found = cell.attack("loss-threshold")
    assert found["others_from"] == "test"
    for data in target.nodes:
        assert not set(data.others.rows) & set(data.train.records.splits["val"])


def test_the_loss_tells_nothing_at_epsilon_one(private) -> None:
    """A leak that is only the attack's own error: other classes, other sources."""
    found = ATTACKS["loss-threshold"](private.plan, private.run, private.nodes, 0)
    for view in found["views"].values():
        low, high = view["auc_interval"]
        assert low < 0.5 < high
        assert view["tpr"]["0.01"] < 0.2


# ── LiRA ──────────────────────────────────────────────────────────────────────────────────────────
def test_confidences_on_the_scale_of_logits() -> None:
    """log(p / (1 − p)) by the definition, in float64, and no infinity where p is 1 in float32."""
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    labels = torch.arange(50) % 4
    p = logits.softmax(1)[torch.arange(50), labels]
    assert torch.allclose(scale_confidences(logits, labels), torch.log(p / (1 - p)))
    assert float(scale_confidences(torch.tensor([[80.0, 0.0]]), torch.tensor([0]))) == 80


@pytest.mark.parametrize("shadows", [8, 200])
def test_the_ratio_is_that_of_two_normal_densities(shadows) -> None:
    """Means over the wrong shadows, or a variance that is shared where there are shadows enough. By
    a slow loop.
    """
    rng = np.random.default_rng(shadows)
    phi, seen = rng.normal(size=(shadows, 4)) * 2, rng.normal(size=4)
    inside = draw_halves([Candidates(np.arange(4), np.ones(4, bool))], shadows, rng)
    evidence = Evidence(seen, phi, inside)
    pooled = {}
    for side, had in ((1, inside), (0, ~inside)):
        pooled[side] = np.mean([np.var(phi[had[:, i], i], ddof=1) for i in range(4)])
    for i in range(4):
        density = []
        for side, had in ((1, inside), (0, ~inside)):
            mine = phi[had[:, i], i]
            variance = pooled[side] if shadows < 64 else np.var(mine, ddof=1)
            density.append(stats.norm.logpdf(seen[i], mine.mean(), math.sqrt(variance)))
        assert score_by_ratio(evidence)[i] == pytest.approx(density[0] - density[1])
        out = phi[~inside[:, i], i]
        sigma = math.sqrt(pooled[0] if shadows < 64 else np.var(out, ddof=1))
        assert score_above_others(evidence)[i] == pytest.approx((seen[i] - out.mean()) / sigma)


def test_shadows_are_as_large_as_the_attacked_federation(planted) -> None:
    """Shadows of another size or class balance, whose models differ for that reason; or a candidate
    always in.
    """
    target = open_target(planted.plan, planted.run, planted.nodes)
    candidates = choose_candidates(target, np.random.default_rng(0))
    inside = draw_halves(candidates, 8, np.random.default_rng(0))
    assert (inside.sum(0) == 4).all()
    start = 0
    for data, each in zip(target.nodes, candidates, strict=True):
        labels = data.train.records.labels[each.rows]
        assert set(each.rows[each.is_member]) <= set(data.train.rows)
        assert not set(each.rows[~each.is_member]) & set(data.train.rows)
        wanted = np.bincount(labels[each.is_member], minlength=2)
        for mine in inside[:, start : start + len(each.rows)]:
            assert (np.bincount(labels[mine], minlength=2) == wanted).all()
        start += len(each.rows)


def test_shadows_are_as_many_as_a_plan_is_worth(planted, private) -> None:
    """Hours of shadows for a plan that trains everything; or an odd number, which cannot be
    halved.
    """
    target = open_target(planted.plan, planted.run, planted.nodes)
    assert count_affordable(target) == 16  # 48 records, 75 epochs: 3,600 passes
    long = planted.plan.train.model_copy(update={"local_epochs": 100})
    plan = planted.plan.model_copy(update={"train": long})
    assert count_affordable(replace(target, plan=plan)) == 8  # 120,000 / 14,400 = 8.3
    assert count_affordable(open_target(private.plan, private.run, private.nodes)) == 16


def test_a_shadow_on_the_same_rows_is_the_run_itself(planted) -> None:
    """Shadows that are trained otherwise than the run: another start, rate, order of rounds or
    average.
    """
    target = open_target(planted.plan, planted.run, planted.nodes)
    splits = [data.train for data in target.nodes]
    released = train_federation(target, splits, planted.plan.seed)
    update = target.update(1)
    for name, tensor in target.shared.items():
        assert torch.allclose(released.shared[name], tensor, atol=1e-6), name
        assert torch.allclose(released.updates[1][name], update[name], atol=1e-6), name


def test_shadows_need_no_run_in_the_same_process(private, monkeypatch) -> None:
    """A study that is gone on with, whose runs are there and whose attacks are not."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, None)
    target = open_target(private.plan, private.run, private.nodes)
    train_federation(target, [data.train for data in target.nodes], seed=1)


def test_shadow_models_tell_members_better_than_the_loss(planted) -> None:
    """Shadows that teach nothing."""
    found = attack_by_likelihood(planted.plan, planted.run, planted.nodes, 0, shadows=6)
    for view in found["views"].values():
        assert view["auc_interval"][0] > 0.65
        assert view["offline_auc"] > 0.65


def test_shadow_models_tell_nothing_at_epsilon_one(private) -> None:
    """A difference between shadows and run that is taken for membership."""
    found = attack_by_likelihood(private.plan, private.run, private.nodes, 0, shadows=6)
    for view in found["views"].values():
        low, high = view["auc_interval"]
        assert low < 0.5 < high
