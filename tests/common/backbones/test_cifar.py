"""The CIFAR ResNets: known logits, an independent forward pass, the paper's sizes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.backbones.cifar_resnet import CifarResNet

GOLDEN = Path(__file__).parents[2] / "golden"


def _reference() -> Any:
    spec = importlib.util.spec_from_file_location(
        "cifar_resnet20_reference", GOLDEN / "cifar_resnet20.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _published_network(weights: Path) -> CifarResNet:
    """The whole published network: our backbone with the file's own classifier."""
    from safetensors.torch import load_file

    net = load_backbone("cifar-resnet20", weights=weights).net
    head, state = nn.Linear(64, 10), load_file(weights)
    head.load_state_dict({"weight": state["linear.weight"], "bias": state["linear.bias"]})
    net.linear = head
    assert isinstance(net, CifarResNet)
    return net.eval()


class TestCifarResNet:
    def test_known_logits(self, cifar_weights: Path) -> None:
        """Another stride, padding, shortcut or key would move the logits from those that numpy
        worked out.
        """
        reference, net = _reference(), _published_network(cifar_weights)
        images = torch.from_numpy(np.stack([reference.image(kind) for kind in range(4)])).float()
        golden = torch.tensor(json.loads((GOLDEN / "cifar_resnet20.json").read_text()))
        with torch.no_grad():
            torch.testing.assert_close(net(images), golden, atol=2e-4, rtol=1e-5)

    def test_against_numpy_on_another_size(self, cifar_weights: Path) -> None:
        """The golden file could be stale, or agree by chance at 32 pixels only."""
        reference, net = _reference(), _published_network(cifar_weights)
        w = {
            name: tensor.double().numpy()
            for name, tensor in net.state_dict().items()
            if tensor.ndim
        }
        image = reference.image(5)[:, :20, :28]
        with torch.no_grad():
            ours = net.double()(torch.from_numpy(image)[None])[0]
        np.testing.assert_allclose(ours.numpy(), reference.logits(image, w), atol=1e-9)

    @pytest.mark.parametrize(
        ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)]
    )
    def test_parameter_counts_of_the_paper(self, depth: int, millions: float) -> None:
        """He et al. 2016, table 6: a block too many or a shortcut with weights would show."""
        count = sum(p.numel() for p in CifarResNet(depth).parameters())
        assert round(count / 1e6, 2) == millions
        layers = [m for m in CifarResNet(depth).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == depth
