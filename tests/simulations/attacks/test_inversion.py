"""Gradient inversion, and what labels and class shares updates give away: on a planted leak, and at
ε = 1.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import UserError
from fedgraft.common.model.grafted_model import GraftedModel, graft
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.tasks.classification import CLASSIFICATION
from fedgraft.simulations.attacks import ATTACKS
from fedgraft.simulations.attacks.gradients import ObservedStep
from fedgraft.simulations.attacks.image_search import distance, total_variation
from fedgraft.simulations.attacks.inversion import read_head_input
from fedgraft.simulations.attacks.label_leakage import count_classes
from fedgraft.simulations.attacks.properties import fit_shares
from fedgraft.simulations.attacks.similarity import psnr, ssim


# ── how alike two images are ──────────────────────────────────────────────────────────────────────
@settings(max_examples=8, deadline=None)
@given(side=st.integers(6, 16), channels=st.integers(1, 3), seed=st.integers(0, 99))
def test_ssim_is_that_of_a_slow_loop(side, channels, seed) -> None:
    """A window that is not normalised, moments about the wrong mean. Wang et al. 2004, eq. 13 to
    16, pixel by pixel.
    """
    rng = np.random.default_rng(seed)
    x = rng.random((channels, side, side))
    y = np.clip(x + 0.3 * rng.normal(size=x.shape), 0, 1)
    size = min(11, side)
    window = np.array(
        [
            [
                math.exp(-((i - (size - 1) / 2) ** 2 + (j - (size - 1) / 2) ** 2) / (2 * 1.5**2))
                for j in range(size)
            ]
            for i in range(size)
        ]
    )
    window /= window.sum()
    found = []
    for c in range(channels):
        for i in range(side - size + 1):
            for j in range(side - size + 1):
                a, b = x[c, i : i + size, j : j + size], y[c, i : i + size, j : j + size]
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                cov = (window * (a - ma) * (b - mb)).sum()
                luminance = (2 * ma * mb + 1e-4) / (ma**2 + mb**2 + 1e-4)
                found.append(luminance * (2 * cov + 9e-4) / (va + vb + 9e-4))
    assert ssim(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(np.mean(found), abs=1e-9)
    assert ssim(torch.from_numpy(x), torch.from_numpy(x)) == pytest.approx(1)


def test_psnr_and_total_variation_by_hand() -> None:
    """An error of 0.1 everywhere is 20 dB. A step of 1 across two columns of four: a third of the
    neighbours.
    """
    assert psnr(torch.full((1, 3, 3), 0.5), torch.full((1, 3, 3), 0.6)) == pytest.approx(
        20, abs=1e-4
    )
    assert psnr(torch.ones(1, 2, 2), torch.ones(1, 2, 2)) == math.inf
    step = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 4, 4)
    assert float(total_variation(step)) == pytest.approx(1 / 3)
    ones, turned = [torch.tensor([1.0, 0.0]), torch.zeros(1)], [torch.zeros(2), torch.tensor([3.0])]
    assert float(distance(ones, turned)) == pytest.approx(1)
    assert float(distance(ones, [2 * part for part in ones])) == pytest.approx(0, abs=1e-6)


# ── gradients ─────────────────────────────────────────────────────────────────────────────────────
def model(method: str = "head", classes: int = 3):
    return graft(
        load_backbone("cifar-resnet8", image_size=8, seed=0), method=method, classes=classes, seed=1
    )


def observe(net: GraftedModel, mechanism: Mechanism | None = None, seed: bytes = b"a"):
    return ObservedStep(net, CLASSIFICATION, mechanism, Randomness(seed))


def test_what_a_node_releases_is_clipped_and_noised_as_its_mechanism_says() -> None:
    """An attack on a gradient that no node sends: not clipped by record, noised too little, scaled
    otherwise.
    """
    net = model()
    inputs, labels = (
        torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 0]),
    )
    quiet = Mechanism(0.0, 0.1, 1, 10.0, 0.5)
    by_hand = [torch.zeros_like(p) for p in net.trainable_parameters().values()]
    for i in range(4):
        single = observe(net).gradient(inputs[i : i + 1], labels[i : i + 1])
        norm = float(torch.cat([g.flatten() for g in single]).norm())
        for total, g in zip(by_hand, single, strict=True):
            total.add_(g * min(1.0, 0.5 / norm) / 4)
    found = observe(net, quiet).release(inputs, labels)
    for ours, wanted in zip(found, by_hand, strict=True):
        assert torch.allclose(ours, wanted, atol=1e-5)
    noisy = Mechanism(20.0, 0.1, 1, 10.0, 0.5)
    draws = [observe(net, noisy, bytes([k])).release(inputs, labels) for k in range(6)]
    values = torch.cat(
        [(d - w).flatten() for draw in draws for d, w in zip(draw, by_hand, strict=True)]
    )
    assert float(values.std()) == pytest.approx(
        20 * 0.5 / 4, rel=0.06
    )  # 1,170 draws: 2 % of standard error
    plain = observe(net).release(inputs, labels)
    assert torch.equal(plain[0], observe(net).gradient(inputs, labels)[0])


def test_the_heads_gradient_gives_its_input_away() -> None:
    """The quotient of another row, or of the weights by the wrong entry."""
    net = model()
    inputs = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    seen: list[torch.Tensor] = []
    net.net.get_submodule(net.head_name).register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    found = read_head_input(net, observe(net).release(inputs, torch.tensor([2])))
    assert torch.allclose(found, seen[0][0], rtol=1e-4, atol=1e-6)


# ── labels ────────────────────────────────────────────────────────────────────────────────────────
@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(0, 6), min_size=2, max_size=5).filter(lambda c: sum(c) > 0),
    seed=st.integers(0, 99),
)
def test_counts_are_exact_where_records_of_a_class_look_alike(counts, seed) -> None:
    """Signs or classes mixed up. With the same softmax for all records of a class the system has
    the true counts.
    """
    classes = len(counts)
    public = torch.softmax(
        torch.randn(classes, classes, generator=torch.Generator().manual_seed(seed)), dim=1
    )
    labels = torch.tensor([c for c, n in enumerate(counts) for _ in range(n)])
    bias = (public[labels] - F.one_hot(labels, classes)).mean(0)
    assert count_classes(bias, public, len(labels)) == pytest.approx(np.array(counts), abs=1e-3)


def test_a_ridge_line_finds_the_share_again() -> None:
    """A fit that is not centred or not scaled back. Columns on very different scales."""
    rng = np.random.default_rng(0)
    share = np.linspace(0.05, 0.95, 30)
    rows = np.c_[1e-4 * share, 300 - 50 * share, rng.normal(size=30)]
    predict = fit_shares(rows, share)
    assert predict(np.c_[[2e-5], [290.0], [0.0]]) == pytest.approx([0.2], abs=0.02)


# ── on runs ───────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_images_come_back_from_a_gradient_without_privacy(planted) -> None:
    """An inversion that does no better than who has no gradient."""
    found = ATTACKS["inversion"](planted.plan, planted.run, planted.nodes, 0)
    assert found["ssim"] > found["ssim_mean"] + 0.05
    assert found["better"] >= found["images"] - 1
    assert found["features"] < 1e-4


@pytest.mark.slow
def test_nothing_comes_back_at_epsilon_one(private) -> None:
    """Noise that an attacker sees through, or a likeness that all chest X-rays have."""
    found = ATTACKS["inversion"](private.plan, private.run, private.nodes, 0)
    assert found["ssim"] <= found["ssim_mean"]
    assert found["features"] > found["features_mean"]


@pytest.mark.slow
def test_labels_are_read_off_the_head_without_privacy_and_not_at_epsilon_one(
    planted, private
) -> None:
    """Labels that leak unseen, or that are guessed from the classes' frequencies."""
    found = ATTACKS["labels"](planted.plan, planted.run, planted.nodes, 0)
    assert found["single"] == 1.0
    assert found["counts"] > 0.9
    assert found["counts_interval"][0] > found["counts_chance"]
    blind = ATTACKS["labels"](private.plan, private.run, private.nodes, 0)
    assert blind["single"] < 0.85  # of 16 by chance: 14 or more once in 480
    assert blind["counts_interval"][0] < blind["counts_chance"]


