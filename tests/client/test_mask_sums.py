"""Sums with noise over the pixels of a hospital's images: against a slow loop, and what one image
moves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgraft.client.data.split import Split
from fedgraft.client.node_task import NodeTask
from fedgraft.client.sum_round import sum_privately
from fedgraft.common.inputs.public_patches import cut_patches
from fedgraft.common.model.assembly import choose_maps, load_network, plan_backbone, plan_model
from fedgraft.common.model.pixel_head import pick_places
from fedgraft.common.model.place_features import IMAGES
from fedgraft.common.model.public_reference import compute_features, features_of
from fedgraft.common.model.solve_head import solve_noisy_head
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.common.statistics.noisy_sums import COUNT_STEP, PRODUCT_SCALE, SCALE, NoisySums
from tests.hospital_task import task_of
from tests.task_matrix import write_masks

STRIDE = 4
PLAN: dict[str, Any] = {
    "name": "squares",
    "task": {
        "kind": "image-segmentation",
        "classes": ["background", "square"],
        "mask": {"stride": STRIDE},
    },
    "backbone": {"name": "cifar-resnet8", "image_size": 16},
    "adapter": {"method": "head"},
    "train": {"method": "closed-form"},
    "privacy": {"mode": "sample", "target_epsilon": 8, "delta": 1e-3},
}


def a_task(here: Path, *overrides: str) -> NodeTask:
    """Return a hospital's task under the plan: twelve images with masks."""
    write_masks(here / "north.npz", np.random.default_rng(3), 12)
    return task_of(here, PLAN, "north.npz", *overrides)


def without(task: NodeTask, left_out: int) -> NoisySums:
    """Return the sums over all images but one."""
    assert isinstance(task.train, Split)
    others = np.delete(task.train.rows, left_out)
    split = Split(task.train.records, others, task.train.preparation)
    rest = NodeTask("n", task.plan, task.model, split, task.test, task.fingerprint)
    return sum_privately(rest, None)


def test_they_are_the_sums_of_a_slow_loop_over_pixels(tmp_path: Path) -> None:
    """A pixel under another's class, or under another place's features: nothing is learnt."""
    task = a_task(tmp_path, "train.closed_form.release=products")
    found = sum_privately(task, None)
    width = task.model.count_features()
    sums = np.zeros((width, 2))
    counts = np.zeros(2)
    products = np.zeros((width, width))
    places = range(16)[pick_places(16, STRIDE)]
    for row in range(len(task.train)):
        packed = task.model.features(task.train.inputs(torch.tensor([row])))
        pixels = task.model.read_places(packed, 1).reshape(16, 16, width).double().numpy()
        mask = task.train.labels[row]
        read = [(down, across) for down in places for across in places]
        answers = [int(mask[place]) for place in read]
        for place, answer in zip(read, answers, strict=True):
            part = 0.5 / answers.count(answer)
            sums[:, answer] += part * pixels[place]
            counts[answer] += part
            products += part * np.outer(pixels[place], pixels[place])
    np.testing.assert_allclose(found.sums / SCALE, sums, atol=1e-4)
    np.testing.assert_allclose(found.counts / COUNT_STEP, counts, atol=1e-3)
    pairs = products[np.triu_indices(width)]
    np.testing.assert_allclose(found.products / PRODUCT_SCALE, pairs, atol=0.02)


@torch.no_grad()
def test_without_noise_the_head_that_they_give_finds_squares(tmp_path: Path) -> None:
    """A head on other features than those that were summed, or a sign or a scale that is wrong."""
    task = a_task(tmp_path, "train.closed_form.release=products", "task.mask.stride=1")
    head = solve_noisy_head(sum_privately(task, None), task.plan, task.model.solved_name)
    task.model.load_adapter_state(head)
    answers = task.model(task.test.inputs(torch.arange(len(task.test)))).argmax(1)
    both = float(((answers > 0) & (task.test.labels > 0)).sum())
    assert 2 * both / float((answers > 0).sum() + (task.test.labels > 0).sum()) > 0.8


def test_an_image_moves_them_by_no_more_than_the_noise_is_for(tmp_path: Path) -> None:
    """However many of its pixels are read: the unit is the image."""
    task = a_task(tmp_path)
    whole = sum_privately(task, None)
    for left_out in range(len(task.train)):
        rest = without(task, left_out)
        assert np.linalg.norm(whole.sums - rest.sums) <= SCALE
        assert np.linalg.norm(whole.counts - rest.counts) <= COUNT_STEP


def test_the_public_reference_is_of_pixels(tmp_path: Path) -> None:
    """One of whole images' means would leave pixels unwhitened, and noise would fall on them
    unevenly; one that differs from time to time would have another fingerprint.
    """
    a_task(tmp_path)
    plan = load_plan(tmp_path / "plan.json")
    plain = load_network(plan, None)
    maps = choose_maps(plain, plan, 1)
    features = features_of(plain, maps)
    public = cut_patches(plain.preprocess, plan.backbone, plan.task)[:IMAGES]
    pixels = compute_features(features, [plain.preprocess(public)], maps.precision)
    assert pixels.shape == (IMAGES * 8 * 8, plan_model(plain, plan).count_features())
    backbone = plan_backbone(plan, tmp_path)
    reference: Any = backbone.net.get_submodule("reference")
    whitened = ((pixels - reference.mean) @ reference.whiten).double()
    covariance = np.cov(whitened.numpy().T)
    told = np.diag(covariance) > 0.5
    assert told.mean() > 0.9
    np.testing.assert_allclose(covariance[np.ix_(told, told)], np.eye(told.sum()), atol=0.05)
    assert plan_backbone(plan, tmp_path).fingerprint == backbone.fingerprint


def test_images_of_a_patient_share_its_weight(tmp_path: Path) -> None:
    """Ten slides of one person are not ten people."""
    task = a_task(tmp_path)
    count = len(task.train)
    together = sum_privately(task, [np.arange(count)])
    apart = sum_privately(task, None)
    np.testing.assert_allclose(together.sums, apart.sums / count, atol=count)
    assert np.linalg.norm(together.counts) <= COUNT_STEP


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_a_hostile_head_or_backbone_moves_nothing_and_is_not_told(
    tmp_path: Path, value: float
) -> None:
    """A refusal for features that are not finite would tell of a record."""
    task = a_task(tmp_path)
    with torch.no_grad():
        for buffer in task.model.net.get_submodule("reference").buffers():
            buffer.fill_(value)
    assert np.linalg.norm(sum_privately(task, None).sums) <= SCALE * len(task.train)
