"""Volumes as a hospital has them (CT, MRI) → volumes as a backbone was trained on them.

What travels is the plan's own `backbone.volume`: numbers, each with a bound, so that nobody can ask
a hospital for more memory than one prepared record of 64 MiB. Each volume is prepared by itself:
no record changes another's.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.material import Input, Preparation
from fedgraft.common.plan.backbone_section import BackboneSection
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.plan.volume_section import VolumeSection

Sides = tuple[float, float, float]
AXES = (1, 2, 3)
# of one volume, where it is looked at in overlapping parts
MOST_CROPS = 512
# of intensities, at most
SCALING = 0.1
SHIFT = 0.1


@dataclass(frozen=True, eq=False)
class Volume:
    """One raw record: voxels on the patient's axes, and how far they are apart.

        Volume(torch.zeros(1, 40, 512, 512), spacing=(5.0, 0.7, 0.7))

    Attributes:
        values: float32 `(channels, D, H, W)`: from feet to head, from back to front, from the
            patient's left to the right.
        spacing: mm from voxel to voxel, in the order D, H, W.
    """

    values: Tensor
    spacing: Sides


@dataclass(frozen=True)
class VolumePreparation:
    """Volumes → float32 `(n, channels, D, H, W)` of one size, spacing and scale of intensities.

        preparation = VolumePreparation(VolumeSection(size=(64, 64, 64), window=(-100, 300)))
        preparation([ct, another])["volume"].shape  # (2, 1, 64, 64, 64)

    Attributes:
        section: as the plan has it.
    """

    section: VolumeSection

    @property
    def channels(self) -> int:
        """Return how many images a record is made of."""
        return self.section.inputs

    @property
    def read_channels(self) -> int:
        """Return how many images a raw record has: one, where windows make several of it."""
        return 1 if self.section.windows else self.section.inputs

    @property
    def slices(self) -> int | None:
        """Return how many slices of a volume a 2-D network is given; None: a 3-D one sees all."""
        return self.section.slices

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one prepared record: channels, slices or depth, height, width."""
        depth, height, width = self.section.size
        return (self.channels, self.slices or depth, height, width)

    @property
    def crop(self) -> int | None:
        """Return the side of a slice for a 2-D network, pixels; None: there are no slices."""
        return None if self.slices is None else self.section.size[1]

    def __call__(self, raw: Sequence[Volume] | Tensor) -> Batch:
        """Return a prepared batch. A tensor `(n, channels, D, H, W)` has the plan's own spacing.

        Raises:
            UserError: another number of channels, or no volumes.
        """
        volumes: Sequence[Any]
        if isinstance(raw, Tensor):
            spacing = self.section.spacing or (1.0, 1.0, 1.0)
            volumes = [Volume(values, spacing) for values in raw]
        else:
            volumes = raw
        prepared = [self._prepare(volume) for volume in volumes]
        if not prepared:
            return Batch({"volume": torch.empty(0, *self.shape)})
        return Batch({"volume": torch.stack(prepared)})

    def crops(self, volume: Volume) -> Iterator[Batch]:
        """Yield crops of the plan's size that cover a whole volume, one by one, each prepared as a
        volume of its own: neighbours share about half of their voxels. One that is no larger than
        `size` is one crop, the usual one.

        Raises:
            UserError: a plan without a spacing, which brings the whole volume to `size`; too many
                crops.
        """
        if self.section.spacing is None:
            what = "a plan without backbone.volume.spacing sees each volume whole"
            raise UserError(what, where="--sliding", remedy="leave it out")
        for _, crop in self.cover(volume):
            yield crop

    def cover(self, volume: Volume) -> Iterator[tuple[tuple[int, ...], Batch]]:
        """Yield the same crops with how far their middles lie from the volume's, in voxels of the
        plan; one crop, where a plan brings the whole volume to `size`. Raise as `crops`.
        """
        wanted = self.section.spacing
        if wanted is None:
            yield (0, 0, 0), Batch({"volume": self._prepare(volume)[None]})
            return
        offsets: list[list[int]] = []
        sides = zip(volume.values.shape[1:], volume.spacing, wanted, self.section.size, strict=True)
        for side, step, output, size in sides:
            offsets.append(cover_axis(side * step / output, size))
        count = math.prod(map(len, offsets))
        if count > MOST_CROPS:
            what = f"a volume of {count:,} crops, and at most {MOST_CROPS} are looked at"
            raise UserError(what, where="--sliding", remedy="give the part that matters")
        for offset in itertools.product(*offsets):
            yield offset, Batch({"volume": self._prepare(volume, offset)[None]})

    def find_outputs(self, volume: Volume, axis: int, offset: int) -> tuple[Tensor, Tensor]:
        """Return the prepared slice, row or column that is nearest to each of a raw volume's along
        an axis, int64 `(side,)`, and whether the crop reaches there.

        Args:
            offset: of the crop's middle from that of the volume, in voxels of the plan.
        """
        sides = volume.values.shape[1:]
        outputs = self.section.size[axis]
        step = self.step(sides, volume.spacing)[axis]
        raw = torch.arange(sides[axis], dtype=torch.float64) - (sides[axis] - 1) / 2
        places = raw / step + (outputs - 1) / 2 - offset
        is_inside = (places >= -0.5) & (places <= outputs - 0.5)
        nearest = places.round().clamp(0, outputs - 1).to(torch.int64)
        if axis == 0 and self.slices is not None:
            seen = torch.tensor(self.slice_places())
            nearest = (seen[None] - nearest[:, None]).abs().argmin(1)
        return nearest, is_inside

    def _prepare(self, volume: Any, offset: tuple[int, ...] = (0, 0, 0)) -> Tensor:
        """Return one volume as the network sees it.

        Args:
            offset: of the middle of what is seen from that of the volume, in voxels of the plan.
        """
        shape = tuple(volume.values.shape) if isinstance(volume, Volume) else None
        if shape is None or len(shape) != 4 or shape[0] != self.read_channels or 0 in shape:
            what = f"a record of shape {shape}"
            remedy = f"give volumes ({self.read_channels}, D, H, W), as backbone.volume says"
            raise UserError(what, remedy=remedy)
        values = volume.values.to(torch.float32)
        windows = self.section.windows
        if self.section.window is not None:
            windows = (self.section.window,)
        if not windows:
            lowest = values.amin(AXES, keepdim=True)
            seen = self._resample(values - lowest, volume.spacing, offset) + lowest
            return self._pick_slices(self._scale(seen))
        shown: list[Tensor] = []
        for low, high in windows:
            seen = self._resample(values.clamp(low, high) - low, volume.spacing, offset)
            shown.append(seen / (high - low))
        return self._pick_slices(self._scale(torch.cat(shown)))

    def _pick_slices(self, values: Tensor) -> Tensor:
        """Return the slices that a 2-D network is given: the middles of as many equal parts."""
        if self.slices is None:
            return values
        return values[:, self.slice_places()]

    def slice_places(self) -> list[int]:
        """Return which slices a 2-D network is given."""
        slices = self.slices or self.section.size[0]
        part = self.section.size[0] / slices
        return [int((number + 0.5) * part) for number in range(slices)]

    def step(self, sides: Sequence[int], spacing: Sides) -> Sides:
        """Return how far prepared voxels are apart, in voxels of a raw volume.

        Args:
            sides: of the raw volume, voxels.
            spacing: of its voxels, mm.
        """
        steps: list[float] = []
        for axis in range(3):
            # the whole volume, whatever its extent
            wanted = sides[axis] * spacing[axis] / self.section.size[axis]
            if self.section.spacing is not None:
                wanted = self.section.spacing[axis]
            steps.append(wanted / spacing[axis])
        return (steps[0], steps[1], steps[2])

    def _resample(self, values: Tensor, spacing: Sides, offset: tuple[int, ...]) -> Tensor:
        """Return `(channels, *size)` around the middle, or so far from it; what lies outside the
        volume is 0.
        """
        size = self.section.size
        sides = tuple(values.shape[1:])
        steps = self.step(sides, spacing)
        # what shrinks most goes first: nothing in between is larger than both ends
        for axis in sorted(range(3), key=lambda axis: size[axis] / sides[axis]):
            weights = interpolate(sides[axis], size[axis], steps[axis], offset[axis])
            values = values.movedim(1 + axis, -1) @ weights.T
            values = values.movedim(-1, 1 + axis)
        return values.contiguous()

    def _scale(self, values: Tensor) -> Tensor:
        section = self.section
        if section.mean:
            mean = torch.tensor(section.mean).view(-1, 1, 1, 1)
            std = torch.tensor(section.std).view(-1, 1, 1, 1)
            return (values - mean) / std
        if not section.is_standardised:
            return values
        exact = values.double()
        centred = exact - exact.mean(AXES, keepdim=True)
        deviation = centred.square().mean(AXES, keepdim=True).sqrt()
        # a volume of one value has none
        deviation = torch.where(deviation > 0, deviation, 1.0)
        return (centred / deviation).to(torch.float32)

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and lists: the plan's own keys."""
        return self.section.model_dump(mode="json")


