"""A volume as its slices in a network over images: the mean over them, and a gradient a volume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedgraft.client.privacy.choose_engine import attach_engine
from fedgraft.client.privacy.clipping_engine import Drawn
from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.privacy.one_pass import OnePass
from fedgraft.client.privacy.opacus_hooks import OpacusHooks
from fedgraft.common.backbones.backbone import (
    Backbone,
    backbone_from_state,
    backbone_state,
    preparation_from_json,
)
from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.errors import Refused
from fedgraft.common.inputs.volume import Volume, VolumePreparation
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import DepthChoice, GraftedModel, graft
from fedgraft.common.model.slices import fold_slices
from fedgraft.common.plan.volume_section import VolumeSection
from fedgraft.common.tasks.classification import cross_entropies

SLICES = 3
SECTION = VolumeSection(size=(9, 16, 16), spacing=(1, 1, 1), window=(0, 1), slices=SLICES)
METHODS = ["head", "lora", "bottleneck", "bias", "scale-shift"]


def sliced(section: VolumeSection = SECTION, **options: object) -> Backbone:
    return load_backbone("cifar-resnet8", volume=section, seed=1, **options)


def volumes(count: int = 2, slices: int = SLICES) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, slices, 16, 16, generator=generator)


def moved(method: str) -> GraftedModel:
    model = graft(sliced(), method=method, classes=2, rank=2, width=4, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.trainable_parameters().values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def test_they_are_the_middles_of_equal_parts() -> None:
    """Slices of the neck alone, or one that is taken twice."""
    values = torch.arange(9.0).view(1, 9, 1, 1).expand(1, 9, 16, 16) / 8
    plain = SECTION.model_copy(update={"zscore": False})
    seen = VolumePreparation(plain)([Volume(values, (1.0, 1.0, 1.0))]).only
    assert seen.shape == (1, 1, SLICES, 16, 16)
    torch.testing.assert_close(seen[0, 0, :, 8, 8] * 8, torch.tensor([1.0, 4.0, 7.0]))
    every = plain.model_copy(update={"slices": 9})
    all_ = VolumePreparation(every)([Volume(values, (1.0, 1.0, 1.0))]).only
    torch.testing.assert_close(all_[0, 0, :, 8, 8] * 8, torch.arange(9.0))


def test_the_network_is_that_for_images(tmp_path: Path) -> None:
    """Weights for images in colour, seen at another mean or with other values; another network at
    the nodes.
    """
    file = tmp_path / "images.safetensors"
    images = load_backbone("cifar-resnet8", image_size=16, seed=4)
    save_backbone(images, file, {})
    made = sliced(weights=file)
    grey = load_backbone("cifar-resnet8", weights=file, channels=1)
    assert made.fingerprint == grey.fingerprint

    sent = preparation_from_json(made.name, made.preprocess.to_json())
    there = backbone_from_state(made.name, backbone_state(made), sent)
    assert (there.fingerprint, there.preprocess) == (made.fingerprint, made.preprocess)
    scan = Volume(torch.rand(1, 9, 16, 16), (1.0, 1.0, 1.0))
    seen = there.preprocess([scan]).only
    # the same pixels as an image of one slice
    expected = grey.preprocess(scan.values[:, [1, 4, 7]].transpose(0, 1)).only
    torch.testing.assert_close(fold_slices(seen), expected)


@pytest.mark.parametrize("method", METHODS)
def test_features_are_the_mean_over_slices(method: str) -> None:
    """Slices of one volume in the row of another."""
    model = moved(method)
    x = volumes(3)
    loop = [model.net(volume.transpose(0, 1)).mean(0) for volume in x]
    torch.testing.assert_close(model(x), torch.stack(loop), atol=1e-5, rtol=1e-5)
    merged = model.merge()
    again = merged(fold_slices(x)).unflatten(0, (3, SLICES)).mean(1)
    torch.testing.assert_close(again, model(x), atol=1e-4, rtol=1e-4)
    assert frozen_prefix(model) is None


def test_features_of_all_depths_are_too() -> None:
    """A closed form of as many records as there are slices; kept activations of others."""
    depths = DepthChoice("all", "mean", volumes(1))
    model = graft(sliced(), method="head", classes=2, seed=1, depths=depths)
    assert model.depths is not None
    x = volumes(3)
    together = model.depths(x)
    assert together.shape == (3, model.count_features())
    one = graft(
        sliced(SECTION.model_copy(update={"slices": 1})),
        method="head",
        classes=2,
        seed=1,
        depths=DepthChoice("all", "mean", volumes(1, 1)),
    )
    assert one.depths is not None
    each = [one.depths(x[:, :, [number]]) for number in range(SLICES)]
    torch.testing.assert_close(together, torch.stack(each).mean(0), atol=1e-5, rtol=1e-5)
    prefix = frozen_prefix(model)
    assert prefix is not None
    torch.testing.assert_close(prefix.tail(prefix(x)), model(x))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_volumes_are_those_of_a_loop(method: str) -> None:
    """Each slice clipped by itself: a volume of many slices would not be hidden by the noise."""
    check_gradients(moved(method), "hooks", volumes(), cross_entropies)


def test_gradients_of_volumes_where_opacus_gives_them() -> None:
    """The other engine, which sees rows of slices; and several volumes of one owner."""
    model = moved("lora").double()
    x = volumes(4).double()
    targets = torch.tensor([0, 1, 1, 0])
    sums = []
    for engine in (OnePass, OpacusHooks):
        attached = engine(model, cross_entropies, 0.5)
        for owners in (None, torch.tensor([0, 1, 0, 1])):
            found = attached.sums(Drawn(x, targets, owners))
            flat = [found[p].flatten() for p in model.trainable_parameters().values()]
            sums.append(torch.cat(flat))
        attached.detach()
    torch.testing.assert_close(sums[0], sums[2], atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(sums[1], sums[3], atol=1e-8, rtol=1e-6)


def test_ghost_clipping_is_refused() -> None:
    """Norms of slices, taken for those of volumes."""
    ghost = Mechanism(0.0, 1.0, 1, 1.0, 1.0, "example", "ghost")
    with pytest.raises(Refused, match="not of a volume's"):
        attach_engine(moved("lora"), cross_entropies, ghost)
