"""Names and shapes of the tensors that travel, and one flat array of their values."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedgraft.common.files.tensor_files import fingerprint_of

# the one array of an adapter's values
ADAPTER = "adapter"
# no adapter value that training can reach is larger; 1e30 from a broken node is refused
LARGEST = 1.0e4


class BadUpdate(Exception):
    """What came over the wire is not the adapter that was agreed on: wrong keys, shape, dtype, or
    not finite.
    """


@contextlib.contextmanager
def reading_foreign_bytes() -> Iterator[None]:
    """Raise `BadUpdate` for whatever else reading them raises: an infinite count, an archive, a
    header of petabytes.

    One bad reply must not stop the others, and what strange bytes can raise in Flower, NumPy and
    zipfile is no list.
    """
    try:
        yield
    except BadUpdate:
        raise
    except Exception as error:
        raise BadUpdate(f"it cannot be read ({type(error).__name__})") from error


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors that travel, in their order on the wire.

        layout = Layout.of(model.adapter_state(), model.drawn_state())
        unpack(pack(model.adapter_state(), layout), layout)

    Attributes:
        shapes: (name, shape) of each tensor, sorted by name.
        drawn: fingerprint of the adapter tensors that do not travel, since both sides draw them
            from the seed; else empty.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    drawn: str = ""

    @classmethod
    def of(cls, state: Mapping[str, Tensor], drawn: Mapping[str, Tensor] | None = None) -> Layout:
        """Return the layout of an adapter state. Raise `BadUpdate` for what is not float32."""
        for name, tensor in state.items():
            if tensor.dtype != torch.float32:
                raise BadUpdate(f"{name} is {tensor.dtype}; adapters travel as float32")
        shapes = tuple((name, tuple(state[name].shape)) for name in sorted(state))
        if not drawn:
            return cls(shapes)
        return cls(shapes, fingerprint_of(drawn))

    @property
    def values(self) -> int:
        """Return how many numbers travel."""
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Return how many numbers each tensor has."""
        return [math.prod(shape) for _, shape in self.shapes]

    @property
    def digest(self) -> str:
        """Return sixteen hex digits that two sides compare: they agree on every name, order and
        shape, or they differ.
        """
        text = json.dumps(self.shapes) + self.drawn
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def pack(state: Mapping[str, Tensor], layout: Layout) -> ArrayRecord:
    """Return adapter tensors as one flat float32 array."""
    flat = torch.cat([state[name].detach().reshape(-1) for name, _ in layout.shapes])
    return ArrayRecord({ADAPTER: Array(flat.cpu().numpy())})


def unpack(record: ArrayRecord, layout: Layout) -> dict[str, Tensor]:
    """Return one flat array as adapter tensors by name.

    Raises:
        BadUpdate: other keys, another dtype or length, or values that are not finite or absurdly
            large.
    """
    check_keys(record)
    array = record[ADAPTER]
    agreed = f"float32[{layout.values}] was agreed on"
    if array.dtype != "float32" or tuple(array.shape) != (layout.values,):
        raise BadUpdate(f"{array.dtype}{list(array.shape)}; {agreed}")
    try:
        flat = torch.from_numpy(np.array(array.numpy()))
    except (ValueError, TypeError, OSError, EOFError) as error:
        # bytes that are no array
        raise BadUpdate(f"the array cannot be read ({type(error).__name__})") from error
    # the bytes, not the label
    if flat.dtype != torch.float32 or tuple(flat.shape) != (layout.values,):
        raise BadUpdate(f"{flat.dtype}{list(flat.shape)}; {agreed}")
    check_believable(flat)
    return split_flat(flat, layout)


def check_keys(record: ArrayRecord) -> None:
    """Raise `BadUpdate` where there is anything but the one array."""
    if list(record.keys()) != [ADAPTER]:
        raise BadUpdate(f"arrays {sorted(record.keys())[:5]}; only {ADAPTER!r} is agreed on")


def check_believable(flat: Tensor) -> None:
    """Raise `BadUpdate` for values that are not finite, or that no training reaches."""
    largest = 0.0
    if flat.numel():
        # NaN if one of them is
        largest = float(flat.abs().max())
    if not math.isfinite(largest):
        raise BadUpdate("values that are not finite (NaN or infinity)")
    if largest > LARGEST:
        raise BadUpdate(f"a value of {largest:.3g}; none above {LARGEST:g} is believable")


def split_flat(flat: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Return a flat float32 tensor `(layout.values,)` as its tensors by name."""
    state: dict[str, Tensor] = {}
    parts = torch.split(flat, layout.sizes)
    for (name, shape), part in zip(layout.shapes, parts, strict=True):
        state[name] = part.reshape(shape).clone()
    return state
