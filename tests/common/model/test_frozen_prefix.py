"""The cut of a model behind its frozen prefix: the two parts are the model."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedgraft.common.adapters.fused import fuse
from fedgraft.common.adapters.method import NoOptions
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import GraftedModel, graft

NETWORKS = [
    *[
        ("cifar-resnet8", 32),
        ("resnet18", 32),
        ("mobilenet_v3_small", 32),
        ("densenet121", 32),
        ("vit_b_16", 32),
    ],
    *[
        ("swin_t", 32),
        ("convnext_tiny", 32),
        ("efficientnet_b0", 32),
        ("regnet_x_400mf", 32),
        ("mnasnet0_5", 32),
    ],
]


def moved(model: GraftedModel) -> GraftedModel:
    """Adapters away from their first values, so that one which was skipped would show."""
    generator = torch.Generator().manual_seed(0)
    state = {
        k: t + 0.05 * torch.randn(t.shape, generator=generator)
        for k, t in model.adapter_state().items()
    }
    model.load_adapter_state(state)
    return model


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_the_two_parts_are_the_model(name, size):
    """A stage left out, in the wrong order or on the wrong side of the cut; an adapter that runs
    twice or never.
    """
    backbone = load_backbone(name, image_size=size, seed=3)
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    for method in ("head", "lora", "bottleneck", "scale-shift"):
        targets = "auto" if method == "head" else "last-block"
        model = moved(graft(backbone, method=method, targets=targets, classes=3, seed=1))
        prefix = frozen_prefix(model)
        assert prefix is not None, method
        h = prefix(x)
        assert torch.equal(prefix.tail(h), model(x)), (method, prefix.name)
        assert set(prefix.tail.trainable_parameters()) == set(model.trainable_parameters())
        assert not h.requires_grad
        F.cross_entropy(prefix.tail(h), torch.tensor([0, 1, 2])).backward()
        assert all(p.grad is not None for p in model.trainable_parameters().values()), method


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        *[
            ("vgg11", 32),
            ("alexnet", 64),
            ("googlenet", 32),
            ("inception_v3", 75),
            ("shufflenet_v2_x0_5", 32),
        ],
        *[
            ("mobilenet_v2", 32),
            ("maxvit_t", 224),
            ("swin_v2_t", 32),
            ("resnext50_32x4d", 32),
            ("regnet_y_400mf", 32),
        ],
    ],
)
def test_the_other_networks_are_cut_at_their_head(name, size):
    """A network of the registry that falls back to full forward passes without need."""
    model = moved(
        graft(load_backbone(name, image_size=size, seed=3), method="head", classes=3, seed=1)
    )
    prefix = frozen_prefix(model)
    assert prefix is not None
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    assert torch.equal(prefix.tail(prefix(x)), model(x))


def test_where_the_cut_is():
    """A cut earlier than need be: work that is done again at every step."""
    backbone = load_backbone("cifar-resnet20", seed=0)

    def name_of(method: str, targets: str = "auto") -> str | None:
        found = frozen_prefix(graft(backbone, method=method, targets=targets, classes=2))
        return found and found.name

    assert name_of("head") == "linear"
    assert name_of("lora", "last-block") == "layer3.2"
    assert name_of("bottleneck", "last-block") == "layer3.2.adapter"
    assert name_of("bottleneck") == "layer1.0.adapter"
    assert name_of("lora") is None
    assert name_of("full") is None


def test_an_unknown_network_has_no_cut():
    """A guess at the order in which an unknown network calls its children."""

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.head = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.one(x))

    model = GraftedModel(Other(), method="head", options=NoOptions(), outputs=2, head_name="head")
    assert frozen_prefix(model) is None


def test_a_cut_of_a_fused_and_of_a_copied_model():
    """A tail that goes on with the original's weights after a deep copy, or that loses the merged
    convolutions.
    """
    model = moved(
        graft(load_backbone("cifar-resnet8", seed=0), method="lora", targets=["layer3*"], classes=2)
    )
    fuse(model.net)
    x = torch.randn(2, 3, 32, 32)
    copied = copy.deepcopy(model)
    for each in (model, copied):
        prefix = frozen_prefix(each)
        assert prefix is not None
        assert torch.equal(prefix.tail(prefix(x)), each(x))
    wanted = copied(x)
    with torch.no_grad():
        for p in model.trainable_parameters().values():
            p.zero_()
    assert torch.equal(copied(x), wanted)
    assert not torch.equal(model(x), wanted)
