"""The family of a table's columns: features of a row, and constants out of histograms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedgraft.common.backbones.backbone import (
    Backbone,
    backbone_from_state,
    backbone_state,
    preparation_of,
)
from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.backbones.columns import Columns, declare_reference, learn_constants
from fedgraft.common.errors import UserError
from fedgraft.common.model.grafted_model import GraftedModel, graft, load_adapter, save_adapter
from fedgraft.common.statistics.histograms import count_columns

NAN = float("nan")
# a number, a category of two, a number
SIZES = (0, 2, 0)
ROWS = torch.tensor(
    [
        [0.0, 1.0, 0.0, 5.0],
        [1.0, 0.0, 1.0, 5.0],
        [2.0, NAN, NAN, NAN],
        [4.0, 0.0, 1.0, 5.0],
        [NAN, 1.0, 0.0, 5.0],
    ]
)


def learnt_network(*, hinges: bool) -> Columns:
    """The network with constants out of ROWS."""
    net = Columns(SIZES, hinges=hinges)
    numbers = ROWS[:, [0, 3]].numpy()
    state = learn_constants(count_columns(numbers), hinges)
    net.load_state_dict(net.state_dict() | state)
    return net


def test_features_of_a_row() -> None:
    """Numbers centred on their scale, categories as they are, a mark a column, nothing missing."""
    features = learnt_network(hinges=False).list_features(ROWS)
    # median 1 of 0, 1, 2, 4; the second number is constant
    expected = [
        [-0.25, 0, 1, 0, 0, 0, 0],
        [0.0, 0, 0, 1, 0, 0, 0],
        [0.25, 0, 0, 0, 0, 1, 1],
        [0.75, 0, 0, 1, 0, 0, 0],
        [0.0, 0, 1, 0, 1, 0, 0],
    ]
    torch.testing.assert_close(features, torch.tensor(expected))


def test_hinges_begin_at_their_knots() -> None:
    """What is below a knot, or missing, is 0 there; what is above, its distance."""
    features = learnt_network(hinges=True).list_features(ROWS)
    hinges = features[:, 7:].reshape(5, 5, 2)
    # knots at 10, 30, 50, 70 and 90 % of 0, 1, 2, 4: 0, 1, 1, 2, 4
    expected = [
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.25, 0.0, 0.0, 0.0, 0.0],
        [0.5, 0.25, 0.25, 0.0, 0.0],
        [1.0, 0.75, 0.75, 0.5, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
    ]
    torch.testing.assert_close(hinges[:, :, 0], torch.tensor(expected))
    assert not hinges[:, :, 1].any()


def test_numbers_outside_are_clipped() -> None:
    """A slip of the pen in a hospital that joins later must not carry a prediction away."""
    net = learnt_network(hinges=True)
    far = torch.tensor([[1e30, 1.0, 0.0, -1e30], [4.0, 1.0, 0.0, 5.0]])
    features = net.list_features(far)
    assert torch.equal(features[0], features[1])


def test_constants_of_any_size_are_small_on_the_wire_and_exact() -> None:
    """A table in dollars or in moles: values on the wire above 10,000 are refused."""
    values = np.array([[3e38, 1e-30, 250_000.0], [1.0, -1e-38, 1.5]], np.float32)
    state = learn_constants(count_columns(values), True)
    assert max(float(tensor.abs().max()) for tensor in state.values()) < 200
    net = Columns((0, 0, 0), hinges=True)
    net.load_state_dict(net.state_dict() | state)
    rounded = torch.from_numpy(values).to(torch.bfloat16).double()
    assert torch.equal(net.constants.values()[2], rounded.max(0).values)
    assert net.list_features(torch.from_numpy(values)).isfinite().all()


@pytest.mark.parametrize("sizes", [(0,), (3,), (1, 0), (2, 3)], ids=str)
def test_tables_of_numbers_or_of_categories_alone(sizes: tuple[int, ...]) -> None:
    """Without numbers there is nothing to learn, and the table is still a table."""
    backbone = load_backbone("columns", columns=sum(n or 1 for n in sizes), category_sizes=sizes)
    rows = torch.full((2, sum(n or 1 for n in sizes)), NAN)
    assert backbone.net(rows).shape == (2, backbone.features)
    state = backbone_state(backbone)
    again = backbone_from_state("columns", state, preparation_of("columns"))
    assert again.fingerprint == backbone.fingerprint


def columns_backbone() -> Backbone:
    return load_backbone("columns", columns=4, category_sizes=SIZES)


def columns_model() -> GraftedModel:
    return graft(columns_backbone(), method="head", classes=2)


def test_constants_travel_with_the_head_and_are_each_models_own() -> None:
    """Constants that were the backbone's would change under every other model of it."""
    backbone = columns_backbone()
    one = graft(backbone, method="head", classes=2)
    other = graft(backbone, method="head", classes=2)
    assert {"constants.exponent", "constants.fraction"} < set(one.adapter_state())
    state = one.adapter_state()
    state["constants.fraction"] += 1
    before = one.frozen_fingerprint()
    one.load_adapter_state(state)
    assert not other.adapter_state()["constants.fraction"].any()
    assert not backbone_state(backbone)["constants.fraction"].any()
    assert one.frozen_fingerprint() == before


