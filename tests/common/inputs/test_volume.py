"""Volumes as a network sees them: size, spacing, intensities, and what a stranger may ask for."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedgraft.common.errors import UserError
from fedgraft.common.inputs import INPUTS
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.inputs.volume import (
    Volume,
    VolumePreparation,
    cover_axis,
    interpolate,
    read_preparation,
)
from fedgraft.common.plan.volume_section import VolumeSection


def ball(sides: tuple[int, int, int], spacing: tuple[float, float, float], radius: float) -> Volume:
    """A ball of 1 in the middle of 0; radius in mm."""
    axes = []
    for side, step in zip(sides, spacing, strict=True):
        axes.append((torch.arange(side) - (side - 1) / 2) * step)
    depth, height, width = torch.meshgrid(*axes, indexing="ij")
    inside = depth.square() + height.square() + width.square() <= radius**2
    return Volume(inside.float()[None], spacing)


def test_one_body_in_two_grids_becomes_the_same_voxels() -> None:
    """A scanner with thick slices would be another disease."""
    section = VolumeSection(size=(24, 24, 24), spacing=(2.0, 2.0, 2.0), window=(0, 1))
    prepare = VolumePreparation(section)
    thin = prepare([ball((64, 64, 64), (1.0, 1.0, 1.0), 18.0)]).only
    thick = prepare([ball((20, 90, 90), (3.0, 0.7, 0.7), 18.0)]).only
    assert thin.shape == thick.shape == (1, 1, 24, 24, 24)
    assert float((thin - thick).abs().mean()) < 0.02
    voxels = float(thin.sum())
    assert voxels == pytest.approx(4 / 3 * 3.14159 * 9**3, rel=0.03)


def test_a_small_volume_lies_in_the_middle_of_the_lowest_intensity() -> None:
    """Air that is not air around a body, or a body in a corner."""
    section = VolumeSection(size=(8, 8, 8), spacing=(1, 1, 1), window=(-100, 300))
    values = torch.full((1, 4, 4, 4), 900.0)
    seen = VolumePreparation(section)([Volume(values, (1.0, 1.0, 1.0))]).only[0, 0]
    assert torch.equal(seen[2:6, 2:6, 2:6], torch.ones(4, 4, 4))
    assert float(seen.sum()) == 64


def test_the_whole_volume_is_seen_without_a_spacing() -> None:
    """A plan that says nothing of spacing, and a volume that is cut in silence."""
    values = torch.arange(12.0).view(1, 12, 1, 1).expand(1, 12, 6, 30)
    prepare = VolumePreparation(VolumeSection(size=(4, 4, 4), zscore=False))
    seen = prepare([Volume(values, (1.0, 5.0, 0.3))]).only[0, 0]
    torch.testing.assert_close(
        seen.mean((1, 2)), torch.tensor([1.2, 4.0, 7.0, 9.8]), atol=0.3, rtol=0
    )


def test_nothing_is_skipped_where_voxels_are_joined() -> None:
    """A lesion between two voxels that are looked at."""
    weights = interpolate(96, 12, 8.0)
    assert bool((weights.sum(0) > 0).all())
    torch.testing.assert_close(weights.sum(1), torch.ones(12))


@settings(max_examples=40, deadline=None)
@given(
    sides=st.tuples(*[st.integers(1, 20)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    wanted=st.one_of(st.none(), st.tuples(*[st.floats(0.1, 10)] * 3)),
    scale=st.floats(1e-3, 1e30),
)
def test_any_volume_is_finite_of_one_size_and_alone(sides, spacing, wanted, scale) -> None:
    """A record that changes another's batch row: privacy by example would be lost."""
    prepare = VolumePreparation(VolumeSection(size=(4, 6, 8), spacing=wanted))
    generator = torch.Generator().manual_seed(0)
    one = Volume(torch.randn(1, *sides, generator=generator) * scale, spacing)
    other = ball((5, 5, 5), (1.0, 1.0, 1.0), 2.0)
    together = prepare([one, other]).only
    assert together.shape == (2, 1, 4, 6, 8)
    assert bool(torch.isfinite(together).all())
    assert torch.equal(together[:1], prepare([one]).only)
    assert torch.equal(together[1:], prepare([other]).only)


