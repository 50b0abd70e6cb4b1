"""A frozen part that moved is seen, whoever moved it."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common.backbones import load_backbone
from common.model import GraftedModel, graft
from common.seal import Seal


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


@given(st.integers(0, 99), st.integers(0, 31), st.integers(1, 5))
def test_every_single_bit_moves_the_sum(position: int, bit: int, odd: int):
    """Sums that leave out a tail of a tensor, or the tensors whose bytes are no multiple of 8."""
    state = {"a": torch.arange(100, dtype=torch.int32), "b": torch.ones(odd), "c": torch.tensor(3)}
    seal = Seal.of(state)
    assert seal.holds(state)
    changed = state["a"].clone()
    changed[position] ^= (1 << bit) if bit < 31 else -(1 << 31)
    assert not seal.holds(state | {"a": changed})
    assert not seal.holds(state | {"b": state["b"].index_add(0, torch.tensor([odd - 1]), torch.ones(1))})
    assert not seal.holds(state | {"c": torch.tensor(4)})
    assert not seal.holds({"a": state["a"]})


def test_shape_and_type_are_part_of_it():
    state = {"a": torch.zeros(2, 3)}
    assert not Seal.of(state).holds({"a": torch.zeros(3, 2)})
    assert not Seal.of(state).holds({"a": torch.zeros(2, 3, dtype=torch.int32)})


def test_a_model_that_was_never_sealed_is_hashed():
    grafted = model()
    assert not grafted.frozen_as("sha256:0", read=False)
    assert isinstance(grafted, nn.Module)


def test_a_backbone_that_was_just_hashed_is_not_hashed_again(monkeypatch):
    """A third of a second for a ViT in every process; and a copy that differs, sealed under the original's name."""
    backbone = load_backbone("cifar-resnet8", seed=0)
    grafted = graft(backbone, method="lora", classes=2)
    other = graft(load_backbone("cifar-resnet8", seed=1), method="lora", classes=2)
    whole = graft(backbone, method="full", classes=2)
    assert other.seal_as(backbone) == other.frozen_fingerprint() != backbone.fingerprint
    assert whole.seal_as(backbone) == whole.frozen_fingerprint() != backbone.fingerprint
    monkeypatch.setattr("common.seal.fingerprint_of", lambda state: "hashed")
    assert grafted.seal_as(backbone) == backbone.fingerprint
    assert grafted.frozen_as(backbone.fingerprint, read=True)
