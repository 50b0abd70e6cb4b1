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


def encode(update: Mapping[str, Tensor], shapes: Shapes, encoding: str) -> np.ndarray:
    """An update → float16 `(values,)`, or uint8 `(4·tensors + values,)`: scales as float32, then
    the numbers.

    Each int8 number stands for number · scale, the scale being the tensor's largest absolute value
    / 127.
    """
    flats = [update[name].detach().reshape(-1).float() for name, _ in shapes]
    if encoding == "fp16":
        return torch.cat(flats).clamp(-LARGEST_FP16, LARGEST_FP16).to(torch.float16).numpy()
    scales = torch.stack([_largest(flat) / 127 for flat in flats])
    divisors = torch.where(scales > 0, scales, 1.0)
    numbers = torch.cat(
        [
            (flat / scale).round().clamp(-127, 127)
            for flat, scale in zip(flats, divisors, strict=True)
        ]
    )
    return np.concatenate(
        [scales.numpy().view(np.uint8), numbers.to(torch.int8).numpy().view(np.uint8)]
    )


def decode(wire: np.ndarray, shapes: Shapes, encoding: str) -> dict[str, Tensor]:
    """The opposite of `encode`, float32. Raises `ValueError` for another type or length, or scales
    that are none.
    """
    sizes = [math.prod(shape) for _, shape in shapes]
    wanted = (
        (np.float16, sum(sizes)) if encoding == "fp16" else (np.uint8, 4 * len(sizes) + sum(sizes))
    )
    if wire.dtype != wanted[0] or wire.shape != (wanted[1],):
        raise ValueError(
            f"{wire.dtype}{list(wire.shape)}; {np.dtype(wanted[0])}[{wanted[1]}] was agreed on"
        )
    if encoding == "fp16":
        flat = torch.from_numpy(wire.astype(np.float32))
    else:
        scales = torch.from_numpy(wire[: 4 * len(sizes)].copy().view(np.float32))
        if not bool(torch.isfinite(scales).all()) or bool((scales < 0).any()):
            raise ValueError("scales that are not finite, or below zero")
        numbers = torch.from_numpy(wire[4 * len(sizes) :].copy().view(np.int8)).float()
        flat = numbers * scales.repeat_interleave(torch.tensor(sizes))
    parts = zip(shapes, flat.split(sizes), strict=True)
    return {name: part.reshape(shape).clone() for (name, shape), part in parts}


def error_bound(wire: np.ndarray, shapes: Shapes, encoding: str) -> float:
    """At most this far is what was decoded from what was meant, L2, relative to what was decoded.

    int8: half a scale for each number. float16: 2⁻¹¹ of each value (and 2⁻²⁵ for the very small
        ones).
    """
    decoded = torch.cat(
        [tensor.reshape(-1) for tensor in decode(wire, shapes, encoding).values()]
    ).double()
    size = float(decoded.norm())
    if size == 0:
        return 0.0
    if encoding == "fp16":
        return float((decoded.abs() * 2.0**-11).clamp(min=2.0**-25).norm()) / size
    counts = [math.prod(shape) for _, shape in shapes]
    scales = wire[: 4 * len(counts)].copy().view(np.float32).astype(np.float64)
    return (
        math.sqrt(
            sum(count * (scale / 2) ** 2 for count, scale in zip(counts, scales, strict=True))
        )
        / size
    )


def _largest(flat: Tensor) -> Tensor:
    return flat.abs().max() if flat.numel() else torch.zeros(())