def test_several_windows_are_as_many_channels() -> None:
    """Bone in the window of the brain; or windows that a hospital never sees."""
    windows = ((0.0, 80.0), (-20.0, 180.0), (-800.0, 2000.0))
    section = VolumeSection(size=(8, 8, 8), spacing=(1, 1, 1), windows=windows)
    scan = Volume(torch.randn(1, 9, 8, 7) * 400, (1.0, 1.2, 1.0))
    seen = VolumePreparation(section)([scan]).only
    assert seen.shape == (1, 3, 8, 8, 8)
    for number, window in enumerate(windows):
        alone = VolumeSection(size=(8, 8, 8), spacing=(1, 1, 1), window=window)
        assert torch.equal(seen[:, number : number + 1], VolumePreparation(alone)([scan]).only)
    again = read_preparation(json.loads(json.dumps(VolumePreparation(section).to_json())))
    assert again.section == section
    assert "windows" not in VolumeSection().model_dump(mode="json")


@settings(deadline=None, max_examples=200)
@given(extent=st.floats(0.5, 900.0), size=st.integers(4, 128))
def test_crops_cover_an_axis_and_share_halves(extent: float, size: int) -> None:
    """A lesion between two crops, or cut by both; more crops than are needed."""
    offsets = cover_axis(extent, size)
    starts = [offset - size / 2 for offset in offsets]
    assert starts[0] <= min(-size, -extent) / 2 + 1e-5 or starts == [-size / 2]
    assert starts[0] + size / 2 == -(starts[-1] + size / 2)
    if extent > size:
        assert starts[0] <= -extent / 2 + 1e-5
        assert starts[-1] + size >= extent / 2 - 1e-5
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert all(0 < gap <= size / 2 + 1 for gap in gaps)
    assert len(offsets) <= max(1, 2 * (extent + 2 - size) / size + 2)


def test_crops_are_parts_of_one_grid() -> None:
    """A crop that lies elsewhere than it should, or is prepared in another way than a volume."""
    section = VolumeSection(size=(8, 8, 8), spacing=(2.0, 1.0, 1.0), window=(-100, 300))
    scan = Volume(torch.randn(1, 20, 13, 8) * 100, (1.5, 1.0, 0.9))
    preparation = VolumePreparation(section)
    crops = [crop.only[0] for crop in preparation.crops(scan)]
    # 15, 13 and 7.2 voxels of the plan's
    assert len(crops) == 3 * 3 * 1
    assert torch.equal(crops[4], preparation([scan]).only[0])
    whole = VolumeSection(size=(16, 14, 8), spacing=(2.0, 1.0, 1.0), window=(-100, 300))
    grid = VolumePreparation(whole)([scan]).only[0]
    starts = [(depth, row) for depth in (0, 4, 8) for row in (0, 3, 6)]
    for crop, (depth, row) in zip(crops, starts, strict=True):
        torch.testing.assert_close(crop, grid[:, depth : depth + 8, row : row + 8])
    small = Volume(torch.randn(1, 3, 4, 5), (1.0, 1.0, 1.0))
    (only,) = preparation.crops(small)
    assert torch.equal(only.only, preparation([small]).only)


def test_crops_that_cannot_be_are_refused() -> None:
    """Hours, or all memory, for one scan that claims to be a kilometre long."""
    scan = Volume(torch.randn(1, 40, 40, 40), (50.0, 50.0, 50.0))
    section = VolumeSection(size=(8, 8, 8), spacing=(1.0, 1.0, 1.0))
    with pytest.raises(UserError, match="at most 512 are looked at"):
        list(VolumePreparation(section).crops(scan))
    with pytest.raises(UserError, match="sees each volume whole"):
        list(VolumePreparation(VolumeSection(size=(8, 8, 8))).crops(scan))


