"""An image's network with a table beside it: two encoders, and what is under one fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedgraft.common.backbones.backbone import (
    Backbone,
    backbone_from_state,
    backbone_state,
    preparation_from_json,
)
from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image_and_table import (
    IMAGE,
    ROW,
    ImageWithRow,
    PairPreparation,
    augment_pairs,
)
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import DepthChoice, graft

NAME = "with-table/cifar-resnet8"
# an age, a sex, a marker
SIZES = (0, 2, 0)
RANGES = ((20.0, 90.0), (0.0, 10.0))


def declared(**options: object) -> Backbone:
    """Return a backbone whose columns are scaled by ranges."""
    return load_backbone(NAME, image_size=16, category_sizes=SIZES, ranges=RANGES, **options)


def records(count: int = 4) -> list[ImageWithRow]:
    """Return raw records, their images of several sizes, with holes in their rows."""
    generator = torch.Generator().manual_seed(0)
    made: list[ImageWithRow] = []
    for number in range(count):
        side = 18 + number
        image = torch.randint(0, 255, (1, side, side), generator=generator).to(torch.uint8)
        row = torch.tensor([40.0 + number, 1.0, 0.0, float(number)])
        if number == 1:
            row[0] = torch.nan
        made.append(ImageWithRow(image, row))
    return made


def test_features_are_those_of_both_side_by_side(tmp_path: Path) -> None:
    """Values of the image that enter the table's encoder, or a row that is another record's, would
    give a model of something else. Weights that `pretrain` made of images are taken as they are.
    """
    image = load_backbone("cifar-resnet8", image_size=16, seed=3)
    save_backbone(image, tmp_path / "image.safetensors", {})
    table = load_backbone("columns", category_sizes=SIZES, ranges=RANGES)
    pair = load_backbone(
        NAME, weights=tmp_path / "image.safetensors", category_sizes=SIZES, ranges=RANGES
    )
    raw = records()
    features = pair.net(pair.preprocess(raw).joined)
    of_images = torch.cat([image.net(image.preprocess(one.image[None]).only) for one in raw])
    of_rows = table.net(table.preprocess(torch.stack([one.row for one in raw])).only)
    torch.testing.assert_close(features, torch.cat([of_images, of_rows], 1))


def test_both_parts_and_the_constants_are_under_the_fingerprint(tmp_path: Path) -> None:
    """Another range than the approved one would let a server see what it was not to see."""
    pair = declared()
    other = load_backbone(
        NAME, image_size=16, category_sizes=SIZES, ranges=((20.0, 90.0), (0.0, 9.0))
    )
    assert pair.fingerprint != other.fingerprint

    state = {name: tensor.clone() for name, tensor in backbone_state(pair).items()}
    preparation = preparation_from_json(NAME, pair.preprocess.to_json())
    arrived = backbone_from_state(NAME, state, preparation)
    assert arrived.fingerprint == pair.fingerprint
    inputs = pair.preprocess(records()).joined
    assert torch.equal(arrived.net(inputs), pair.net(inputs))

    save_backbone(pair, tmp_path / "pair.safetensors", {})
    random = declared(weights=tmp_path / "pair.safetensors", random=True, seed=5)
    network: Any = random.net
    rows = slice(-network.table.features, None)
    assert torch.equal(random.net(inputs)[:, rows], pair.net(inputs)[:, rows])
    with pytest.raises(UserError, match="other columns"):
        load_backbone(NAME, weights=tmp_path / "pair.safetensors", category_sizes=(0, 3, 0))


def test_a_head_of_all_depths_has_nothing_twice() -> None:
    """The last block's mean enters the classifier, too: sums of it twice are a third more bytes."""
    pair = declared()
    example = pair.preprocess(records(1)).joined
    model = graft(pair, method="head", classes=2, depths=DepthChoice("all", "mean", example))
    assert model.depths is not None
    assert "image.layer3.0" not in model.depths.stages
    # the stem, two blocks, and what enters the classifier
    width = model.depths(pair.preprocess(records()).joined).shape[1]
    assert width == 16 + 16 + 32 + pair.features
    deviation = DepthChoice("all", "mean-and-deviation", example)
    both = graft(pair, method="head", classes=2, depths=deviation)
    assert both.depths is not None
    assert both.depths.stages[-2:] == ("image.layer3.0", "last")


def test_activations_are_kept_in_front_of_what_trains() -> None:
    """A cut that loses rows, or keeps what constants change that come later, would train on
    something else.
    """
    inputs = declared().preprocess(records()).joined
    for ranges, cut in ((RANGES, "head"), (None, "step-1")):
        pair = load_backbone(NAME, image_size=16, category_sizes=SIZES, ranges=ranges)
        prefix = frozen_prefix(graft(pair, method="head", classes=2))
        assert prefix is not None
        assert prefix.name == cut
        whole = graft(pair, method="head", classes=2)(inputs)
        assert torch.equal(prefix.tail(prefix(inputs)), whole)


def test_augmentation_changes_images_alone() -> None:
    """A row that is flipped is another patient's."""
    batch = declared().preprocess(records())
    changed = augment_pairs(batch, "flip-crop", torch.Generator().manual_seed(1))
    assert torch.equal(changed.tensors[ROW].nan_to_num(), batch.tensors[ROW].nan_to_num())
    assert not torch.equal(changed.tensors[IMAGE], batch.tensors[IMAGE])


def test_what_is_no_pair_is_refused() -> None:
    """A list of images alone would be joined to nothing, columns later."""
    preparation = declared().preprocess
    assert isinstance(preparation, PairPreparation)
    with pytest.raises(UserError, match="no list of images with rows"):
        preparation([torch.zeros(1, 16, 16)])  # type: ignore[list-item]
    with pytest.raises(UserError, match="a table without columns"):
        load_backbone(NAME, image_size=16)
    with pytest.raises(UserError, match="did you mean"):
        load_backbone("with-table/resnet81", category_sizes=SIZES)