def cover_axis(extent: float, size: int) -> list[int]:
    """Return how far the middles of crops lie from that of a volume, along one axis: as few as
    cover it and share half of their voxels with their neighbours.

    Args:
        extent: of the volume, in voxels of the crops.
        size: of a crop, voxels.
    """
    beyond = max(0, math.ceil(extent - 1e-6) - size)
    # an even number: then the crop in the middle is the one that is seen without others
    beyond += beyond % 2
    if beyond == 0:
        return [0]
    steps = math.ceil(beyond / (size / 2))
    return [round(beyond * step / steps) - beyond // 2 for step in range(steps + 1)]


def place_outputs(inputs: int, outputs: int, step: float, offset: int = 0) -> Tensor:
    """Return where each output lies among the inputs along one axis, float64 `(outputs,)`: their
    middles on one another, or `offset` outputs apart.
    """
    places = torch.arange(outputs, dtype=torch.float64) - (outputs - 1) / 2 + offset
    return places * step + (inputs - 1) / 2


def find_places(inputs: int, outputs: int, step: float, offset: int = 0) -> tuple[Tensor, Tensor]:
    """Return the input that is nearest to each output along one axis, int64 `(outputs,)`, and
    whether the output lies inside at all; arguments as of `interpolate`.
    """
    places = place_outputs(inputs, outputs, step, offset)
    is_inside = (places >= -0.5) & (places <= inputs - 0.5)
    return places.round().clamp(0, inputs - 1).to(torch.int64), is_inside


def interpolate(inputs: int, outputs: int, step: float, offset: int = 0) -> Tensor:
    """Return the weights of linear interpolation along one axis, float32 `(outputs, inputs)`.

    The middles of both lie on one another, or so many outputs apart. An output outside the inputs
    has weights of 0. Where outputs are farther apart than inputs, each is a mean over as many, so
    that nothing is skipped.

    Args:
        step: from output to output, in inputs.
        offset: of the middle of the outputs from that of the inputs, in outputs.
    """
    places = place_outputs(inputs, outputs, step, offset)
    away = (places[:, None] - torch.arange(inputs, dtype=torch.float64)).abs()
    weights = (1 - away / max(1.0, step)).clamp(min=0.0)
    is_inside = (places >= -0.5) & (places <= inputs - 0.5)
    sums = weights.sum(1, keepdim=True).clamp(min=1e-9)
    return (weights / sums * is_inside[:, None]).to(torch.float32)


def read_preparation(data: Mapping[str, Any]) -> VolumePreparation:
    """Return the opposite of `VolumePreparation.to_json`. Raise `UserError` for anything else."""
    try:
        section = VolumeSection.model_validate_json(json.dumps(dict(data)), strict=True)
        preparation = VolumePreparation(section)
        if preparation.to_json() == dict(data):
            return preparation
    except (ValidationError, TypeError, ValueError):
        pass
    what = f"a preparation of volumes that cannot be: {str(dict(data))[:200]}"
    raise UserError(what, remedy="save the backbone again")


def example_volume(preparation: Preparation, backbone: BackboneSection, task: TaskSection) -> Batch:
    """Return one volume of zeros, or its slices, of the size that a plan's backbone sees."""
    assert isinstance(preparation, VolumePreparation)
    return Batch({"volume": torch.zeros(1, *preparation.shape)})


def shift_and_scale(batch: Batch, augment: str, generator: torch.Generator) -> Batch:
    """Multiply the intensities of volumes `(n, channels, D, H, W)` by a number around 1 and add one
    around 0, each volume by its own draws from `generator`. None is mirrored: a body's left is not
    its right.

    As MONAI's RandScaleIntensity and RandShiftIntensity: v (1 + factor) + offset.
    """
    if augment == "none":
        return batch
    volumes = batch.only
    shape = (len(volumes), 1, 1, 1, 1)
    factors = SCALING * (2 * torch.rand(shape, generator=generator) - 1)
    offsets = SHIFT * (2 * torch.rand(shape, generator=generator) - 1)
    return batch.map(lambda tensor: tensor * (1 + factors) + offsets)


VOLUME = Input(
    name="volume",
    plural="volumes",
    read_preparation=read_preparation,
    example=example_volume,
    augment=shift_and_scale,
    # brighter or darker, a mask is as it was
    augment_pairs=lambda batch, masks, augment, generator: (
        shift_and_scale(batch, augment, generator),
        masks,
    ),
)
