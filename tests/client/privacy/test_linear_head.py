"""Clipped sums of a linear head without a pass backwards, against slow loops and the other
engine.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedgraft.client.privacy.choose_engine import attach_engine
from fedgraft.client.privacy.clipping_engine import Drawn
from fedgraft.client.privacy.linear_head import LinearHead, clip_products, find_linear_head
from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.privacy.one_pass import OnePass
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import GraftedModel, graft
from fedgraft.common.tasks.classification import cross_entropies


def tail(method: str = "head", classes: int = 3) -> GraftedModel:
    """A small network behind its frozen prefix."""
    backbone = load_backbone("mlp", columns=5, hidden=(8, 6), seed=0)
    prefix = frozen_prefix(graft(backbone, method=method, classes=classes, seed=1))
    assert prefix is not None
    return prefix.tail


def lot(n: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = 3 * torch.randn((n, 6), generator=generator, dtype=torch.float64)
    return features.to(dtype), torch.randint(0, 3, (n,), generator=generator)


def loop(head: nn.Linear, x: Tensor, labels: Tensor, norm: float, owners: list[int]) -> Tensor:
    """The clipped sum, flat: a unit at a time, through torch's own gradients."""
    assert head.bias is not None
    parameters = [head.weight, head.bias]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for owner in sorted(set(owners)):
        rows = [row for row, other in enumerate(owners) if other == owner]
        gradients = []
        for row in rows:
            loss = F.cross_entropy(head(x[row : row + 1]), labels[row : row + 1])
            own = torch.autograd.grad(loss, parameters)
            gradients.append(torch.cat([g.flatten() for g in own]))
        mean = torch.stack(gradients).mean(0)
        total += mean * min(1.0, norm / (float(mean.norm()) + 1e-6))
    return total


def flat(sums: dict[Tensor, Tensor], head: nn.Linear) -> Tensor:
    assert head.bias is not None
    return torch.cat([sums[head.weight].flatten(), sums[head.bias].flatten()])


def linear_head(model: GraftedModel) -> nn.Linear:
    head = find_linear_head(model)
    assert head is not None
    return head


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 9),
    norm=st.sampled_from((1e-3, 0.4, 1e6)),
    seed=st.integers(0, 1000),
    by_owner=st.booleans(),
)
def test_the_clipped_sum_is_that_of_a_loop(n, norm, seed, by_owner) -> None:
    """A norm without the bias's part, a patient's images clipped one by one, a lot of one."""
    model = tail().double()
    head = linear_head(model)
    x, labels = lot(n, seed)
    owners = [row // 2 for row in range(n)] if by_owner else list(range(n))
    drawn = Drawn(x, labels, torch.tensor(owners) if by_owner else None)
    sums = flat(LinearHead(model, head, cross_entropies, norm).sums(drawn), head)
    wanted = loop(head, x, labels, norm, owners)
    assert float((sums - wanted).norm()) < 1e-6 * float(wanted.norm())
    assert float(sums.norm()) <= norm * len(set(owners)) * (1 + 1e-9)


def test_a_lot_of_nobody_sums_to_zero() -> None:
    """A padded step of a node into which nobody was drawn."""
    x, g = torch.zeros(2, 0, 6), torch.zeros(2, 0, 3)
    factors, x, g = clip_products(x, g, 1.0)
    assert bool(((g * factors[..., None]).mT @ x == 0).all())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 31, 32, 33, 64])
@pytest.mark.parametrize("classes", [3, 5])
def test_the_same_bits_as_in_one_pass(n: int, classes: int) -> None:
    """A simulation whose seed gave another model in an earlier release."""
    model = tail(classes=classes)
    head = linear_head(model)
    x, labels = lot(n, n, torch.float32)
    engine = OnePass(model, cross_entropies, 0.5)
    wanted = flat(engine.sums(Drawn(x, labels)), head)
    engine.detach()
    sums = LinearHead(model, head, cross_entropies, 0.5).sums(Drawn(x, labels))
    assert torch.equal(flat(sums, head), wanted)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_an_example_that_is_not_finite_counts_as_zero(bad: float) -> None:
    """One NaN in a sum tells that its example was there."""
    model = tail()
    head = linear_head(model)
    engine = LinearHead(model, head, cross_entropies, 1.0)
    x, labels = lot(5, 0, torch.float32)
    broken = x.clone()
    broken[2, 1] = bad
    rest = torch.tensor([0, 1, 3, 4])
    wanted = flat(engine.sums(Drawn(x[rest], labels[rest])), head)
    sums = flat(engine.sums(Drawn(broken, labels)), head)
    torch.testing.assert_close(sums, wanted, rtol=1e-6, atol=1e-6)


def test_only_a_head_alone_is_taken() -> None:
    """A model that trains more, whose other gradients would be left out without a word; a head
    whose hooks change what it does.
    """
    mechanism = Mechanism(1.0, 0.1, 1, 1.0, 1.0)
    assert isinstance(attach_engine(tail(), cross_entropies, mechanism), LinearHead)
    for method in ("lora", "bias", "full"):
        backbone = load_backbone("mlp", columns=5, hidden=(8, 6), seed=0)
        assert find_linear_head(graft(backbone, method=method, classes=3)) is None
    model = tail()
    hook = linear_head(model).register_forward_hook(lambda *given: None)
    assert find_linear_head(model) is None
    hook.remove()
    head = linear_head(model)
    assert head.bias is not None
    head.bias.requires_grad_(False)
    assert find_linear_head(model) is None


def test_rows_that_are_no_examples_are_refused() -> None:
    """A head on every token of a text, each clipped as if it were a record."""
    model = tail()
    engine = LinearHead(model, linear_head(model), cross_entropies, 1.0)
    with pytest.raises((RuntimeError, ValueError)):
        engine.sums(Drawn(torch.randn(2, 4, 6), torch.tensor([0, 1])))
