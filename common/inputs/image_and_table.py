"""An image and a row of a table together, both of one record: prepared side by side.

Each is prepared as it would be alone. What travels is the image's preparation: rows are scaled in
the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch, concatenate
from fedgraft.common.inputs.image import Preprocess, augment_images, example_image
from fedgraft.common.inputs.material import Input, Preparation
from fedgraft.common.inputs.table import TablePreparation
from fedgraft.common.plan.backbone_section import BackboneSection
from fedgraft.common.plan.task_section import TaskSection

# names of the tensors of a batch, in the order in which they are joined
IMAGE = "image"
ROW = "table"


@dataclass(frozen=True, eq=False)
class ImageWithRow:
    """One raw record.

        ImageWithRow(torch.zeros(1, 480, 640, dtype=torch.uint8), torch.tensor([61.0, 1.0]))

    Attributes:
        image: `(1 or 3, H, W)`, uint8, uint16 or float on 0–1.
        row: `(inputs,)`, NaN where a value is missing.
    """

    image: Tensor
    row: Tensor


@dataclass(frozen=True)
class PairPreparation:
    """Images and rows → float32 `(n, 3, crop, crop)` and `(n, inputs)`.

        preparation = PairPreparation(for_images(32))
        preparation([record, another]).tensors["table"].shape  # (2, inputs)

    Attributes:
        image: what images go through.
    """

    image: Preprocess

    @property
    def crop(self) -> int | None:
        """Return the side of prepared images, pixels."""
        return self.image.crop

    @property
    def channels(self) -> int | None:
        """Return the channels of prepared images, where their preparation says them."""
        return getattr(self.image, "channels", None)

    def __call__(self, raw: Sequence[ImageWithRow]) -> Batch:
        """Return a prepared batch of n records; their images may differ in size.

        Raises:
            UserError: something else than images with rows.
        """
        if not raw or not all(isinstance(record, ImageWithRow) for record in raw):
            what = "no list of images with rows"
            raise UserError(what, remedy="give a list of ImageWithRow(image, row), one a record")
        images = concatenate([self.image(record.image[None]) for record in raw])
        rows = TablePreparation()(torch.stack([record.row for record in raw]))
        return Batch({IMAGE: images.only, ROW: rows.only})

    def to_json(self) -> dict[str, Any]:
        """Return what the image's preparation does: rows go through a cast alone."""
        return self.image.to_json()


def read_pair_preparation(data: Mapping[str, Any]) -> PairPreparation:
    """Return the opposite of `PairPreparation.to_json`. Raise `UserError` for anything else."""
    return PairPreparation(Preprocess.from_json(data))


def example_pair(preparation: Preparation, backbone: BackboneSection, task: TaskSection) -> Batch:
    """Return one black image and one row of zeros, as a plan's backbone sees them."""
    own = preparation.image if isinstance(preparation, PairPreparation) else preparation
    image = example_image(own, backbone, task)
    return Batch({IMAGE: image.only, ROW: torch.zeros(1, task.inputs)})


def augment_pairs(batch: Batch, augment: str, generator: torch.Generator) -> Batch:
    """Change images `(n, channels, H, W)` at random, each by its own draw; rows stay."""
    if augment == "none":
        # it may be activations that are trained on
        return batch
    images = augment_images(Batch({IMAGE: batch.tensors[IMAGE]}), augment, generator)
    return Batch({IMAGE: images.only, ROW: batch.tensors[ROW]})


IMAGE_AND_TABLE = Input(
    name="image-and-table",
    plural="images, each with a row of a table",
    read_preparation=read_pair_preparation,
    example=example_pair,
    augment=augment_pairs,
)
