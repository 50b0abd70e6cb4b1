"""The loss of boxes against torchvision and a slow loop; which places answer for which box."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedgraft.common.model.box_head import locate
from fedgraft.common.tasks.box_geometry import generalized_iou, intersection_over_union, suppress
from fedgraft.common.tasks.box_losses import assign_places, box_losses, focal_losses
from fedgraft.common.tasks.box_places import find_boxes, read_places

SIDE = 64
STRIDES = (4, 8)


def draw_boxes(generator: torch.Generator, count: int) -> Tensor:
    corners = torch.rand(count, 2, generator=generator) * 40
    sides = torch.rand(count, 2, generator=generator) * 50 + 3
    return torch.cat([corners, (corners + sides).clamp(max=SIDE)], dim=1)


def draw_targets(seed: int, images: int, most: int = 6) -> Tensor:
    """Boxes of two classes; the last image has none."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.zeros(images, most, 5)
    targets[..., 0] = -1
    for number in range(images - 1):
        count = int(torch.randint(1, most + 1, (1,), generator=generator))
        targets[number, :count, 1:] = draw_boxes(generator, count)
        targets[number, :count, 0] = torch.randint(0, 2, (count,), generator=generator).float()
    return targets


def draw_outputs(seed: int, images: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    levels = []
    for stride in STRIDES:
        where = locate((SIDE // stride, SIDE // stride), stride).flatten(1)
        levels.append(where.expand(images, -1, -1))
    where = torch.cat(levels, dim=2)
    logits = torch.randn(images, 2, where.shape[2], generator=generator)
    sides = torch.rand(images, 4, where.shape[2], generator=generator) * 20 + 0.5
    return torch.cat([logits, sides, where], dim=1)


def find_owner(x: float, y: float, stride: float, boxes: Tensor) -> int | None:
    """FCOS's rule in words: the smallest box that a place lies in, near its middle, of the sizes of
    its level.
    """
    best = None
    smallest = math.inf
    for number, (kind, left, top, right, bottom) in enumerate(boxes.tolist()):
        sides = (x - left, y - top, right - x, bottom - y)
        if kind < 0 or min(sides) <= 0:
            continue
        off = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2))
        least = 0.0 if stride == STRIDES[0] else 4 * stride
        most = math.inf if stride == STRIDES[-1] else 8 * stride
        if off >= 1.5 * stride or not least < max(sides) <= most:
            continue
        area = (right - left) * (bottom - top)
        if area < smallest:
            smallest = area
            best = number
    return best


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_places_answer_for_the_boxes_that_a_slow_loop_gives_them(seed: int) -> None:
    """A place that answers for another box would learn to tell it there."""
    targets = draw_targets(seed, 3)
    places = read_places(draw_outputs(seed, 3))
    owners, is_owned = assign_places(places, targets)
    for image in range(3):
        for place in range(places.strides.shape[1]):
            x, y = places.centres[image, :, place].tolist()
            expected = find_owner(x, y, float(places.strides[image, place]), targets[image])
            own = int(owners[image, place]) if is_owned[image, place] else None
            assert own == expected


def test_the_loss_is_that_of_torchvision_over_the_same_places() -> None:
    """Focal and GIoU loss by example, by the number of places that answer; an image without a box
    has the loss of its classes alone.
    """
    from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

    targets = draw_targets(2, 4)
    outputs = draw_outputs(2, 4)
    places = read_places(outputs)
    owners, is_owned = assign_places(places, targets)
    losses = box_losses(outputs, targets)
    for image in range(4):
        mine = is_owned[image]
        own = targets[image][owners[image]]
        truth = torch.zeros(2, len(mine))
        for place in mine.nonzero()[:, 0].tolist():
            truth[int(own[place, 0]), place] = 1
        focal = sigmoid_focal_loss(outputs[image, :2], truth, alpha=0.25, gamma=2).sum()
        off = generalized_box_iou_loss(places.boxes[image][mine], own[mine, 1:]).sum()
        expected = (focal + off) / max(int(mine.sum()), 1)
        assert float(losses[image]) == pytest.approx(float(expected), rel=1e-5)
    assert not is_owned[3].any()
    assert float(losses[3]) > 0


def test_the_loss_of_an_image_does_not_depend_on_the_others() -> None:
    """Else one record's gradient could not be clipped by itself."""
    targets = draw_targets(4, 3)
    outputs = draw_outputs(4, 3)
    together = box_losses(outputs, targets)
    alone = [float(box_losses(outputs[n : n + 1], targets[n : n + 1])[0]) for n in range(3)]
    assert together.tolist() == pytest.approx(alone, rel=1e-6)


def test_overlaps_equal_torchvision() -> None:
    from torchvision.ops import box_iou, generalized_box_iou

    generator = torch.Generator().manual_seed(1)
    first, second = draw_boxes(generator, 9), draw_boxes(generator, 9)
    ours = intersection_over_union(first, second)
    assert torch.allclose(ours, box_iou(first, second), atol=1e-6)
    pairs = generalized_iou(first, second)
    assert torch.allclose(pairs, generalized_box_iou(first, second).diagonal(), atol=1e-5)


def test_boxes_of_no_area_have_a_finite_loss() -> None:
    box = torch.zeros(1, 4)
    assert bool(torch.isfinite(generalized_iou(box, box)).all())
    assert bool(torch.isfinite(focal_losses(torch.tensor([1e4]), torch.zeros(1))).all())


def test_a_worse_box_of_the_same_class_is_suppressed_and_one_of_another_is_not() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [30, 30, 40, 40]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.95])
    classes = torch.tensor([0, 0, 1, 0])
    assert suppress(boxes, scores, classes, 0.6).tolist() == [3, 0, 2]


def test_the_box_of_a_place_is_found_where_it_says() -> None:
    outputs = draw_outputs(0, 1)
    outputs[:, :2] = -9
    # x = 10, y = 6 on the level of stride 4
    place = 1 * 16 + 2
    outputs[0, 1, place] = 2
    outputs[0, 2:6, place] = torch.tensor([4.0, 3.0, 6.0, 7.0])
    found = find_boxes(read_places(outputs), 0, 10)
    assert found.boxes.tolist() == [[6, 3, 16, 13]]
    assert found.classes.tolist() == [1]
    assert float(found.scores[0]) == pytest.approx(1 / (1 + math.exp(-2)))
