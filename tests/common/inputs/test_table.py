"""Tables: a cast, and nothing that could be read as an image's preparation."""

from __future__ import annotations

import pytest
import torch

from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image import for_images
from fedgraft.common.inputs.table import TablePreparation, read_table_preparation


def test_tables_pass() -> None:
    """A table is not an image: missing values must arrive as they are."""
    table = torch.tensor([[1.0, float("nan")]], dtype=torch.float64)
    out = load_backbone("mlp", columns=2).preprocess(table).only
    assert out.dtype == torch.float32
    assert out[0, 0] == 1.0
    assert torch.isnan(out[0, 1])


def test_it_comes_back_from_json_and_an_images_does_not() -> None:
    """A backbone of tables that resized its rows; nonsense out of a file."""
    assert read_table_preparation(TablePreparation().to_json()) == TablePreparation()
    for other in (for_images(28).to_json(), {}, {"size": 3}):
        with pytest.raises(UserError, match="cannot be"):
            read_table_preparation(other)
