"""What crosses the wire: exactly the adapter, checked before anything else sees it."""

import io
import math
import typing

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.common.plan.privacy_section import PrivacySection
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.privacy.accounting import Spent
from fedgraft.common.wire.layout import ADAPTER, BadUpdate, Layout, pack, unpack
from fedgraft.common.wire.message_size import message_bytes
from fedgraft.common.wire.spent_record import spent_record
from fedgraft.common.wire.update import BESIDE, AdapterUpdate, Expected

STATE = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.tensor([0.5, -0.5])}
LAYOUT = Layout.of(STATE)
TASK = TaskSection(kind="image-classification", classes=("a", "b"))
EXPECTED = Expected(LAYOUT, round=3, task=TASK)


def reply(**changes) -> RecordDict:
    """A good reply of round 3, with some of it replaced."""
    update = AdapterUpdate(
        3, STATE, examples=10, steps=2, train_loss=0.7, seconds=0.1, received=None
    )
    content = update.to_record(LAYOUT)
    for key, record in changes.items():
        content[key] = record
    return content


@given(st.lists(st.lists(st.integers(1, 4), min_size=0, max_size=3), min_size=1, max_size=5))
def test_every_tensor_arrives_bit_for_bit(shapes):
    """Breaks if packing reorders, reshapes or rounds values of any set of shapes, scalars
    included.
    """
    state = {f"layer{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    layout = Layout.of(state)
    arrived = unpack(pack(state, layout), layout)
    assert list(arrived) == sorted(state)
    for name, tensor in state.items():
        assert arrived[name].shape == tensor.shape
        assert torch.equal(arrived[name], tensor)


def test_layout_tells_names_order_and_shapes_apart():
    """Breaks if two different adapters of equal size could be taken for one another."""
    same_size = {"head.weight": torch.zeros(3, 2), "head.bias": torch.zeros(2)}
    renamed = {"head.weights": STATE["head.weight"], "head.bias": STATE["head.bias"]}
    assert len({LAYOUT.digest, Layout.of(same_size).digest, Layout.of(renamed).digest}) == 3
    assert Layout.of(dict(reversed(STATE.items()))).digest == LAYOUT.digest


def flat(values: np.ndarray) -> ArrayRecord:
    return ArrayRecord({ADAPTER: Array(values)})


def of_petabytes() -> bytes:
    """An array's header that says 10¹⁵ float32, and eight of them."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (10**15,)}
    )
    return file.getvalue() + np.zeros(8, np.float32).tobytes()


BAD_ARRAYS = {
    "not a number": (flat(np.full(8, np.nan, np.float32)), "not finite"),
    "infinity": (flat(np.full(8, np.inf, np.float32)), "not finite"),
    "huge": (flat(np.full(8, 1e30, np.float32)), "believable"),
    "too short": (flat(np.zeros(7, np.float32)), r"float32\[8\]"),
    "too long": (flat(np.zeros(9, np.float32)), r"float32\[8\]"),
    "another shape": (flat(np.zeros((2, 4), np.float32)), r"float32\[8\]"),
    "another dtype": (flat(np.zeros(8)), "float64"),
    "another key": (ArrayRecord({"backbone": Array(np.zeros(8, np.float32))}), "agreed"),
    "one array more": (
        ArrayRecord({ADAPTER: Array(np.zeros(8, np.float32)), "x": Array(np.zeros(1, np.float32))}),
        "agreed",
    ),
    "a label that lies": (
        ArrayRecord({ADAPTER: Array("float32", (8,), "numpy.ndarray", Array(np.zeros(3)).data)}),
        "agreed",
    ),
    "bytes that are no array": (
        ArrayRecord({ADAPTER: Array("float32", (8,), "numpy.ndarray", b"\x80\x04garbage")}),
        "cannot be read",
    ),
    "bytes that begin like an archive": (
        ArrayRecord({ADAPTER: Array("float32", (8,), "numpy.ndarray", b"PK\x03\x04garbage")}),
        "cannot be read",
    ),
    "a header of petabytes": (
        ArrayRecord({ADAPTER: Array("float32", (8,), "numpy.ndarray", of_petabytes())}),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_a_bad_array_is_refused_with_the_reason(case):
    """Breaks if a node's broken array could reach the average."""
    record, words = BAD_ARRAYS[case]
    with pytest.raises(BadUpdate, match=words):
        AdapterUpdate.from_record(reply(adapter=record), EXPECTED)


def about(**changes) -> ConfigRecord:
    return ConfigRecord({"round": 3, "layout": LAYOUT.digest} | changes)


def numbers(**changes) -> MetricRecord:
    return MetricRecord(
        {"num-examples": 10, "steps": 2, "train-loss": 0.7, "seconds": 0.1} | changes
    )


def spent_as(**changes) -> ConfigRecord:
    return ConfigRecord(
        dict(spent_record(Spent(1.0, 1e-5, "example", "prv", ((1.0, 0.1, 10),)))) | changes
    )


BAD_PARTS = {
    "another round": ({"about": about(round=2)}, "round 2 in round 3"),
    "another layout": ({"about": about(layout="0" * 16)}, "layout"),
    "no layout": ({"about": ConfigRecord({"round": 3})}, "missing"),
    "infinitely many examples": (
        {"train": numbers(**{"num-examples": math.inf})},
        "cannot be read",
    ),
    "an infinite round": ({"about": about(round=math.inf)}, "cannot be read"),
    "a unit that is a list": ({"privacy": spent_as(unit=["example"])}, "cannot be read"),
    "no examples": ({"train": numbers(**{"num-examples": 0})}, "believable"),
    "negative weight": ({"train": numbers(**{"num-examples": -5})}, "believable"),
    "loss not a number": ({"train": numbers(**{"train-loss": math.nan})}, "believable"),
    "a record more": ({"patients": ConfigRecord({"names": "…"})}, "unexpected"),
    "broken metrics": ({"received": MetricRecord({"examples": 3})}, "metrics"),
}


@pytest.mark.parametrize("case", BAD_PARTS)
def test_a_bad_part_is_refused_with_the_reason(case):
    """Breaks if a reply of another round, with a false weight or with more in it would be
    averaged.
    """
    changes, words = BAD_PARTS[case]
    with pytest.raises(BadUpdate, match=words):
        AdapterUpdate.from_record(reply(**changes), EXPECTED)


def test_framing_is_small_and_counted():
    """Breaks if many small tensors were framed one by one again, or bytes were not those that
    Flower sends.

    50,000 float32 are 200,000 bytes; everything Flower puts around them must stay under 2 %.
    """
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    state = {f"layer{i}": torch.randn(1000) for i in range(50)}
    update = AdapterUpdate(
        1, state, examples=1, steps=1, train_loss=0.0, seconds=0.0, received=None
    )
    message = Message(update.to_record(Layout.of(state)), dst_node_id=2, message_type="train")
    assert 200_000 < message_bytes(message) < 200_000 * 1.02


def test_what_goes_with_an_update_is_what_people_are_told():
    """A number that is added to the reply, and that neither `node approve` nor a report speaks
    of.
    """
    told = {
        "num-examples": "examples",
        "steps": "steps",
        "seconds": "seconds",
        "train-loss": "loss",
    }
    numbers = reply().metric_records["train"]
    assert set(numbers) == set(told)
    assert all(word in BESIDE["none"] for word in told.values())
    assert set(reply().keys()) == {ADAPTER, "train", "about"}
    assert set(BESIDE) == set(typing.get_args(PrivacySection.model_fields["mode"].annotation))
