"""Features of all depths against the networks' own outputs, for every kind of family."""

from __future__ import annotations

import pytest
import torch

from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import UserError
from fedgraft.common.model import public_reference
from fedgraft.common.model.depth_features import MOST_FEATURES
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import DepthChoice, GraftedModel, graft
from fedgraft.common.model.public_reference import bring_to_norm, fit_public, with_reference

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def all_depths(name: str, size: int, pool: str = "mean", features: object = "all") -> GraftedModel:
    backbone = load_backbone(name, image_size=size, seed=1)
    example = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    choice = DepthChoice(features, pool, example)  # type: ignore[arg-type]
    return graft(backbone, method="head", classes=2, depths=choice)


def test_they_are_the_means_of_the_stem_and_of_each_block() -> None:
    """A block that is left out or read twice, or a mean over the wrong axis."""
    model = all_depths("cifar-resnet8", 32)
    net = model.net
    assert model.depths is not None
    assert model.depths.stages == ("stem", "layer1.0", "layer2.0", "last")
    with torch.no_grad():
        x = torch.relu(net.bn1(net.conv1(IMAGE)))  # type: ignore[operator]
        expected = [x.mean((2, 3))]
        for layer in (net.layer1, net.layer2, net.layer3):
            x = layer(x)  # type: ignore[operator]
            expected.append(x.mean((2, 3)))
        assert torch.equal(model.depths(IMAGE), torch.cat(expected, dim=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet50", 64),
        ("vit_b_32", 64),
        ("swin_t", 64),
        ("efficientnet_b0", 64),
        ("densenet121", 64),
        ("convnext_tiny", 64),
        ("vgg11", 64),
        ("mobilenet_v3_small", 64),
    ],
)
def test_every_family_has_them_within_the_bound(name: str, size: int) -> None:
    """A Gram matrix of a wide network would be gigabytes; a network without blocks has its last."""
    model = all_depths(name, size)
    width = model.count_features()
    assert 1 <= width <= MOST_FEATURES
    example = torch.randn(1, 3, size, size)
    assert model.depths is not None
    assert model.depths(example).shape == (1, width)
    # what enters the classifier is always among them
    last = all_depths(name, size, features="last")
    assert last.depths is not None
    entering = last.depths(example)
    ours = model.depths(example)
    assert torch.allclose(ours[:, -entering.shape[1] :], entering, atol=1e-5)


def test_deviations_stand_beside_the_means() -> None:
    """The last block's deviation is not what enters the classifier, and must not be lost."""
    plain = all_depths("cifar-resnet8", 32)
    both = all_depths("cifar-resnet8", 32, "mean-and-deviation")
    assert both.count_features() == 2 * plain.count_features()


def test_the_frozen_prefix_is_all_of_them() -> None:
    """Computed in each round, or for each seed, anew: most of the time of a run."""
    model = all_depths("cifar-resnet8", 32)
    prefix = frozen_prefix(model)
    assert prefix is not None
    assert torch.equal(prefix.tail(prefix(IMAGE)), model(IMAGE))


def test_a_stage_that_the_network_has_not_is_named() -> None:
    with pytest.raises(UserError, match="'layer7' is no stage of this network"):
        all_depths("cifar-resnet8", 32, features=("layer7",))


# ── the public reference ──────────────────────────────────────────────────────────────────────────
def test_features_behind_the_reference_are_white_and_of_norm_one() -> None:
    """Noise is scaled to norm 1; a direction that is not whitened drowns the others."""
    backbone = load_backbone("cifar-resnet8", image_size=32, seed=1)
    choice = DepthChoice("all", "mean", IMAGE[:1])
    public = torch.randint(0, 256, (600, 1, 32, 32), dtype=torch.uint8)
    changed = with_reference(backbone, fit_public(backbone, choice, lambda: public))
    assert changed.fingerprint != backbone.fingerprint
    again = with_reference(backbone, fit_public(backbone, choice, lambda: public))
    assert again.fingerprint == changed.fingerprint
    model = graft(changed, method="head", classes=2, depths=choice)
    assert model.depths is not None
    with torch.no_grad():
        features = model.depths(changed.preprocess(public).only)
        torch.testing.assert_close(features.norm(dim=1), torch.ones(600), atol=1e-5, rtol=0)
        spread = model.net.get_submodule("reference").state_dict()
        raw = graft(backbone, method="head", classes=2, depths=choice)
        assert raw.depths is not None
        values = raw.depths(backbone.preprocess(public).only) - spread["mean"]
        white = values @ spread["whiten"]
    assert white.var(0).median() == pytest.approx(1.0, abs=0.05)


def test_a_reference_travels_with_its_backbone() -> None:
    """A node that lost it would sum other features than the others."""
    from fedgraft.common.backbones.backbone import backbone_from_state, backbone_state

    backbone = load_backbone("cifar-resnet8", image_size=32, seed=1)
    choice = DepthChoice("last", "mean", IMAGE[:1])
    changed = with_reference(backbone, bring_to_norm(backbone, choice))
    state = dict(backbone_state(changed))
    arrived = backbone_from_state("cifar-resnet8", state, changed.preprocess)
    assert arrived.fingerprint == changed.fingerprint
    broken = state | {"reference.whiten": torch.eye(3)}
    with pytest.raises(UserError, match="reference"):
        backbone_from_state("cifar-resnet8", broken, changed.preprocess)


def test_a_reference_is_computed_once_for_the_same_features_alone() -> None:
    """Eight seconds in every opening of a backbone; or another network's, which whitens nothing."""
    backbone = load_backbone("cifar-resnet8", image_size=32, seed=11)
    all_of_them = DepthChoice("all", "mean", IMAGE[:1])
    calls = []

    def public() -> torch.Tensor:
        calls.append(1)
        generator = torch.Generator().manual_seed(0)
        size = (300, 1, 32, 32)
        return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)

    first = fit_public(backbone, all_of_them, public).state_dict()
    again = fit_public(load_backbone("cifar-resnet8", image_size=32, seed=11), all_of_them, public)
    assert len(calls) == 1
    public_reference._kept.clear()
    anew = fit_public(backbone, all_of_them, public)
    for name, tensor in first.items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert torch.equal(tensor, anew.state_dict()[name])
    assert len(calls) == 2

    fit_public(backbone, DepthChoice("last", "mean", IMAGE[:1]), public)
    fit_public(backbone, DepthChoice("all", "mean-and-deviation", IMAGE[:1]), public)
    other_weights = load_backbone("cifar-resnet8", image_size=32, seed=12)
    fit_public(other_weights, all_of_them, public)
    other_size = load_backbone("cifar-resnet8", image_size=16, seed=11)
    fit_public(other_size, DepthChoice("all", "mean", IMAGE[:1, :, :16, :16]), public)
    assert len(calls) == 6
