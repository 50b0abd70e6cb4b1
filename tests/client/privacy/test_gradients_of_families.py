"""Gradients of single examples on networks of other packages, against a loop."""

from __future__ import annotations

import pytest
import torch

from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.model.grafted_model import graft
from fedgraft.common.tasks.classification import cross_entropies

# small ones, and the side of their images, pixels
NETWORKS = {
    "timm/tf_efficientnet_lite0": 32,
    "timm/mobilenetv3_small_050": 32,
    "timm/convnext_atto": 32,
    "timm/regnetx_002": 32,
    "timm/vit_tiny_patch16_224": 224,
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["head", "lora", "bottleneck", "bias", "scale-shift"])
@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_those_of_a_loop(name: str, method: str) -> None:
    """A clipped sum that lacks what a layer hid from its hooks: noise that hides nobody."""
    side = NETWORKS[name]
    backbone = load_backbone(name, image_size=side, seed=2)
    model = graft(backbone, method=method, classes=2, rank=2, width=4, seed=1)
    probes = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    check_gradients(model, "hooks", probes, cross_entropies)
