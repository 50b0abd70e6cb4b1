"""A head that tells boxes: its levels, its places, its first values."""

from __future__ import annotations

import pytest
import torch

from fedgraft.common.errors import UserError
from fedgraft.common.model.box_head import BoxHead, drop_finer, find_levels, locate
from fedgraft.common.model.stage_maps import MapLayout
from fedgraft.common.tasks.box_places import read_places

LAYOUT = MapLayout(((3, 32, 32), (4, 16, 16), (6, 8, 8), (5, 8, 8), (8, 4, 4), (9, 2, 2)))
COARSE = MapLayout(((3, 32, 32), (6, 8, 8), (5, 8, 8), (8, 4, 4), (9, 2, 2)))


def new_head(seed: int = 7) -> BoxHead:
    return BoxHead(COARSE, 2 + 4, strides=(4, 8), width=8, seed=seed)


def test_a_level_is_told_at_the_last_stage_with_its_places() -> None:
    assert find_levels(COARSE, (4, 8)) == (1, 2)
    with pytest.raises(UserError, match=r"2, and the maps .* strides \[4, 8, 16\]"):
        find_levels(COARSE, (2, 4))


def test_finer_maps_than_the_first_level_are_not_kept() -> None:
    """They would be computed and stored for nothing."""
    assert drop_finer(("a", "b", "c", "d", "e"), LAYOUT, 4) == ("b", "c", "d", "e")


def test_outputs_say_where_each_place_is() -> None:
    """The finest level last or first, a place's middle is that of its square of pixels."""
    outputs = new_head()(torch.randn(2, COARSE.values)).detach()
    assert outputs.shape == (2, 2 + 7, 8 * 8 + 4 * 4)
    places = read_places(outputs)
    for stride, count in ((4, 64), (8, 16)):
        at = places.strides[0] == stride
        assert int(at.sum()) == count
        centres = places.centres[0][:, at]
        assert torch.equal(centres, locate((32 // stride, 32 // stride), stride)[:2].flatten(1))
        assert float(centres.min()) == stride / 2
        assert float(centres.max()) == 32 - stride / 2


def test_a_fresh_head_is_sure_of_nothing_and_its_boxes_lie_around_their_places() -> None:
    """Else the many places without a thing would drown the first steps (Lin et al. 2017)."""
    outputs = new_head()(torch.randn(2, COARSE.values))
    places = read_places(outputs)
    assert places.logits.sigmoid().mean().item() == pytest.approx(0.01, abs=1e-6)
    middles = (places.boxes[..., :2] + places.boxes[..., 2:]) / 2
    assert torch.allclose(middles, places.centres.transpose(1, 2))


def test_the_same_seed_gives_the_same_values_and_leaves_torchs_own_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, same, other = new_head(), new_head(), new_head(8)
    assert torch.equal(before, torch.get_rng_state())
    for name, values in one.state_dict().items():
        assert torch.equal(values, same.state_dict()[name])
    assert any(
        not torch.equal(values, other.state_dict()[name])
        for name, values in one.state_dict().items()
    )


def test_no_output_is_infinite_whatever_the_maps_say() -> None:
    outputs = new_head()(torch.full((1, COARSE.values), 1e6))
    assert bool(torch.isfinite(outputs).all())
