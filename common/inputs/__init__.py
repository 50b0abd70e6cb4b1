"""Raw material: one kind a file, from what a reader reads to a prepared batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgraft.common.registry import Line, Registry

if TYPE_CHECKING:
    from fedgraft.common.inputs.material import Input

# of images
FLIPS = ("flip", "flip-crop")


@dataclass(frozen=True)
class InputLine(Line):
    """A raw material, and what a plan must know of it without importing it.

    Attributes:
        has_columns: whether the plan names the columns that are the inputs.
        has_pixels: whether it has a size in pixels, and can be flipped and cropped.
        augmentations: what `train.augment` may name for it, beside flips and crops of pixels.
        example: a backbone that takes it, to be named where another was written.
        has_text: whether the plan names the columns that hold its text.
        has_volumes: whether it is brought to a size in voxels, `backbone.volume`.
        has_signals: whether it has channels and a rate, which the plan says: `backbone.signal`.
    """

    has_columns: bool
    has_pixels: bool
    example: str
    augmentations: tuple[str, ...] = ()
    has_text: bool = False
    has_volumes: bool = False
    has_signals: bool = False

    @property
    def changes(self) -> tuple[str, ...]:
        """Return everything that `train.augment` may name for it."""
        return (*FLIPS, *self.augmentations) if self.has_pixels else self.augmentations


_LINES = {
    "image": InputLine(
        "fedgraft.common.inputs.image:IMAGE",
        has_columns=False,
        has_pixels=True,
        example="write `name: cifar-resnet20`, or a torchvision model's name",
        augmentations=("affine", "patches"),
    ),
    "image-and-table": InputLine(
        "fedgraft.common.inputs.image_and_table:IMAGE_AND_TABLE",
        has_columns=True,
        has_pixels=True,
        example="write `name: with-table/NAME`, NAME of an image's network, such as resnet18",
        augmentations=("affine",),
    ),
    "tabular": InputLine(
        "fedgraft.common.inputs.table:TABLE",
        has_columns=True,
        has_pixels=False,
        example="write `name: mlp`",
    ),
    "text": InputLine(
        "fedgraft.common.inputs.text:TEXT",
        has_columns=False,
        has_pixels=False,
        example="write `name: huggingface`, and a model's folder as `weights`",
        has_text=True,
    ),
    "volume": InputLine(
        "fedgraft.common.inputs.volume:VOLUME",
        has_columns=False,
        has_pixels=False,
        example="write `name: monai/resnet18-3d`, or another 3-D network of MONAI",
        augmentations=("shift-scale",),
        has_volumes=True,
    ),
    "series": InputLine(
        "fedgraft.common.inputs.series:SERIES",
        has_columns=False,
        has_pixels=False,
        example="write `name: series-resnet`",
        augmentations=("jitter",),
        has_signals=True,
    ),
}
INPUTS: Registry[Input] = Registry("task.kind", "raw material", _LINES)


def input_line(material: str) -> InputLine:
    """Return the line of a raw material. Raise `UserError` for a name that is none."""
    if material not in INPUTS:
        raise INPUTS.unknown(material)
    return INPUTS.lines[material]
