"""What is taken for keeping records apart does keep them apart."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.common.backbones.graph_network import GraphPart, trace_part
from fedgraft.common.backbones.graph_shape import Part
from fedgraft.common.backbones.record_axis import PROBE, Records
from fedgraft.common.errors import UserError

SHAPE = (2, 3, 4)


def draw_shape(draw: random.Random, values: int) -> list[int]:
    """Return a shape of so many values a record, with the records in any of its entries."""
    shape: list[int] = []
    while values > 1:
        divisors = [size for size in range(2, values + 1) if values % size == 0]
        shape.append(draw.choice(divisors))
        values //= shape[-1]
    draw.shuffle(shape)
    if shape and draw.random() < 0.5:
        place = draw.randrange(len(shape))
        shape[place] = -shape[place]
    else:
        shape.insert(draw.randrange(len(shape) + 1), -1)
    return shape


def draw_step(draw: random.Random, x: torch.Tensor, number: int) -> dict[str, Any]:
    """Return any step that fits a tensor, whatever it does to the records."""
    axis = draw.randrange(x.ndim)
    axes = list(range(x.ndim))
    draw.shuffle(axes)
    kinds: list[dict[str, Any]] = [
        {"op": "reshape", "shape": draw_shape(draw, x.numel() // PROBE)},
        {"op": "transpose", "axes": axes},
        {"op": "softmax", "axis": axis},
        {"op": "mean", "axes": [axis], "keep": draw.random() < 0.5},
        {"op": "slice", "axis": axis, "start": 0, "end": max(1, x.shape[axis] // 2) % 9 or 1},
        {"op": "concat", "axis": axis, "inputs": [number, number]},
        {"op": "select", "axis": axis, "index": 0},
        {"op": "mul", "inputs": [number, number]},
        {"op": "matmul", "inputs": [number, number]},
    ]
    # reshapes and transposes are where records get lost
    return {"inputs": [number], **draw.choice([*kinds, *kinds[:2] * 4])}


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**9), length=st.integers(1, 6))
def test_rows_do_not_know_one_another(seed: int, length: int) -> None:
    """A step list that passes although a record changes another's row: privacy by example would be
    a claim.
    """
    draw = random.Random(seed)
    probe = torch.zeros(PROBE, *SHAPE, device="meta")
    steps: list[dict[str, Any]] = []
    x = probe
    for _ in range(length):
        step = draw_step(draw, x, len(steps))
        part = Part.model_validate_json(json.dumps({"steps": [*steps, step]}))
        try:
            trace = trace_part("part", part, probe)
        except UserError:
            continue
        steps.append(step)
        x = trace.values[-1]
        if x.ndim == 0 or x.numel() < PROBE:
            break
    part = Part.model_validate_json(json.dumps({"steps": steps}))
    trace = trace_part("part", part, probe)
    place = trace.places[-1]
    assert place is not None
    generator = torch.Generator().manual_seed(seed)
    records = torch.rand(3, *SHAPE, generator=generator)
    module = GraphPart(part)
    together = rows_of(module(records), place, 3)
    for number in range(3):
        alone = rows_of(module(records[number : number + 1]), place, 1)
        torch.testing.assert_close(together[number], alone[0], atol=1e-5, rtol=1e-4)


def rows_of(output: torch.Tensor, place: Records, records: int) -> torch.Tensor:
    """Return a tensor with one row a record, from where the trace says that they are."""
    shape = output.shape
    around = shape[place.axis] // (records * place.inside)
    apart = [*shape[: place.axis], around, records, place.inside, *shape[place.axis + 1 :]]
    assert math.prod(apart) == output.numel()
    return output.reshape(apart).movedim(place.axis + 1, 0).flatten(1)
