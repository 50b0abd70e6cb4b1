"""Maps of a frozen network and the two heads on them, against the networks' own outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.backbones.reference import Reference
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.model.map_decoder import MapDecoder
from fedgraft.common.model.pixel_head import PixelHead
from fedgraft.common.model.stage_maps import MapLayout, StageMaps, choose_map_stages, layout_of


def images(n: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def open_maps(name: str, example: Tensor, slices: int | None = None) -> StageMaps:
    backbone = load_backbone(name, image_size=example.shape[-1], seed=1)
    seen = example if slices is None else example[:, :, 0]
    stages = choose_map_stages(backbone, "all", seen)
    return StageMaps(backbone.net, head_name=backbone.head_name, stages=stages, slices=slices)


# ── maps ──────────────────────────────────────────────────────────────────────────────────────────
def test_they_are_the_image_the_stem_and_the_last_block_of_each_size() -> None:
    """A stage that is left out or read twice."""
    batch = images(2, 3, 32, 32)
    maps = open_maps("cifar-resnet20", batch[:1])
    assert maps.stages == ("stem", "layer1.2", "layer2.2", "layer3.2")
    net = maps.net
    with torch.no_grad():
        found = layout_of(maps, batch[:1]).unpack(maps(batch))
        x = torch.relu(net.bn1(net.conv1(batch)))  # type: ignore[operator]
        expected = [batch, x]
        for layer in (net.layer1, net.layer2, net.layer3):
            x = layer(x)  # type: ignore[operator]
            expected.append(x)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_lite0_has_its_stem_and_five_stages() -> None:
    """Of sixteen blocks those of one resolution and width say nearly the same; what is coarser than
    16 pixels is left out.
    """
    pytest.importorskip("timm")
    maps = open_maps("timm/tf_efficientnet_lite0", images(1, 3, 64, 64))
    layout = layout_of(maps, images(1, 3, 64, 64))
    assert layout.channels == (3, 32, 16, 24, 40, 80, 112)
    assert [shape[1] for shape in layout.shapes] == [64, 32, 32, 16, 8, 4, 4]


@pytest.mark.parametrize("name", ["vit_b_32", "mlp"])
def test_a_network_without_maps_is_refused_in_words(name: str) -> None:
    """Tokens in a row would be taken for something else than places."""
    if name == "mlp":
        backbone = load_backbone("mlp", columns=3, seed=1)
        example = images(1, 3)
    else:
        backbone = load_backbone(name, image_size=64, seed=1)
        example = images(1, 3, 64, 64)
    with pytest.raises(UserError, match="a mask needs maps"):
        choose_map_stages(backbone, "all", example)


def test_channels_last_are_brought_first() -> None:
    """Swin gives (n, H, W, channels): read as they are, its columns would be channels."""
    maps = open_maps("swin_t", images(1, 3, 64, 64))
    layout = layout_of(maps, images(1, 3, 64, 64))
    assert layout.shapes[-1][0] > layout.shapes[-1][1]


def test_slices_of_a_volume_stay_in_their_order() -> None:
    """Slices that are exchanged would put a mask into another place of the body."""
    volume = images(2, 3, 4, 32, 32)
    maps = open_maps("cifar-resnet8", volume[:1], slices=4)
    layout = layout_of(maps, volume[:1])
    assert layout.shapes[0] == (3, 4, 32, 32)
    found = layout.unpack(maps(volume))
    alone = StageMaps(maps.net, head_name=maps.head_name, stages=maps.stages)
    with torch.no_grad():
        slice_ = alone.read(volume[1:, :, 2])
    for one, other in zip(found, slice_, strict=True):
        torch.testing.assert_close(one[1:, :, 2], other)


# ── a linear head for each place ──────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("slices", [None, 3])
def test_its_logits_are_those_of_the_features_of_each_place(slices: int | None) -> None:
    """What is solved for on `read_pixels` would be another head when it predicts."""
    batch = images(2, 3, 24, 24) if slices is None else images(2, 3, 3, 24, 24)
    maps = open_maps("cifar-resnet8", batch[:1], slices)
    head = PixelHead(layout_of(maps, batch[:1]), classes=3)
    with torch.no_grad():
        head.weight.copy_(images(*head.weight.shape, seed=2))
        head.bias.copy_(images(3, seed=3))
        packed = maps(batch)
        pixels = head.read_pixels(packed)
        assert pixels.shape == (2, head.in_features, *batch.shape[2:])
        wanted = F.linear(pixels.movedim(1, -1), head.weight, head.bias).movedim(-1, 1)
        torch.testing.assert_close(head(packed), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("slices", [None, 3])
def test_with_a_public_reference_a_place_has_norm_1_and_the_head_reads_that(
    slices: int | None,
) -> None:
    """Sums over features of norm 1, and a head that predicts on others; or a reference that travels
    with the head, where a node would find it to be none of the adapter's.
    """
    batch = images(2, 3, 24, 24) if slices is None else images(2, 3, 3, 24, 24)
    maps = open_maps("cifar-resnet8", batch[:1], slices)
    layout = layout_of(maps, batch[:1])
    plain = PixelHead(layout, classes=3)
    reference = Reference(plain.in_features)
    with torch.no_grad():
        packed = maps(batch)
        rows = plain.read_pixels(packed).movedim(1, -1).flatten(0, -2)
        reference.fit(rows)
        head = PixelHead(layout, classes=3, standardise=reference.forward)
        head.weight.copy_(images(*head.weight.shape, seed=2))
        pixels = head.read_pixels(packed).movedim(1, -1)
        torch.testing.assert_close(pixels.flatten(0, -2), reference(rows))
        torch.testing.assert_close(pixels.norm(dim=-1), torch.ones(pixels.shape[:-1]))
        wanted = F.linear(pixels, head.weight, head.bias).movedim(-1, 1)
        torch.testing.assert_close(head(packed), wanted, rtol=1e-4, atol=1e-4)
    assert list(head.state_dict()) == ["weight", "bias"]


def test_means_of_the_image_are_over_what_of_a_square_lies_in_it() -> None:
    """Zeros beyond the edge would make borders of every image dark."""
    layout = MapLayout(((1, 20, 20), (2, 10, 10)))
    packed = torch.ones(1, layout.values)
    head = PixelHead(layout, classes=2)
    assert head.in_features == 3 + 2
    torch.testing.assert_close(head.read_pixels(packed), torch.ones(1, 5, 20, 20))
    image = images(1, 1, 20, 20)
    packed[:, :400] = image.flatten(1)
    around = head.read_pixels(packed)[0, 2]
    assert float(around[0, 3]) == pytest.approx(float(image[0, 0, :8, :11].mean()), abs=1e-6)


@pytest.mark.parametrize("stride", [1, 3, 4, 40])
def test_a_stride_takes_places_of_a_fixed_grid(stride: int) -> None:
    """Places that depended on anything but the grid would make sums of two nodes incomparable."""
    layout = MapLayout(((1, 20, 16), (2, 10, 8)))
    packed = images(2, layout.values)
    head = PixelHead(layout, classes=2)
    whole = head.read_pixels(packed)
    start = min(stride // 2, 15)
    down = min(stride // 2, 19)
    assert torch.equal(head.read_pixels(packed, stride), whole[:, :, down::stride, start::stride])


def test_another_size_is_refused() -> None:
    layout = MapLayout(((1, 8, 8), (2, 4, 4)))
    with pytest.raises(Refused, match="another size"):
        PixelHead(layout, classes=2)(torch.zeros(1, layout.values + 1))


# ── a decoder ─────────────────────────────────────────────────────────────────────────────────────
def small_decoder(seed: int, more: tuple[MapLayout, ...] = ()) -> MapDecoder:
    layout = MapLayout(((3, 16, 16), (8, 8, 8), (6, 4, 4)))
    return MapDecoder(layout, classes=2, width=4, seed=seed, more=more)


def test_a_decoder_begins_alike_on_every_side_and_leaves_global_randomness_alone() -> None:
    """A server and a node that began with other values would average other models."""
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, other = small_decoder(7), small_decoder(7)
    assert torch.equal(before, torch.random.get_rng_state())
    for name, values in one.state_dict().items():
        assert torch.equal(values, other.state_dict()[name]), name
        assert bool(values.any()), name
    changed = small_decoder(8).state_dict()
    assert not torch.equal(one.state_dict()["refine.weight"], changed["refine.weight"])


def test_every_value_of_a_decoder_learns_and_no_image_changes_another() -> None:
    """A map that is not read, or a batch norm: examples would not part."""
    crop = MapLayout(((3, 8, 8), (8, 4, 4), (6, 2, 2)))
    decoder = small_decoder(7, more=(crop,))
    packed = images(3, 3 * 256 + 8 * 64 + 6 * 16)
    logits = decoder(packed)
    assert logits.shape == (3, 2, 16, 16)
    torch.testing.assert_close(decoder(packed[1:2]), logits[1:2])
    logits.square().sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name
    assert decoder(images(2, crop.values)).shape == (2, 2, 8, 8)


def test_a_decoder_beside_a_solved_head_begins_as_that_head_and_leaves_it_alone() -> None:
    """Steps on a few records that move what was solved from all of them forget the others."""
    layout = MapLayout(((3, 16, 16), (8, 8, 8)))
    decoder = MapDecoder(layout, classes=2, width=4, seed=7, solved=True)
    assert decoder.solved is not None
    with torch.no_grad():
        decoder.solved.weight.copy_(images(*decoder.solved.weight.shape, seed=2))
    packed = images(2, layout.values)
    assert torch.equal(decoder(packed), decoder.solved(packed))
    decoder(packed).square().sum().backward()
    assert decoder.solved.weight.grad is None
    assert decoder.classify.weight.grad is not None


def test_a_decoder_of_volumes() -> None:
    layout = MapLayout(((1, 4, 8, 8), (5, 4, 4, 4)))
    decoder = MapDecoder(layout, classes=3, width=4, seed=1)
    assert decoder(images(2, layout.values)).shape == (2, 3, 4, 8, 8)


def test_a_decoder_learns_a_shape() -> None:
    """A square of its own colour: within a hundred steps it is found in images that are new."""
    backbone: Backbone = load_backbone("cifar-resnet8", image_size=32, seed=1)
    stages = choose_map_stages(backbone, "all", images(1, 3, 32, 32))
    maps = StageMaps(backbone.net, head_name=backbone.head_name, stages=stages)
    layout = layout_of(maps, images(1, 3, 32, 32))
    decoder = MapDecoder(layout, classes=2, width=8, seed=1)
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        x = images(count, 3, 32, 32, seed=int(rng.integers(10**6)))
        y = torch.zeros(count, 32, 32, dtype=torch.int64)
        for number in range(count):
            top, left = rng.integers(0, 20, 2)
            x[number, :, top : top + 12, left : left + 12] += 2.0
            y[number, top : top + 12, left : left + 12] = 1
        return x, y

    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    for _ in range(60):
        x, y = draw(8)
        with torch.no_grad():
            packed = maps(x)
        loss = F.cross_entropy(decoder(packed), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = draw(16)
    with torch.no_grad():
        answers = decoder(maps(x)).argmax(1)
    assert float((answers == y).float().mean()) > 0.95