def test_constants_are_saved_with_the_head(tmp_path: Path) -> None:
    """A head that is opened over columns of another scale."""
    model = columns_model()
    state = {name: torch.randn_like(tensor) for name, tensor in model.adapter_state().items()}
    model.load_adapter_state(state)
    save_adapter(model, tmp_path)
    again = columns_model()
    load_adapter(again, tmp_path)
    assert torch.equal(again(ROWS), model(ROWS))
    assert torch.equal(model.merge()(ROWS), model(ROWS))


def test_other_columns_are_told(tmp_path: Path) -> None:
    """A backbone of another table, or of none."""
    path = tmp_path / "c.safetensors"
    save_backbone(columns_backbone(), path, {})
    with pytest.raises(UserError, match="other columns or categories"):
        load_backbone("columns", weights=path, category_sizes=(0, 2))
    with pytest.raises(UserError, match="without columns"):
        load_backbone("columns")
    with pytest.raises(UserError, match="no constants of a table"):
        backbone_from_state("columns", {}, preparation_of("columns"))
    state = backbone_state(columns_backbone())
    state["category_sizes"] = torch.tensor([0, 10**12, 0])
    with pytest.raises(UserError, match="none has more than 1000"):
        backbone_from_state("columns", state, preparation_of("columns"))


# ── ranges that a plan declares ───────────────────────────────────────────────────────────────────
def declared_backbone(*, hinges: bool = False) -> Backbone:
    ranges = ((0.0, 4.0), (-10.0, 10.0))
    return load_backbone("columns", columns=4, category_sizes=SIZES, hinges=hinges, ranges=ranges)


def test_declared_ranges_clip_centre_and_bend() -> None:
    """A number in the middle is 0, one beyond an end is at it, knots are at parts of the range."""
    rows = torch.tensor([[2.0, 1, 0, -99.0], [4.0, 1, 0, 5.0]])
    features = declared_backbone(hinges=True).net(rows)
    torch.testing.assert_close(features[:, :2], torch.tensor([[0.0, -0.5], [0.5, 0.25]]))
    above = features[:, 7:].reshape(2, 5, 2)
    torch.testing.assert_close(above[1, :, 0], torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1]))
    assert not above[0, :, 1].any()


def test_declared_ranges_are_frozen_and_under_the_fingerprint() -> None:
    """Ranges that travelled with the head could be changed after a hospital approved them."""
    backbone = declared_backbone()
    model = graft(backbone, method="head", classes=2)
    assert set(model.adapter_state()) == {"head.weight", "head.bias"}
    state = backbone_state(backbone)
    again = backbone_from_state("columns", state, preparation_of("columns"))
    assert again.fingerprint == backbone.fingerprint
    assert torch.equal(again.net(ROWS), backbone.net(ROWS))
    wider = load_backbone(
        "columns", columns=4, category_sizes=SIZES, ranges=((0.0, 5.0), (-10.0, 10.0))
    )
    assert wider.fingerprint != backbone.fingerprint
    nothing = load_backbone("columns", columns=3, category_sizes=(3,), ranges=())
    assert list(nothing.net.parameters()) == []


def test_the_centre_by_rule_is_where_nothing_is_known() -> None:
    """What all records share takes norm from what parts them, and every record has norm 1."""
    backbone = declared_backbone()
    assert isinstance(backbone.net, Columns)
    centre, change = declare_reference(backbone.net)
    rows = torch.tensor(
        [
            [2.0, 1, 0, 0.0],
            [4.0, 0, 1, -10.0],
            [NAN, NAN, NAN, NAN],
        ]
    )
    features = (backbone.net(rows) - centre) @ change
    # two numbers, two categories, a mark for each of the three columns
    expected = [
        [0.0, 0.0, 0.5, -0.5, 0.0, 0.0, 0.0],
        [1.0, -1.0, -0.5, 0.5, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5],
    ]
    torch.testing.assert_close(features, torch.tensor(expected))


def test_constants_of_another_table_are_refused() -> None:
    """A frozen table of the wrong width would be read past its end."""
    state = backbone_state(declared_backbone())
    broken = state | {"constants.table": torch.zeros(3, 5)}
    with pytest.raises(UserError, match=r"constants\.table"):
        backbone_from_state("columns", broken, preparation_of("columns"))
