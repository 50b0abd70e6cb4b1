"""Fingerprints of tensors: any other byte, name, type or shape gives another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.common.backbones.backbone import backbone_state
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.files.tensor_files import fingerprint_of


class TestFingerprint:
    STATE = st.dictionaries(
        st.text(max_size=6),
        st.tuples(
            st.sampled_from([torch.float32, torch.int64, torch.uint8, torch.bfloat16]),
            st.lists(st.integers(0, 3), max_size=3),
            st.integers(0, 200),
        ),
        min_size=1,
        max_size=4,
    )

    @staticmethod
    def _state(drawn: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {
            name: (torch.arange(int(np.prod(shape, dtype=int))) + start).reshape(shape).to(dtype)
            for name, (dtype, shape, start) in drawn.items()
        }

    @settings(max_examples=60, deadline=None)
    @given(drawn=STATE, data=st.data())
    def test_moves_with_anything_but_the_order(
        self, drawn: dict[str, Any], data: st.DataObject
    ) -> None:
        """A backbone that differs in one byte, name, dtype or shape is another backbone."""
        state = self._state(drawn)
        found = fingerprint_of(state)
        assert found.startswith("sha256:")
        assert len(found) == 71
        assert fingerprint_of(dict(reversed(state.items()))) == found
        assert fingerprint_of({k: v.clone() for k, v in state.items()}) == found
        name = data.draw(st.sampled_from(sorted(state)))
        tensor = state[name]
        assert fingerprint_of({**state, name: tensor[None]}) != found
        assert fingerprint_of({**state, name: tensor.to(torch.float64)}) != found
        assert fingerprint_of({k if k != name else k + "_": v for k, v in state.items()}) != found
        assert fingerprint_of({k: v for k, v in state.items() if k != name}) != found
        if tensor.numel():
            raw = tensor.clone().reshape(-1).view(torch.uint8)
            place = data.draw(st.integers(0, raw.numel() - 1))
            raw[place] ^= 1 << data.draw(st.integers(0, 7))
            assert (
                fingerprint_of({**state, name: raw.view(tensor.dtype).reshape(tensor.shape)})
                != found
            )

    def test_bytes_cannot_wander_between_tensors(self) -> None:
        """Two tensors with one's tail moved to the other must not collide."""
        a = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
        b = {"a": torch.tensor([1.0]), "b": torch.tensor([2.0, 3.0])}
        assert fingerprint_of(a) != fingerprint_of(b)

    def test_memory_layout_does_not_matter(self) -> None:
        """A transposed view and its contiguous copy hold the same values."""
        view = torch.arange(6.0).reshape(2, 3).T
        assert fingerprint_of({"w": view}) == fingerprint_of({"w": view.contiguous()})

    def test_covers_buffers_and_leaves_the_classifier_out(self, cifar_weights: Path) -> None:
        """BatchNorm's statistics are what private data would leak into; the head is not the
        backbone's.
        """
        made = load_backbone("cifar-resnet20", weights=cifar_weights)
        state = backbone_state(made)
        assert "bn1.running_var" in state
        assert not [name for name in state if name.startswith("linear")]
        assert (
            fingerprint_of({**state, "bn1.running_mean": state["bn1.running_mean"] + 1e-6})
            != made.fingerprint
        )
