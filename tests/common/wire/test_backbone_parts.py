"""A backbone that is cut into parts and put together again is the same to the bit."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fedgraft.client.store import backbone_download
from fedgraft.client.store.backbone_download import Download
from fedgraft.common.files.tensor_files import fingerprint_of
from fedgraft.common.wire import backbone_parts
from fedgraft.common.wire.backbone_parts import (
    MOST_PARTS,
    WIDTHS,
    PartTable,
    cut_part,
    part_content,
    read_part,
)
from fedgraft.common.wire.layout import BadUpdate

State = dict[str, torch.Tensor]


def draw_tensor(kind: str, shape: list[int], seed: int) -> torch.Tensor:
    """Bytes as they fall: NaNs of every kind among them."""
    width = WIDTHS[kind]
    count = width * torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(seed)
    low, high = (0, 2) if kind == "bool" else (0, 256)
    raw = torch.randint(low, high, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(getattr(torch, kind)).reshape(shape)


@st.composite
def states(draw: Any) -> State:
    shapes = st.lists(st.integers(0, 5), max_size=2)
    drawn = draw(
        st.dictionaries(
            st.text('ab.ε"\\', min_size=1, max_size=4),
            st.tuples(st.sampled_from(sorted(WIDTHS)), shapes, st.integers(0, 99)),
            max_size=8,
        )
    )
    return {name: draw_tensor(*about) for name, about in drawn.items()}


@settings(max_examples=50)
@given(state=states(), part_size=st.integers(10, 700), piece=st.integers(1, 50), seed=st.randoms())
def test_what_is_put_together_is_what_was_cut(
    tmp_path_factory: pytest.TempPathFactory, state: State, part_size: int, piece: int, seed: Any
) -> None:
    """A byte that is lost, doubled or moved, at any size of parts, in any order; a file that
    `safetensors` cannot read or reads as something else; another fingerprint.
    """
    folder = tmp_path_factory.mktemp("parts")
    table = PartTable.of(state, part_size)
    numbers = list(table.numbers)
    seed.shuffle(numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone_parts, "PIECE", piece)
        patch.setattr(backbone_download, "BLOCK", piece)
        # a test of bytes, not of a power cut
        patch.setattr(os, "fsync", lambda descriptor: None)
        for number in numbers:
            part = read_part(part_content(cut_part(state, table, number), "sha256:0"))
            assert all(len(each) <= piece for each in part.pieces)
            assert sum(len(each) for each in part.pieces) <= part_size
            # another process each time
            download = Download(folder / "backbone.parts")
            download.begin(part.table)
            download.keep(part)
        assert download.missing() == []
        download.finish(fingerprint_of(state))
    loaded = load_file(download.data)
    assert fingerprint_of(loaded) == fingerprint_of(state)
    assert set(loaded) == set(state)


def test_a_part_may_end_within_a_tensor(tmp_path: Path) -> None:
    """A tensor that goes alone, however large it is."""
    state = {"large": torch.arange(1000), "small": torch.ones(3)}
    table = PartTable.of(state, 512)
    assert table.parts == 16
    (first,) = cut_part(state, table, 1).pieces
    assert first == torch.arange(64).numpy().tobytes()


def test_tensors_that_are_no_plain_memory_are_cut_as_they_read() -> None:
    """A transposed or read-only tensor that is sent in the order of its memory."""
    state = {"turned": torch.arange(12.0).reshape(3, 4).T}
    (piece,) = cut_part(state, PartTable.of(state, 100), 1).pieces
    assert piece == state["turned"].contiguous().numpy().tobytes()


ROW = ["weight", "float32", [3]]


@pytest.mark.parametrize(
    "changed",
    [
        {"part": 0},
        {"part": 2},
        {"part": "x"},
        {"parts": MOST_PARTS + 1},
        {"parts": 2},
        {"tensors": "no JSON"},
        {"tensors": "[" * 10_000},
        {"tensors": json.dumps({"part-size": 0, "tensors": [ROW]})},
        {"tensors": json.dumps({"part-size": 0.5, "tensors": [ROW]})},
        {"tensors": json.dumps({"part-size": 100, "tensors": [ROW, ROW]})},
        {"tensors": json.dumps({"part-size": 100, "tensors": [["a", "object", [3]]]})},
        {"tensors": json.dumps({"part-size": 100, "tensors": [["a", "float32", [-3]]]})},
        {"tensors": json.dumps({"part-size": 100, "tensors": [["a", "float32", "33"]]})},
        {"tensors": json.dumps({"part-size": 100, "tensors": [["__metadata__", "int8", [3]]]})},
        {"tensors": json.dumps({"part-size": 1, "tensors": [["a", "float32", [10**9]]]})},
        {"tensors": json.dumps({"part-size": 100, "tensors": [["b", "int8", []], ROW]})},
    ],
)
def test_what_is_no_part_is_refused(changed: dict[str, Any]) -> None:
    """A traceback at a node, or bytes that a hostile server puts where it likes."""
    state = {"weight": torch.ones(3)}
    content = part_content(cut_part(state, PartTable.of(state, 100), 1), "sha256:0")
    content["about"] = ConfigRecord({**content.config_records["about"], **changed})
    with pytest.raises(BadUpdate, match=r"backbone|parts of"):
        read_part(content)


def test_a_part_knows_that_it_is_damaged() -> None:
    """A flipped bit, a byte too few or too many."""
    state = {"weight": torch.arange(9.0)}
    part = cut_part(state, PartTable.of(state, 20), 2)
    (piece,) = part.pieces
    assert part.is_whole
    for other in (piece[:-1], piece + b"0", bytes([piece[0] ^ 1]) + piece[1:]):
        assert not dataclasses.replace(part, pieces=[other]).is_whole