def test_each_channel_is_standardised_by_itself() -> None:
    """A T1 image that drowns a FLAIR image."""
    prepare = VolumePreparation(VolumeSection(size=(6, 6, 6), channels=2))
    raw = torch.randn(3, 2, 6, 6, 6) * torch.tensor([1.0, 1000.0]).view(1, 2, 1, 1, 1) + 50
    seen = prepare(raw).only
    torch.testing.assert_close(seen.mean((2, 3, 4)), torch.zeros(3, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.square().mean((2, 3, 4)), torch.ones(3, 2))


@pytest.mark.parametrize("raw", [torch.zeros(2, 3, 4, 4, 4), ["text"], torch.zeros(2, 4, 4)])
def test_what_is_no_volume_of_these_channels_is_refused(raw: Any) -> None:
    """A traceback from within torch."""
    with pytest.raises(UserError, match="record of shape"):
        VolumePreparation(VolumeSection(size=(4, 4, 4)))(raw)


def test_what_travels_gives_the_same_volumes() -> None:
    """A node that prepared in another way would train another model."""
    section = VolumeSection(
        size=(4, 5, 6), spacing=(1, 2.5, 3), mean=(0.3,), std=(0.2,), window=(-100, 300)
    )
    made = VolumePreparation(section)
    arrived = INPUTS["volume"].read_preparation(json.loads(json.dumps(made.to_json())))
    assert arrived == made
    probes = draw_probes("volume", made, made(torch.zeros(1, 1, 4, 5, 6)), 2)
    assert probes.only.shape == (2, 1, 4, 5, 6)


WRONG: list[dict[str, Any]] = [
    {"size": [512, 512, 512]},
    {"size": [10**9, 8, 8]},
    {"size": [8, 8]},
    {"size": ["8", 8, 8]},
    {"spacing": [1e-9, 1, 1]},
    {"spacing": [float("nan"), 1, 1]},
    {"window": [300, -100]},
    {"mean": [0.5]},
    {"mean": [0.5], "std": [0]},
    {"mean": [0.5], "std": [1], "zscore": True},
    {"channels": 10**6},
    {"channels": True},
    {"run": "code"},
]


@pytest.mark.parametrize("change", WRONG)
def test_a_preparation_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    """A server that asks for terabytes, or for something that nobody wrote."""
    data = VolumePreparation(VolumeSection(size=(8, 8, 8))).to_json() | change
    with pytest.raises(UserError, match="a preparation of volumes that cannot be"):
        read_preparation(data)
    with pytest.raises((ValidationError, UserError)):
        read_preparation({})


@pytest.mark.parametrize("missing", ["size", "channels", "zscore"])
def test_a_preparation_that_lacks_a_key_is_refused(missing: str) -> None:
    """A default of this release in the place of a value of another."""
    data = VolumePreparation(VolumeSection()).to_json()
    data.pop(missing)
    with pytest.raises(UserError, match="cannot be"):
        read_preparation(data)


@pytest.mark.slow
def test_volumes_are_made_brighter_as_monai_does() -> None:
    """A draw that all share would make one record's gradient depend on another's."""
    from monai.transforms.intensity.array import ScaleIntensity, ShiftIntensity

    augment = INPUTS["volume"].augment
    volumes = torch.randn(3, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    batch = Batch({"volume": volumes})
    changed = augment(batch, "shift-scale", torch.Generator().manual_seed(1)).only
    assert torch.equal(augment(batch, "none", torch.Generator()).only, volumes)
    seen = set()
    for volume, other in zip(volumes, changed, strict=True):
        low, high = volume.min(), volume.max()
        factor = float((other.max() - other.min()) / (high - low)) - 1
        offset = float(other.min() - low * (1 + factor))
        assert max(abs(factor), abs(offset)) <= 0.1001
        theirs = ShiftIntensity(offset)(ScaleIntensity(minv=None, maxv=None, factor=factor)(volume))
        torch.testing.assert_close(other, torch.as_tensor(theirs), rtol=1e-4, atol=1e-5)
        seen.add(round(factor, 5))
    assert len(seen) == 3
