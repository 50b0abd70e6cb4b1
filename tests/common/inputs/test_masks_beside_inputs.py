"""Masks go where their images and volumes go: resized, cropped, resampled, augmented."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.aligned_masks import align_mask
from fedgraft.common.inputs.augment_images import augment_images_and_masks
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.inputs.volume import Volume, VolumePreparation
from fedgraft.common.plan.volume_section import VolumeSection


def plain(size: int | None, crop: int | None) -> Preprocess:
    return Preprocess(size=size, crop=crop, mean=(0.0,), std=(1.0,), antialias=False)


# ── images ────────────────────────────────────────────────────────────────────────────────────────
@settings(max_examples=40, deadline=None)
@given(
    st.integers(5, 60),
    st.integers(5, 60),
    st.sampled_from([None, 8, 32, 50]),
    st.sampled_from([None, 16, 40]),
)
def test_a_mask_lies_where_its_image_lies(
    height: int, width: int, size: int | None, crop: int | None
) -> None:
    """A mask that is its own image, half of it white: prepared, both still say the same but for
    pixels on the edge, where the image is a mixture.
    """
    rng = np.random.default_rng(height * 61 + width)
    mask = torch.zeros(height, width, dtype=torch.uint8)
    top, left = rng.integers(0, height), rng.integers(0, width)
    mask[top:, left:] = 1
    preparation = plain(size, crop)
    image = preparation((mask * 255)[None, None]).only[0, 0]
    aligned = align_mask(mask, preparation)
    assert aligned.shape == image.shape
    assert aligned.dtype == torch.uint8
    sure = (image < 0.01) | (image > 0.99)
    assert torch.equal(aligned[sure], image[sure].round().to(torch.uint8))
    if size is None or size == min(height, width):
        assert bool(sure.all())


def test_classes_are_never_mixed() -> None:
    """Between class 0 and class 4 interpolation would find classes 1, 2 and 3."""
    mask = torch.tensor([[0, 4], [4, 0]], dtype=torch.uint8).repeat_interleave(3, 0)
    mask = mask.repeat_interleave(3, 1)
    assert set(align_mask(mask, plain(19, 19)).unique().tolist()) == {0, 4}


# ── volumes ───────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 1.5)])
@pytest.mark.parametrize("slices", [None, 4])
def test_a_mask_of_a_volume_lies_where_the_volume_lies(
    spacing: tuple[float, float, float] | None, slices: int | None
) -> None:
    """Another spacing or other slices than the volume's would shift a tumour."""
    section = VolumeSection(size=(12, 16, 16), spacing=spacing, window=(0, 1), slices=slices)
    preparation = VolumePreparation(section)
    values = torch.zeros(1, 9, 30, 21)
    values[0, 3:, 10:22, 5:] = 1.0
    volume = Volume(values, (3.0, 0.8, 1.0))
    seen = preparation([volume]).only[0, 0]
    aligned = align_mask(Volume(values.to(torch.uint8), volume.spacing), preparation)
    assert aligned.shape == seen.shape
    sure = (seen < 0.01) | (seen > 0.99)
    assert float(sure.float().mean()) > 0.4
    assert torch.equal(aligned[sure], seen[sure].round().to(torch.uint8))


def test_a_mask_of_something_else_is_refused() -> None:
    preparation = VolumePreparation(VolumeSection(size=(8, 8, 8)))
    with pytest.raises(UserError, match="something else"):
        align_mask(torch.zeros(4, 4), preparation)


# ── together at random ────────────────────────────────────────────────────────────────────────────
def pairs(n: int = 6, side: int = 32) -> tuple[Batch, torch.Tensor]:
    """Images whose red channel is their mask."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randint(0, 2, (n, 1, 4, 4), generator=generator).float()
    masks = torch.nn.functional.interpolate(coarse, (side, side), mode="nearest")
    images = torch.rand(n, 3, side, side, generator=generator)
    images[:, :1] = masks
    return Batch({"image": images}), masks[:, 0].to(torch.uint8)


@pytest.mark.parametrize("augment", ["none", "flip", "flip-crop", "affine", "patches"])
def test_every_pixel_keeps_its_class(augment: str) -> None:
    """An image that was mirrored without its mask teaches the network what is not there."""
    batch, masks = pairs()
    generator = torch.Generator().manual_seed(1)
    changed, moved = augment_images_and_masks(batch, masks, augment, generator)
    red = changed.only[:, 0]
    assert moved.dtype == masks.dtype
    assert moved.shape == red.shape
    sure = (red < 0.02) | (red > 0.98)
    assert float(sure.float().mean()) > (0.6 if augment == "affine" else 0.999)
    agree = moved[sure] == red[sure].round().to(torch.uint8)
    assert float(agree.float().mean()) > 0.999
    if augment != "none":
        assert not torch.equal(changed.only, batch.only)
    if augment == "patches":
        assert changed.only.shape == (6, 3, 16, 16)


def test_the_same_generator_gives_the_same_pairs_and_a_pair_is_drawn_by_itself() -> None:
    """One image more must not change what another is trained as: the bits of a run are promised."""
    batch, masks = pairs()
    for augment in ("flip", "affine"):
        found = []
        for _ in range(2):
            generator = torch.Generator().manual_seed(5)
            found.append(augment_images_and_masks(batch, masks, augment, generator))
        assert torch.equal(found[0][0].only, found[1][0].only)
        assert torch.equal(found[0][1], found[1][1])
