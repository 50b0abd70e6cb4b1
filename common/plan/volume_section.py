"""The plan's `backbone.volume`: what volumes (CT, MRI) are brought to for a network."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from fedgraft.common.plan.section import Names, Problem, Section, check_together
from fedgraft.common.plan.window import Intensity, Window, check_windows

Side = Annotated[int, Field(ge=4, le=512)]
# mm
Spacing = Annotated[float, Field(ge=0.05, le=50)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]
# values of one prepared record, all channels together: 64 MiB
MOST_VALUES = 2**24
MOST_CHANNELS = 8
MOST_SLICES = 128


class VolumeSection(Section):
    """Size, spacing and intensities of the volumes that a network is given.

    Axes are those of the patient: from feet to head, from back to front, from left to right.
    """

    later: ClassVar[tuple[str, ...]] = ("sequences", "windows", "slices")

    size: tuple[Side, Side, Side] = Field(
        default=(96, 96, 96),
        description=(
            "voxels that a network sees: slices from feet to head, rows from back to front, columns"
            " from the patient's left to the right; around the middle of the volume"
        ),
    )
    spacing: tuple[Spacing, Spacing, Spacing] | None = Field(
        default=None,
        description=(
            "mm from voxel to voxel, in the same order; what lies outside `size` is cut, what is"
            " missing is filled with the lowest intensity. null: the whole volume is brought to"
            " `size`, whatever its extent"
        ),
    )
    window: Window | None = Field(
        default=None,
        description=(
            "lowest and highest intensity, such as [-100, 300] Hounsfield units of a CT; beyond it"
            " values are cut, and it becomes 0 to 1"
        ),
    )
    mean: tuple[Intensity, ...] = Field(
        default=(), description="subtracted from each channel (behind the window, if there is one)"
    )
    std: tuple[Deviation, ...] = Field(
        default=(), description="each channel is divided by it, behind the mean"
    )
    zscore: bool | None = Field(
        default=None,
        description=(
            "whether each channel of each volume is brought to mean 0 and deviation 1 by itself;"
            " null: where there is neither a window nor a mean"
        ),
    )
    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)] = Field(
        default=1,
        description=(
            "images of one record in one grid, in one file (NIfTI with a fourth axis); where there"
            " are `sequences` or `windows`, they are counted"
        ),
    )
    sequences: Annotated[Names, Field(max_length=MOST_CHANNELS)] = Field(
        default=(),
        description=(
            "images of one record in files of their own, in the order that a network sees them,"
            " such as [t1, t1ce, t2, flair]: columns of a list, or how names in a record's folder"
            " end"
        ),
    )
    windows: Annotated[tuple[Window, ...], Field(max_length=MOST_CHANNELS)] = Field(
        default=(),
        description=(
            "several windows on the same intensities, in place of `window`; each is a channel, such"
            " as brain, subdural and bone: [[0, 80], [-20, 180], [-800, 2000]]"
        ),
    )

    slices: Annotated[int, Field(ge=1, le=MOST_SLICES)] | None = Field(
        default=None,
        description=(
            "a 2-D network is given so many slices of each volume, the middles of as many equal"
            " parts of `size`, from feet to head; the features of a volume are the mean over its"
            " slices. null: a 3-D network, which sees all of it"
        ),
    )

    @property
    def inputs(self) -> int:
        """Return how many channels a network sees."""
        return len(self.windows) or len(self.sequences) or self.channels

    @property
    def is_standardised(self) -> bool:
        """Return whether each channel of a volume is standardised by itself."""
        if self.zscore is None:
            return self.window is None and not self.windows and not self.mean
        return self.zscore

    @model_validator(mode="after")
    def _fits_together(self) -> VolumeSection:
        single = () if self.window is None else (self.window,)
        problems = check_windows("windows", self.windows)
        problems += check_windows("window", single)
        problems += self._check_channels()
        problems += self._check_slices()
        values = math.prod(self.size) * self.inputs
        if values > MOST_VALUES:
            what = f"{values:,} values a record, and at most {MOST_VALUES:,} are taken"
            problems.append(Problem("size", what, "write fewer voxels, or a wider spacing"))
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, self.inputs):
            what = f"{len(self.mean)} and std {len(self.std)}, for {self.inputs} channels"
            problems.append(Problem("mean", what, "write one of each for each channel, or none"))
        if self.zscore and self.mean:
            what = "true, and there is a mean for all volumes"
            problems.append(Problem("zscore", what, "leave one of them out"))
        return check_together(self, problems)

    def _check_slices(self) -> list[Problem]:
        """Return what of a volume cannot be cut into slices for a network over images."""
        if self.slices is None:
            return []
        problems: list[Problem] = []
        depth, height, width = self.size
        if self.slices > depth:
            what = f"{self.slices}, and `size` has {depth} from feet to head"
            problems.append(Problem("slices", what, f"write at most {depth}"))
        if height != width:
            what = f"{height} rows and {width} columns, and slices are square"
            problems.append(Problem("size", what, "write as many columns as rows"))
        return problems

    def _check_channels(self) -> list[Problem]:
        """Return what of the keys that say what channels are cannot stand together."""
        problems: list[Problem] = []
        if self.windows and self.window is not None:
            what = "there, and so is `window`"
            problems.append(Problem("windows", what, "write one of them"))
        if self.windows and (self.sequences or self.channels not in (1, len(self.windows))):
            what = "there, and they are for records of one channel"
            problems.append(Problem("windows", what, "leave out `sequences` and `channels`"))
        if self.sequences and self.channels not in (1, len(self.sequences)):
            what = f"{self.channels}, and there are {len(self.sequences)} sequences"
            problems.append(Problem("channels", what, "leave it out"))
        return problems
