"""Updates in fewer bytes: what arrives, how far off it is, and what becomes of the rest."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.client.store.error_feedback import Feedback
from fedgraft.common.wire.encoding import decode, encode, error_bound
from fedgraft.common.wire.layout import Layout

SHAPES = (("a", (3, 2)), ("b", (5,)), ("c", ()))


def update(seed: int, size: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(shape, generator=generator) for name, shape in SHAPES}


def flat(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([state[name].reshape(-1).double() for name, _ in SHAPES])


@pytest.mark.parametrize("encoding", ["fp16", "int8"])
@given(seed=st.integers(0, 1000), size=st.sampled_from((1e-6, 1e-3, 1.0, 1e3)))
def test_the_error_is_within_what_is_stated(encoding, seed, size):
    """A result that promises less rounding than there is."""
    meant = update(seed, size)
    wire = encode(meant, SHAPES, encoding)
    assert wire.nbytes == (24 if encoding == "fp16" else 4 * 3 + 12)
    arrived = decode(wire, SHAPES, encoding)
    assert {name: tuple(tensor.shape) for name, tensor in arrived.items()} == dict(SHAPES)
    off = float((flat(arrived) - flat(meant)).norm() / flat(arrived).norm())
    assert off <= error_bound(wire, SHAPES, encoding) * (1 + 1e-5)


def test_eight_bits_by_hand():
    """Tensor a: largest 2.54, scale 0.02; 0.031 / 0.02 = 1.55 → 2 → 0.04."""
    meant = {
        "a": torch.tensor([[2.54, 0.031], [-0.5, 0.0], [0.009, -2.54]]),
        "b": torch.zeros(5),
        "c": torch.ones(()),
    }
    arrived = decode(encode(meant, SHAPES, "int8"), SHAPES, "int8")
    torch.testing.assert_close(
        arrived["a"], torch.tensor([[2.54, 0.04], [-0.5, 0.0], [0.0, -2.54]])
    )
    assert torch.equal(arrived["b"], torch.zeros(5))
    assert float(arrived["c"]) == pytest.approx(1.0)


@pytest.mark.parametrize(("encoding", "floor"), [("fp16", 1e-3), ("int8", 1e-2)])
def test_what_is_lost_comes_later(tmp_path, encoding, floor):
    """Values too small for the scale, lost round by round: with feedback the sum over 50 rounds
    arrives.
    """
    small = {
        "a": torch.tensor([[1.0, 0.001], [0.0015, 0.0], [0.0, 0.0]]),
        "b": torch.full((5,), 1e-3),
        "c": torch.ones(()),
    }
    layout = Layout(SHAPES)
    total = torch.zeros(12, dtype=torch.float64)
    for round_ in range(1, 51):  # each a new process: only the folder goes on
        wire = Feedback(tmp_path, "sha256:aa").encode(small, layout, encoding, round_)
        total += flat(decode(wire, SHAPES, encoding))
    assert float((total - 50 * flat(small)).abs().max()) < floor
    if encoding == "int8":
        alone = 50 * flat(decode(encode(small, SHAPES, encoding), SHAPES, encoding))
        assert float((alone - 50 * flat(small)).abs().max()) > 0.04  # what it is without feedback
    assert len(list(tmp_path.iterdir())) <= 2


def test_a_round_that_is_run_again_sends_the_same(tmp_path):
    """A resumed run that goes another way than one that was never cut off."""
    layout, first, second = Layout(SHAPES), update(1), update(2)
    memory = Feedback(tmp_path, "sha256:aa")
    memory.encode(first, layout, "int8", 1)
    wanted = memory.encode(second, layout, "int8", 2)
    assert np.array_equal(memory.encode(second, layout, "int8", 2), wanted)
    assert not np.array_equal(encode(second, SHAPES, "int8"), wanted)
    fresh = memory.encode(first, layout, "int8", 1)  # the plan begins anew
    assert np.array_equal(fresh, encode(first, SHAPES, "int8"))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_wires_that_are_none_are_refused():
    """Bytes of another length or kind, or a scale that a broken node made up."""
    wire = encode(update(0), SHAPES, "int8")
    bad = wire.copy()
    bad[:4] = np.array([np.inf], np.float32).view(np.uint8)
    for broken in (wire[:-1], wire.astype(np.int8), bad, wire.astype(np.float16)):
        with pytest.raises(ValueError, match=r"agreed on|scales"):
            decode(broken, SHAPES, "int8")
    with pytest.raises(ValueError, match="agreed on"):
        decode(wire, SHAPES, "fp16")
