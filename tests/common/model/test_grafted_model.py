"""The grafted model as others use it: what travels, what stays, who shares what."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.adapters import METHODS
from fedgraft.common.backbones.backbone import Backbone, backbone_state
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import fingerprint_of
from fedgraft.common.model.grafted_model import GraftedModel, graft

Lively = Callable[[str], Backbone]
Inputs = Callable[..., Tensor]


def train(model: GraftedModel, x: Tensor, y: Tensor, steps: int = 3) -> dict[str, Tensor]:
    """A few steps; returns the state."""
    model.train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.002, momentum=0.9
    )
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.adapter_state()


class TestState:
    def test_state_travels_and_arrives(self, lively: Lively, inputs: Inputs) -> None:
        """What one side sends must give the other side the same model, and be copies, not live
        tensors.
        """
        for method in METHODS.names:
            first = graft(lively("mlp"), method=method, classes=3, seed=1)
            second = graft(lively("mlp"), method=method, classes=3, seed=2)
            state = train(first, inputs("mlp", 6), torch.tensor([0, 1, 2, 0, 1, 2]))
            second.load_adapter_state(dict(reversed(state.items())))
            with torch.no_grad():
                assert torch.equal(first(inputs("mlp")), second(inputs("mlp")))
            for tensor in state.values():
                tensor.fill_(9.0)
            assert not any(torch.equal(t, state[k]) for k, t in first.adapter_state().items())
            assert first.adapter_spec() == {
                k: ("float32", tuple(v.shape)) for k, v in sorted(state.items())
            }

    def test_a_state_of_another_model_is_refused_whole(self, lively: Lively) -> None:
        """Half of a wrong state must not get in."""
        model = graft(lively("mlp"), method="lora", classes=3, seed=1)
        good, name = model.adapter_state(), "head.weight"
        bad: list[dict[str, Any]] = [
            {k: v + 1 for k, v in good.items() if k != name},
            {**{k: v + 1 for k, v in good.items()}, "more": torch.zeros(1)},
            {**{k: v + 1 for k, v in good.items()}, name: torch.zeros(2, 8)},
            {**{k: v + 1 for k, v in good.items()}, name: good[name].double()},
            {},
        ]
        for state in bad:
            with pytest.raises(UserError, match="not the adapters of this model"):
                model.load_adapter_state(state)
            assert all(torch.equal(v, good[k]) for k, v in model.adapter_state().items())


class TestFrozen:
    def test_train_mode_changes_no_output_and_no_buffer(
        self, lively: Lively, inputs: Inputs
    ) -> None:
        """A BatchNorm in train mode couples examples and absorbs them into its statistics; Dropout
        adds noise.
        """
        for name in ("resnet18", "mobilenet_v3_small"):
            model, x = graft(lively(name), method="lora", classes=2, rank=2), inputs(name, 4)
            model.eval()
            with torch.no_grad():
                quiet = model(x)
            model.train()
            with torch.no_grad():
                assert torch.equal(model(x), quiet)
            assert model.frozen_fingerprint() == lively(name).fingerprint
            for module in model.modules():
                if isinstance(module, nn.Dropout | nn.modules.batchnorm._BatchNorm):
                    assert not module.training
            head = model.net.get_submodule(model.head_name)
            assert head.training  # Opacus listens to layers in train mode only
            assert not model.eval().net.get_submodule(model.head_name).training

    def test_full_owns_its_copies(self, lively: Lively, inputs: Inputs) -> None:
        """The full baseline trains everything: in copies, or it would ruin the backbone of all
        other nodes.
        """
        backbone = lively("cifar-resnet20")
        model = graft(backbone, method="full", classes=2)
        shared = {t.data_ptr() for t in backbone_state(backbone).values()}
        before = model.frozen_fingerprint()
        train(model, inputs("cifar-resnet20", 4), torch.tensor([0, 1, 0, 1]))
        assert not shared & {p.data_ptr() for p in model.parameters()}
        assert fingerprint_of(backbone_state(backbone)) == backbone.fingerprint
        assert model.frozen_fingerprint() == before
        assert {
            k
            for k in model.frozen_state()
            if not k.endswith(("running_mean", "running_var", "tracked"))
        } == set()

    def test_frozen_memory_is_shared_but_the_objects_are_not(self, lively: Lively) -> None:
        """A thousand nodes must not hold a thousand backbones, nor may `.double()` on one reach
        them all.
        """
        backbone = lively("cifar-resnet20")
        model = graft(backbone, method="lora", classes=2)
        frozen, original = model.frozen_state(), backbone_state(backbone)
        assert all(frozen[k].data_ptr() == original[k].data_ptr() for k in original)
        model.double()
        assert fingerprint_of(backbone_state(backbone)) == backbone.fingerprint

    def test_no_graph_before_the_first_trainable_layer(
        self, lively: Lively, inputs: Inputs
    ) -> None:
        """Speed: with the last block adapted, backward must stop there and keep nothing of what
        lies before.
        """
        model = graft(lively("cifar-resnet20"), method="lora", classes=2, targets="last-block")
        seen: dict[str, bool] = {}
        for name in ("layer1", "layer3.1", "layer3.2"):

            def note(module: nn.Module, given: object, output: Tensor, name: str = name) -> None:
                seen[name] = output.requires_grad

            model.net.get_submodule(name).register_forward_hook(note)
        model(inputs("cifar-resnet20"))
        assert seen == {"layer1": False, "layer3.1": False, "layer3.2": True}


class TestThreads:
    def test_models_that_share_a_backbone_train_at_once(
        self, lively: Lively, inputs: Inputs
    ) -> None:
        """Threads that graft and train together must end, bit for bit, as one after the other."""
        backbone, x = lively("cifar-resnet20"), inputs("cifar-resnet20", 4)
        y = torch.tensor([0, 1, 1, 0])

        def work(k: int) -> dict[str, Tensor]:
            torch.set_num_threads(
                1
            )  # as a node does: how a sum is split over threads shows in its last bits
            method = METHODS.names[k % len(METHODS.names)]
            return train(graft(backbone, method=method, classes=2, rank=2, seed=k), x + k / 10, y)

        before = torch.get_num_threads()
        alone = [work(k) for k in range(6)]
        together: list[dict[str, Tensor]] = [{} for _ in range(6)]
        threads = [
            threading.Thread(target=lambda k=k: together[k].update(work(k))) for k in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        torch.set_num_threads(before)
        for one, other in zip(alone, together, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[k], other[k]) and bool(one[k].isfinite().all()) for k in one)
        assert fingerprint_of(backbone_state(backbone)) == backbone.fingerprint


def test_a_grafted_model_can_be_copied(lively: Lively, inputs: Inputs) -> None:
    """Hooks and opened attention must survive a deep copy, and the copy stand by itself."""
    for name, method in (("cifar-resnet20", "lora"), ("mlp", "bias")):
        model = graft(lively(name), method=method, classes=2)
        twin = copy.deepcopy(model)
        state = train(twin, inputs(name), torch.tensor([0, 1]))
        assert any(not torch.equal(t, state[k]) for k, t in model.adapter_state().items())
        model.load_adapter_state(state)
        with torch.no_grad():
            assert torch.equal(model(inputs(name)), twin(inputs(name)))