@pytest.mark.slow
def test_a_nodes_share_of_sick_people_is_read_off_its_update(
    unlike, unlike_private, unlike_hidden
) -> None:
    """A property of a whole hospital that leaks unseen; or an attack that answers everybody's mean.

    ε for an example hides a person, not how many of a hospital's patients are sick: that is still
    read, and a page that says otherwise is wrong. ε for a node hides it.
    """
    found = ATTACKS["properties"](unlike.plan, unlike.run, unlike.nodes, 0)
    assert found["spread"] > 0.15
    assert found["error"] < found["error_chance"] / 2
    assert found["correlation"] > 0.9
    people = ATTACKS["properties"](unlike_private.plan, unlike_private.run, unlike_private.nodes, 0)
    assert people["error"] < people["error_chance"] / 2
    nodes = ATTACKS["properties"](unlike_hidden.plan, unlike_hidden.run, unlike_hidden.nodes, 0)
    assert nodes["error"] > 0.7 * nodes["error_chance"]


@pytest.mark.slow
def test_tables_and_runs_that_are_not_finished_are_refused_in_words(private, tmp_path) -> None:
    """A traceback in a study over many cells."""
    with pytest.raises(UserError, match="no run"):
        ATTACKS["labels"](private.plan, tmp_path, private.nodes, 0)
    noised = private.plan.privacy.model_copy(update={"mode": "local"})
    with pytest.raises(UserError, match="whole update"):
        ATTACKS["audit"](
            private.plan.model_copy(update={"privacy": noised}), private.run, private.nodes, 0
        )
    table = private.plan.model_copy(
        update={"task": private.plan.task.model_copy(update={"kind": "tabular-classification"})}
    )
    with pytest.raises(UserError, match="images"):
        ATTACKS["inversion"](table, private.run, private.nodes, 0)
