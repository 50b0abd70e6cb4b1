"""Membership inference: it must find a leak that was planted, and must not find one at ε = 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from simulations.attacks import ATTACKS
from simulations.attacks.loss_threshold import alike
from simulations.attacks.target import open_target

pytestmark = pytest.mark.slow


def test_the_last_updates_are_made_again_bit_for_bit(planted, private) -> None:
    """An attack on an update that no node ever sent. Both nodes have as many examples: the mean is the shared model."""
    for cell in (planted, private):
        target = open_target(cell.plan, cell.run, cell.nodes)
        first, second = target.update(0), target.update(1)
        for name, tensor in target.shared.items():
            assert torch.equal((first[name] + second[name]) / 2, tensor), name


def test_members_and_others_have_the_same_classes(planted) -> None:
    """An attack that wins by the class alone, at a node where sick people are many."""
    target = open_target(planted.plan, planted.run, planted.nodes)
    for data in target.nodes:
        mine, theirs = alike(data, np.random.default_rng(0))
        shares = [s.labels[rows].double().mean() for s, rows in ((data.train, mine), (data.others, theirs))]
        assert float(shares[0]) == pytest.approx(float(shares[1]), abs=0.01)
        assert len(mine) == len(data.train)
    assert not set(target.nodes[0].train.rows) & set(target.nodes[0].others.rows)


def test_the_loss_tells_members_of_an_overfitted_model(planted) -> None:
    """An attack that cannot see a leak that is there."""
    found = ATTACKS["loss-threshold"](planted.plan, planted.run, planted.nodes, 0)
    assert found["others_from"] == "val"
    for view in ("shared model", "node updates"):
        assert found["views"][view]["auc_interval"][0] > 0.6, view


def test_the_loss_tells_nothing_at_epsilon_one(private) -> None:
    """A leak that is only the attack's own error: other classes, other sources."""
    found = ATTACKS["loss-threshold"](private.plan, private.run, private.nodes, 0)
    for view in found["views"].values():
        low, high = view["auc_interval"]
        assert low < 0.5 < high
        assert view["tpr"]["0.01"] < 0.2
