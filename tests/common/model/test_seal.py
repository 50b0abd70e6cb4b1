"""A frozen part that moved is seen, whoever moved it."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.model.grafted_model import GraftedModel, graft
from fedgraft.common.model.seal import Seal


def model() -> GraftedModel:
    return graft(load_backbone("cifar-resnet8", seed=0), method="head", classes=2)


def in_train_mode(grafted: GraftedModel) -> None:
    grafted.net.get_submodule("bn1").train()(torch.ones(2, 16, 4, 4))


def behind_torch(grafted: GraftedModel) -> None:
    next(iter(grafted.frozen_state().values())).numpy().reshape(-1)[0] += 1


def through_data(grafted: GraftedModel) -> None:
    grafted.net.get_submodule("conv1").weight.data.view(-1)[7] = 3.0  # type: ignore[operator, union-attr]


def swapped(grafted: GraftedModel) -> None:
    bn = grafted.net.get_submodule("bn1")
    bn.running_mean, bn.running_var = bn.running_var, bn.running_mean


@pytest.mark.parametrize("move", [in_train_mode, behind_torch, through_data, swapped])
def test_every_move_is_seen_after_the_round(move: Callable[[GraftedModel], None]):
    """What torch's counters of writes do not count: BatchNorm in train mode above all."""
    grafted = model()
    fingerprint = grafted.frozen_fingerprint()
    assert grafted.frozen_as(fingerprint, read=True)
    assert grafted.frozen_as(fingerprint, read=False)
    move(grafted)
    assert not grafted.frozen_as(fingerprint, read=True)
    assert not grafted.frozen_as(fingerprint, read=False)  # and it stays seen
    assert grafted.frozen_fingerprint() != fingerprint


def test_training_the_head_is_no_move():
    grafted = model()
    fingerprint = grafted.frozen_fingerprint()
    with torch.no_grad():
        for p in grafted.trainable_parameters().values():
            p.add_(1)
    assert grafted.frozen_as(fingerprint, read=True)


def holding(**tensors: Tensor) -> nn.Module:
    net = nn.Module()
    for name, tensor in tensors.items():
        net.register_buffer(name, tensor)
    return net


def sealed(net: nn.Module) -> Seal:
    return Seal.of(net, net.state_dict().keys())


@given(st.integers(0, 99), st.integers(0, 31), st.integers(1, 5))
def test_every_single_bit_moves_the_sum(position: int, bit: int, odd: int):
    """Sums that leave out a tail of a tensor, the tensors whose bytes are no multiple of 8 or do
    not lie together.
    """
    apart = torch.ones(4, 6)[:, ::2]
    net = holding(
        a=torch.arange(100, dtype=torch.int32), b=torch.ones(odd), c=torch.tensor(3), d=apart
    )
    changes: list[Callable[[], object]] = [
        lambda: (
            net.get_buffer("a")
            .numpy()
            .__setitem__(
                position, net.get_buffer("a")[position] ^ ((1 << bit) if bit < 31 else -(1 << 31))
            )
        ),
        lambda: net.get_buffer("b").numpy().__setitem__(odd - 1, 1.5),
        lambda: net.get_buffer("c").numpy().__setitem__((), 4),
        lambda: net.get_buffer("d").numpy().__setitem__((3, 2), 0.0),
    ]
    for change in changes:
        seal = sealed(net)
        assert seal.holds(net, read=True)
        change()
        assert seal.holds(
            net, read=False
        )  # behind torch's back: its counters of writes say nothing
        assert not seal.holds(net, read=True)


def turned(net: nn.Module) -> None:
    net.get_buffer("a").data = net.get_buffer("a").data.t()


def other_shape(net: nn.Module) -> None:
    net.get_buffer("a").data = net.get_buffer("a").data.view(1, 4)


def other_type(net: nn.Module) -> None:
    net.get_buffer("a").data = net.get_buffer("a").data.view(torch.int32)


def other_place(net: nn.Module) -> None:
    net.get_buffer("a").data = net.get_buffer("a").data.clone()


def one_more(net: nn.Module) -> None:
    net.register_buffer("b", torch.zeros(1))


def trained(net: nn.Module) -> None:
    net.get_buffer("a").requires_grad_(True)


@pytest.mark.parametrize(
    "change", [turned, other_shape, other_type, other_place, one_more, trained]
)
@pytest.mark.parametrize("read", [True, False])
def test_a_tensor_that_lies_otherwise_is_seen(change: Callable[[nn.Module], None], read: bool):
    """The same bytes with the same sum, which are another weight; a sum of what the network does
    not use any more.
    """
    net = holding(a=torch.arange(4.0).view(2, 2))
    seal = sealed(net)
    assert seal.holds(net, read=read)
    change(net)
    assert not seal.holds(net, read=read)


def test_values_that_changed_places_are_seen() -> None:
    """The same bytes with the same sum, in another order: torch has counted the write, if nothing
    else tells.
    """
    net = holding(a=torch.arange(8.0).view(2, 4))
    seal = sealed(net)
    before = net.get_buffer("a").view(torch.int64).sum()
    net.get_buffer("a")[[0, 1]] = net.get_buffer("a")[[1, 0]]
    assert net.get_buffer("a").view(torch.int64).sum() == before
    assert not seal.holds(net, read=True)


@pytest.mark.parametrize("read", [True, False])
def test_it_holds_for_no_copy(read: bool):
    """A copy's tensors watched in the place of the original's."""
    grafted = model()
    fingerprint = grafted.frozen_fingerprint()
    copied = copy.deepcopy(grafted)
    assert copied._seal is not None
    assert not copied._seal.holds(copied.net, read=read)
    assert copied.frozen_as(fingerprint, read=read)  # by its SHA-256
    behind_torch(copied)
    assert not copied.frozen_as(fingerprint, read=True)
    assert grafted.frozen_as(fingerprint, read=True)


def test_a_model_that_was_never_sealed_is_hashed():
    grafted = model()
    assert not grafted.frozen_as("sha256:0", read=False)
    assert isinstance(grafted, nn.Module)


def test_a_backbone_that_was_just_hashed_is_not_hashed_again(monkeypatch):
    """A third of a second for a ViT in every process; and a copy that differs, sealed under the
    original's name.
    """
    backbone = load_backbone("cifar-resnet8", seed=0)
    grafted = graft(backbone, method="lora", classes=2)
    other = graft(load_backbone("cifar-resnet8", seed=1), method="lora", classes=2)
    whole = graft(backbone, method="full", classes=2)
    assert other.seal_as(backbone) == other.frozen_fingerprint() != backbone.fingerprint
    assert whole.seal_as(backbone) == whole.frozen_fingerprint() != backbone.fingerprint
    monkeypatch.setattr("fedgraft.common.model.seal.fingerprint_of", lambda state: "hashed")
    assert grafted.seal_as(backbone) == backbone.fingerprint
    assert grafted.frozen_as(backbone.fingerprint, read=True)
