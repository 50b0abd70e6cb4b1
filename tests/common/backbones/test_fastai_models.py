"""fastai's vision learners: their bodies are torchvision's networks under other names.

fastai is not installed: files are put together as `learn.save` writes them, a Sequential of body
and head.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision.models as vision
from torch import nn

from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.common.adapters import METHODS
from fedgraft.common.adapters.targets import find_blocks
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.backbones.family import last_linear
from fedgraft.common.errors import UserError
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import graft
from fedgraft.common.tasks.classification import cross_entropies

# with how many children of torchvision's network are the body, as fastai cuts it
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (vision.resnet18, 8),
    "resnet50": (vision.resnet50, 8),
    "densenet121": (vision.densenet121, 1),
}
SIDE = 32
IMAGES = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


class ConcatPool(nn.Module):
    """Largest and mean of each channel, as fastai's head begins."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1)


def learner(name: str) -> tuple[nn.Module, nn.Sequential]:
    """Return torchvision's network, and a learner on it."""
    make, cut = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = make().eval()
        width = 2 * last_linear(net)[1].in_features
        head = nn.Sequential(
            ConcatPool(),
            nn.BatchNorm1d(width),
            nn.Linear(width, 64, bias=False),
            nn.ReLU(),
            nn.BatchNorm1d(64),
            nn.Linear(64, 3, bias=False),
        )
    body = nn.Sequential(*list(net.children())[:cut])
    return net, nn.Sequential(body, head).eval()


@pytest.mark.parametrize("with_optimizer", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_those_of_the_body(name: str, with_optimizer: bool, tmp_path: Path) -> None:
    """A tensor under a wrong name is another network; a file with an optimizer's state is read
    too.
    """
    net, learnt = learner(name)
    saved: object = learnt.state_dict()
    if with_optimizer:
        saved = {"model": learnt.state_dict(), "opt": {"state": [], "hypers": [{"lr": 0.1}]}}
    torch.save(saved, tmp_path / "stage-1.pth")
    weights = tmp_path / "stage-1.pth"
    backbone = load_backbone(f"fastai/{name}", weights=weights, image_size=SIDE)
    net.set_submodule(last_linear(net)[0], nn.Identity())
    with torch.no_grad():
        assert torch.equal(backbone.net(IMAGES), net(IMAGES))
    assert find_blocks(backbone.net)


@pytest.mark.parametrize("method", METHODS.names)
def test_it_is_adapted_as_torchvisions(method: str, tmp_path: Path) -> None:
    """Nothing at first; merged the same; and single gradients those of a loop."""
    _, learnt = learner("resnet18")
    torch.save(learnt.state_dict(), tmp_path / "stage-1.pth")
    backbone = load_backbone("fastai/resnet18", weights=tmp_path / "stage-1.pth", image_size=SIDE)
    model = graft(backbone, method=method, classes=3, rank=2, width=3, seed=1)
    head = model.net.get_submodule(model.head_name)
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), head(backbone.net(IMAGES)))
        torch.testing.assert_close(model.merge()(IMAGES), model(IMAGES), atol=1e-4, rtol=1e-4)
    last = graft(backbone, method="lora", classes=3, rank=2, targets="last-block")
    assert frozen_prefix(last) is not None
    if method != "full":
        check_gradients(model, "hooks", IMAGES, cross_entropies)


def test_what_cannot_be_read_says_what_to_write(tmp_path: Path) -> None:
    """An exported learner is a pickle that runs code; others are of other networks."""
    _, learnt = learner("resnet18")
    exported = tmp_path / "export.pkl"
    exported.write_bytes(pickle.dumps(print))
    with pytest.raises(UserError, match=r"weights in a \.pkl file"):
        load_backbone("fastai/resnet18", weights=exported)
    torch.save(learnt, tmp_path / "whole.pth")
    with pytest.raises(UserError, match="would run code"):
        load_backbone("fastai/resnet18", weights=tmp_path / "whole.pth")
    torch.save(learnt.state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="these are not the weights of fastai/resnet50"):
        load_backbone("fastai/resnet50", weights=tmp_path / "other.pth")
    torch.save({"0.model.conv1.weight": torch.zeros(1)}, tmp_path / "timm.pth")
    with pytest.raises(UserError, match="timm's networks"):
        load_backbone("fastai/resnet18", weights=tmp_path / "timm.pth")
    with pytest.raises(UserError, match="no backbone is called"):
        load_backbone("fastai/vgg16", weights=tmp_path / "other.pth")
