"""A batch: several tensors of the same examples, cut and put together as one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.common.inputs.batch import Batch, concatenate


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Batches of 0 to 12 examples, one to three tensors of any shape and several types."""
    examples = draw(st.integers(0, 12))
    names = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True))
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        shape = (examples, *draw(st.lists(st.integers(1, 3), max_size=2)))
        kind = draw(st.sampled_from([torch.float32, torch.int64, torch.uint8]))
        count = torch.Size(shape).numel()
        tensors[name] = torch.arange(count).reshape(shape).to(kind)
    return Batch(tensors)


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches have the same tensors, by value, shape and type."""
    if one.tensors.keys() != other.tensors.keys():
        return False
    for name, tensor in one.tensors.items():
        twin = other.tensors[name]
        if tensor.dtype != twin.dtype or not torch.equal(tensor, twin):
            return False
    return True


@given(batch=batches(), at=st.integers(0, 12))
def test_parts_put_together_are_the_whole(batch: Batch, at: int) -> None:
    """A tensor that is left uncut, or put together in another order than the others."""
    first = batch[:at]
    second = batch[at:]
    assert len(first) + len(second) == len(batch)
    assert first.nbytes + second.nbytes == batch.nbytes
    assert same(concatenate([first, second]), batch)


@given(batch=batches(), data=st.data())
def test_rows_are_the_same_examples_in_every_tensor(batch: Batch, data: st.DataObject) -> None:
    """An image with its neighbour's age."""
    rows = torch.tensor(data.draw(st.permutations(range(len(batch)))), dtype=torch.int64)
    chosen = batch[rows]
    for name, tensor in batch.tensors.items():
        assert torch.equal(chosen.tensors[name], tensor[rows])


@given(batch=batches(), at=st.integers(0, 12))
def test_a_batch_is_filled_in_parts(batch: Batch, at: int) -> None:
    """Activations of another shape or type than were computed, or in another place."""
    filled = batch.empty_like(len(batch))
    filled.write(slice(0, at), batch[:at])
    filled.write(slice(at, None), batch[at:])
    assert same(filled, batch)


@given(batch=batches())
def test_every_tensor_is_changed_in_the_same_way(batch: Batch) -> None:
    """A tensor that stays in float32 or on the other device."""
    changed = batch.map(torch.Tensor.double)
    assert len(changed) == len(batch)
    assert {tensor.dtype for tensor in changed.tensors.values()} == {torch.float64}


def test_the_only_tensor_of_several_is_asked_for_in_vain() -> None:
    """Half of the inputs, passed over without a word."""
    image = torch.zeros(2, 3)
    assert Batch({"image": image}).only is image
    with pytest.raises(ValueError, match="age, image"):
        _ = Batch({"age": torch.zeros(2), "image": image}).only
