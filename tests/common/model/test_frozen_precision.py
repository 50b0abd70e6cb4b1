"""The frozen part in bfloat16: what autocast computes, and nothing of what is trained."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.adapters.attention import open_plain_attention
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import UserError
from fedgraft.common.model import frozen_precision
from fedgraft.common.model.frozen_precision import round_weights, run_frozen_in_bfloat16
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import DepthChoice, GraftedModel, graft
from fedgraft.common.model.public_reference import bring_to_norm, fit_public, with_reference
from tests.huggingface_folders import ARCHITECTURES, example_texts, write_folder

NETWORKS = ("resnet18", "vit_b_16", "swin_t", "convnext_tiny", "efficientnet_b0", "cifar-resnet20")


def lowered(backbone: Backbone, **options: object) -> GraftedModel:
    """Return a model whose frozen part is in bfloat16."""
    model = graft(backbone, classes=3, seed=1, **{"method": "head", **options})  # type: ignore[arg-type]
    run_frozen_in_bfloat16(model)
    return model


def autocast_stages(model: GraftedModel, x: Tensor) -> Tensor:
    """Return what torch's own autocast makes of the float32 network's frozen stages."""
    prefix = frozen_prefix(model)
    assert prefix is not None
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for stage in prefix.stages:
            x = stage.run(x)
    return x.float()


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_what_autocast_computes(name, lively, inputs, monkeypatch):
    """A layer that is left in float32, rounded twice, or whose weights are another's."""
    monkeypatch.setattr(frozen_precision, "LAYOUTS", {})
    x = inputs(name)
    for options in ({}, {"method": "lora", "targets": "last-block"}):
        model = lowered(lively(name), **options)
        prefix = frozen_prefix(model)
        assert prefix is not None
        told = prefix(x)
        # torch's own attention rounds at other places under autocast
        open_plain_attention(model.net)
        assert torch.equal(told, autocast_stages(model, x)), options


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "swin_t", "convnext_tiny"])
def test_it_is_near_float32_and_not_float32(name, lively, inputs):
    """Another network than the one that was agreed on; or bfloat16 that never happens."""
    x = inputs(name)
    exact = graft(lively(name), method="head", classes=3, seed=1)
    behind, before = frozen_prefix(lowered(lively(name))), frozen_prefix(exact)
    assert behind is not None
    assert before is not None
    distance = (behind(x) - before(x)).norm() / before(x).norm()
    # 8 bits: 2⁻⁹ for one rounding, and a few dozen layers
    assert 1e-4 < distance < 0.03


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_texts_too(architecture: str, tmp_path: Path):
    """Tokens rounded to bfloat16, which are other tokens; a table that is a layer's weight too."""
    pytest.importorskip("transformers")
    folder = write_folder(tmp_path / architecture, architecture)
    backbone = load_backbone("huggingface", weights=folder, max_length=16)
    tokens = backbone.preprocess(example_texts()).only
    model = lowered(backbone)
    prefix = frozen_prefix(model)
    assert prefix is not None
    assert torch.equal(prefix(tokens), autocast_stages(model, tokens))


def test_the_whole_is_its_two_parts_and_trains_in_float32(lively, inputs):
    """A model that evaluates in another precision than it trained in, or trains bfloat16."""
    x = inputs("resnet18")
    model = lowered(lively("resnet18"), method="bottleneck", targets="last-block")
    prefix = frozen_prefix(model)
    assert prefix is not None
    entering = prefix(x)
    assert entering.dtype == torch.float32
    assert torch.equal(model(x), prefix.tail(entering))
    F.cross_entropy(model(x), torch.tensor([0, 1])).backward()
    for name, parameter in model.trainable_parameters().items():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name


def test_the_frozen_tensors_are_as_they_were(lively, inputs):
    """A fingerprint that moves because a forward pass rounded what was agreed on."""
    backbone = lively("vit_b_16")
    model = lowered(backbone)
    assert model.seal_as(backbone) == backbone.fingerprint
    model(inputs("vit_b_16"))
    assert model.frozen_as(backbone.fingerprint, read=True)
    assert model.frozen_fingerprint() == backbone.fingerprint


def test_norms_and_statistics_are_shared_and_not_copied(lively):
    """A second copy of everything, or BatchNorm's statistics rounded to 8 bits."""
    model = graft(lively("resnet18"), method="head", classes=2, seed=1)
    rounded = round_weights(model)
    ours = model.net.state_dict()
    for name, tensor in rounded.net.state_dict().items():
        is_rounded = tensor.dtype == torch.bfloat16
        is_layer = ours[name].ndim > 1 and not name.startswith("fc")
        assert is_rounded == is_layer, name
        if not is_rounded:
            assert tensor.data_ptr() == ours[name].data_ptr(), name


def test_gradients_reach_the_inputs(lively, inputs):
    """An attack on a model in bfloat16 that finds nothing because no gradient comes back."""
    x = inputs("resnet18").requires_grad_()
    F.cross_entropy(lowered(lively("resnet18"))(x), torch.tensor([0, 1])).backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0


def test_features_under_privacy_have_norm_one_in_float32(lively, inputs):
    """A norm of 1.004, from which one record would move a sum by more than its sensitivity."""
    plain = lively("resnet18")
    choice = DepthChoice("all", "mean", inputs("resnet18", n=1))
    backbone = with_reference(plain, bring_to_norm(plain, choice))
    features = frozen_prefix(lowered(backbone, depths=choice))
    assert features is not None
    norms = features(inputs("resnet18")).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(2), atol=1e-6, rtol=0)


def test_a_copy_has_a_front_of_its_own(lively, inputs):
    """A copied model that goes on with the rounded weights of the first."""
    model = lowered(lively("cifar-resnet20"))
    x = inputs("cifar-resnet20")
    before = model(x)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), before)
    with torch.no_grad():
        for parameter in copied.net.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(copied(x), before)
    assert torch.equal(model(x), before)


def test_where_nothing_is_frozen_it_is_refused(lively):
    """A plan that says bfloat16 and trains in float32 without a word."""
    with pytest.raises(UserError, match=r"backbone\.precision.*nothing worth it is frozen"):
        lowered(lively("cifar-resnet20"), method="lora")


def test_a_reference_whitens_what_is_computed(cifar_weights: Path):
    """Directions in which features hardly differ, blown up by a reference that was fitted in
    float32: what is whitened there is the noise of rounding.
    """
    backbone = load_backbone("cifar-resnet20", weights=cifar_weights, image_size=16)
    generator = torch.Generator().manual_seed(1)
    public = torch.randint(0, 256, (900, 3, 16, 16), dtype=torch.uint8, generator=generator)
    example = backbone.preprocess(public[:1]).joined
    spreads: dict[str, float] = {}
    for fitted in ("float32", "bfloat16"):
        choice = DepthChoice("all", "mean", example, fitted)
        reference = fit_public(backbone, choice, lambda: public)
        model = lowered(backbone, depths=DepthChoice("all", "mean", example, "bfloat16"))
        features = model.features(backbone.preprocess(public))
        white = (features - reference.mean) @ reference.whiten
        spreads[fitted] = float(torch.linalg.eigvalsh(torch.cov(white.T))[-1])
    assert spreads["bfloat16"] == pytest.approx(1, abs=0.05)
    assert spreads["float32"] > 1.2, spreads
