"""Boxes go where their images go: resized, cropped, mirrored."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.aligned_boxes import align_boxes
from fedgraft.common.inputs.augment_boxes import augment_images_and_boxes, mirror
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.inputs.material import Preparation


def paint(height: int, width: int, box: tuple[int, int, int, int]) -> Tensor:
    """A black image with a white box."""
    image = torch.zeros(1, 1, height, width, dtype=torch.uint8)
    left, top, right, bottom = box
    image[..., top:bottom, left:right] = 255
    return image


def see(image: Tensor) -> list[float]:
    """Left, top, right, bottom of what is brighter than half."""
    rows, columns = (image > 0.5).nonzero(as_tuple=True)
    ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return [float(end) for end in ends]


def as_targets(*boxes: tuple[int, int, int, int]) -> Tensor:
    rows = [[0, *box] for box in boxes]
    return torch.tensor([*rows, [-1, 0, 0, 0, 0]], dtype=torch.float32)


@settings(deadline=None, max_examples=40)
@given(
    sides=st.tuples(st.integers(30, 90), st.integers(30, 90)),
    size=st.sampled_from([None, 32, 64]),
    crop=st.sampled_from([None, 32, 48]),
    corner=st.tuples(st.integers(0, 14), st.integers(0, 14)),
)
def test_a_box_lies_around_what_it_lay_around(
    sides: tuple[int, int], size: int | None, crop: int | None, corner: tuple[int, int]
) -> None:
    """Boxes beside their things teach nothing; a pixel is lost where resizing blurs the edges."""
    height, width = sides
    left, top = (width // 2 - 7 + corner[0] // 2, height // 2 - 7 + corner[1] // 2)
    box = (left, top, left + 12, top + 9)
    preparation = Preprocess(size=size, crop=crop, mean=(0.0,), std=(1.0,))
    image = preparation(paint(height, width, box)).only[0, 0]
    aligned = align_boxes(as_targets(box), sides, preparation)
    assert aligned[:, 0].tolist() == [0, -1]
    assert see(image) == pytest.approx(aligned[0, 1:].tolist(), abs=1.01)


def test_a_box_that_the_crop_cuts_ends_there_and_one_outside_is_none() -> None:
    """What a network cannot see it cannot be asked for."""
    preparation = Preprocess(size=20, crop=20, mean=(0.0,), std=(1.0,))
    aligned = align_boxes(as_targets((5, 2, 25, 12), (0, 0, 9, 9)), (20, 40), preparation)
    assert aligned[0].tolist() == [0, 0, 2, 15, 12]
    assert aligned[:, 0].tolist() == [0, -1, -1]


def test_boxes_of_something_else_than_images_are_refused() -> None:
    class Other:
        def __call__(self, raw: object) -> Batch:
            raise NotImplementedError

        def to_json(self) -> dict[str, object]:
            return {}

    other: Preparation = Other()
    with pytest.raises(UserError):
        align_boxes(as_targets((0, 0, 1, 1)), (5, 5), other)


def test_boxes_are_mirrored_with_their_images() -> None:
    box = (3, 5, 13, 11)
    images = (paint(20, 30, box).float() / 255).expand(16, -1, -1, -1)
    targets = as_targets(box).expand(16, -1, -1)
    generator = torch.Generator().manual_seed(1)
    batch, moved = augment_images_and_boxes(Batch({"image": images}), targets, "flip", generator)
    seen = [see(image[0]) for image in batch.only]
    assert seen == moved[:, 0, 1:].tolist()
    assert sorted(map(tuple, seen))[0] != sorted(map(tuple, seen))[-1]
    assert (moved[:, 1, 0] == -1).all()


def test_mirrored_twice_a_box_is_where_it_was() -> None:
    targets = as_targets((3, 5, 13, 11))
    assert torch.equal(mirror(mirror(targets, 30), 30), targets)


def test_without_augmentation_nothing_is_drawn() -> None:
    generator = torch.Generator().manual_seed(1)
    state = generator.get_state()
    batch = Batch({"image": torch.zeros(2, 1, 4, 4)})
    targets = torch.zeros(2, 1, 5)
    same, boxes = augment_images_and_boxes(batch, targets, "none", generator)
    assert same is batch
    assert boxes is targets
    assert torch.equal(generator.get_state(), state)
    with pytest.raises(ValueError, match="mirrored"):
        augment_images_and_boxes(batch, targets, "affine", generator)
