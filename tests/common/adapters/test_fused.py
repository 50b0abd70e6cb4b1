"""One convolution instead of three: the same outputs and the same gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fedgraft.common.adapters.fused import fuse, unfuse
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.model.grafted_model import GraftedModel, graft


def trained_a_little(name: str, image_size: int, freeze_a: bool = False) -> GraftedModel:
    """A LoRA model whose B is no longer zero."""
    backbone = load_backbone(name, image_size=image_size)
    model = graft(backbone, method="lora", classes=3, rank=8, seed=1, freeze_a=freeze_a)
    generator = torch.Generator().manual_seed(0)
    state = {
        key: t + 0.02 * torch.randn(t.shape, generator=generator)
        for key, t in model.adapter_state().items()
    }
    model.load_adapter_state(state)
    return model


def gradients(model: GraftedModel, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(x)
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    return logits.detach(), {
        n: p.grad.clone() for n, p in model.trainable_parameters().items() if p.grad is not None
    }


@pytest.mark.parametrize("freeze_a", [False, True])
@pytest.mark.parametrize(("name", "size"), [("cifar-resnet20", 16), ("mobilenet_v3_small", 32)])
def test_fused_and_unfused_agree(name, size, freeze_a):
    """Breaks if the merged weight, or the way gradients flow to A and B through it, were wrong.

    In float64 the two differ by rounding only, so a wrong scale or a missed group would stand out.
    """
    model = trained_a_little(name, size, freeze_a).double()
    x = torch.randn(
        4, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    logits, wanted = gradients(model, x)
    assert fuse(model.net) > 0
    fused_logits, found = gradients(model, x)
    torch.testing.assert_close(fused_logits, logits, rtol=1e-10, atol=1e-12)
    assert set(found) == set(wanted)
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-8, atol=1e-12)
    unfuse(model.net)
    assert torch.equal(gradients(model, x)[0], logits)


def test_a_fused_model_can_be_copied_and_merged():
    """Breaks if a copy's convolution called the original's weights, or merging left the fused
    forward behind.
    """
    model = trained_a_little("cifar-resnet20", 16)
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        before = model(x)
        fuse(model.net)
        copied, merged = copy.deepcopy(model), model.merge()
        torch.testing.assert_close(merged(x), before, rtol=1e-4, atol=1e-5)
        for parameter in model.trainable_parameters().values():
            parameter.zero_()
        torch.testing.assert_close(copied(x), before, rtol=1e-4, atol=1e-5)
