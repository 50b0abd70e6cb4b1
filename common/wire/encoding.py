"""Updates in fewer bytes: float16, or 8-bit whole numbers with one scale for each tensor.

    node:    u = Δ + what was lost before,   wire = encode(u),   lost now = u − decode(wire)
    server:  state = sent + decode(wire)

What rounding loses in one round is added to the next (error feedback: Seide et al. 2014, section 3;
Karimireddy et al. 2019, algorithm 2), so that it is late and not lost. Rounding is to the nearest,
with no draw: the same bits again. It happens behind clipping and noise, and a function of what is
private already costs no ε (Dwork and Roth 2014, proposition 2.1); where the server does the
clipping, it clips what it has decoded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Shapes = Sequence[tuple[str, tuple[int, ...]]]
ENCODINGS = ("none", "fp16", "int8")
LARGEST_FP16 = 65504.0
LARGEST_INT8 = 127
BYTES_OF_SCALE = 4


def encode(update: Mapping[str, Tensor], shapes: Shapes, encoding: str) -> np.ndarray:
    """Return an update as float16 `(values,)`, or as uint8 `(4·tensors + values,)`: scales as
    float32, then the numbers.

    Each int8 number stands for number · scale, the scale being the tensor's largest absolute value
    / 127.
    """
    flats = [update[name].detach().reshape(-1).float() for name, _ in shapes]
    if encoding == "fp16":
        values = torch.cat(flats).clamp(-LARGEST_FP16, LARGEST_FP16)
        return values.to(torch.float16).numpy()
    scales: list[Tensor] = []
    numbers: list[Tensor] = []
    for flat in flats:
        scale = _largest(flat) / LARGEST_INT8
        divisor = torch.where(scale > 0, scale, 1.0)
        scales.append(scale)
        numbers.append((flat / divisor).round().clamp(-LARGEST_INT8, LARGEST_INT8))
    scale_bytes = torch.stack(scales).numpy().view(np.uint8)
    number_bytes = torch.cat(numbers).to(torch.int8).numpy().view(np.uint8)
    return np.concatenate([scale_bytes, number_bytes])


def decode(wire: np.ndarray, shapes: Shapes, encoding: str) -> dict[str, Tensor]:
    """Return the opposite of `encode`, float32.

    Raises:
        ValueError: another type or length, or scales that are none.
    """
    sizes = _sizes_of(shapes)
    if encoding == "fp16":
        _check_form(wire, np.float16, sum(sizes))
        flat = torch.from_numpy(wire.astype(np.float32))
    else:
        scales, numbers = _read_int8(wire, len(sizes), sum(sizes))
        flat = numbers * scales.repeat_interleave(torch.tensor(sizes))
    update: dict[str, Tensor] = {}
    for (name, shape), part in zip(shapes, flat.split(sizes), strict=True):
        update[name] = part.reshape(shape).clone()
    return update


def error_bound(wire: np.ndarray, shapes: Shapes, encoding: str) -> float:
    """Return how far at most what was decoded is from what was meant, L2, relative to what was
    decoded.

    int8: half a scale for each number. float16: 2⁻¹¹ of each value (and 2⁻²⁵ for the very small
    ones).
    """
    update = decode(wire, shapes, encoding)
    decoded = torch.cat([tensor.reshape(-1) for tensor in update.values()]).double()
    size = float(decoded.norm())
    if size == 0:
        return 0.0
    if encoding == "fp16":
        errors = (decoded.abs() * 2.0**-11).clamp(min=2.0**-25)
        return float(errors.norm()) / size
    sizes = _sizes_of(shapes)
    scales, _ = _read_int8(wire, len(sizes), sum(sizes))
    squares = 0.0
    for count, scale in zip(sizes, scales.double().numpy(), strict=True):
        squares += count * (scale / 2) ** 2
    return math.sqrt(squares) / size


def _read_int8(wire: np.ndarray, tensors: int, values: int) -> tuple[Tensor, Tensor]:
    """Return scales `(tensors,)` and numbers `(values,)`, float32. Raise as `decode`."""
    at = BYTES_OF_SCALE * tensors
    _check_form(wire, np.uint8, at + values)
    scales = torch.from_numpy(wire[:at].copy().view(np.float32))
    if not bool(torch.isfinite(scales).all()) or bool((scales < 0).any()):
        raise ValueError("scales that are not finite, or below zero")
    numbers = torch.from_numpy(wire[at:].copy().view(np.int8))
    return scales, numbers.float()


def _check_form(wire: np.ndarray, kind: type[np.generic], length: int) -> None:
    if wire.dtype != kind or wire.shape != (length,):
        agreed = f"{np.dtype(kind)}[{length}] was agreed on"
        raise ValueError(f"{wire.dtype}{list(wire.shape)}; {agreed}")


def _sizes_of(shapes: Shapes) -> list[int]:
    """Return how many values each tensor has."""
    return [math.prod(shape) for _, shape in shapes]


def _largest(flat: Tensor) -> Tensor:
    """Return the largest absolute value; 0 where there is none."""
    if flat.numel() == 0:
        return torch.zeros(())
    return flat.abs().max()
