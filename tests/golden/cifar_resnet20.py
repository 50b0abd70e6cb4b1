"""Logits of the published CIFAR-10 ResNet-20, worked out with numpy alone in float64: the golden
values beside.

    python tests/golden/cifar_resnet20.py ../shared/data/weights/cifar10_resnet20.safetensors

writes cifar_resnet20.json. Nothing of fedgraft or torch is used, so an error there cannot hide
here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import load_file

GOLDEN = Path(__file__).with_suffix(".json")


def image(kind: int) -> np.ndarray:
    """A smooth test image, (3, 32, 32) float64, of about the range of normalised photographs."""
    row, column = np.mgrid[0:32, 0:32] / 32
    return np.stack(
        [1.5 * np.sin((kind + 2) * (row * (c + 1) + column * (3 - c)) + c) for c in range(3)]
    )


def conv3(x: np.ndarray, weight: np.ndarray, stride: int = 1) -> np.ndarray:
    """3×3 convolution, padding 1, as the sum over its window: (in, H, W) → (out, H/stride,
    W/stride).
    """
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("chwij,ocij->ohw", windows, weight)


def norm(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    """BatchNorm with its stored statistics, ε = 1e-5."""
    scale = w[f"{name}.weight"] / np.sqrt(w[f"{name}.running_var"] + 1e-5)
    return (
        x * scale[:, None, None]
        + (w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale)[:, None, None]
    )


def logits(x: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """(3, H, W) → 10 logits. He et al. 2016, section 4.2; shortcuts of option A."""
    x = np.maximum(norm(conv3(x, w["conv1.weight"]), w, "bn1"), 0)
    for stage in (1, 2, 3):
        for block in range(3):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = np.maximum(norm(conv3(x, w[f"{name}.conv1.weight"], stride), w, f"{name}.bn1"), 0)
            y = norm(conv3(y, w[f"{name}.conv2.weight"]), w, f"{name}.bn2")
            short = np.zeros_like(y)
            first = (y.shape[0] - x.shape[0]) // 2
            short[first : first + x.shape[0]] = x[:, ::stride, ::stride]
            x = np.maximum(y + short, 0)
    return w["linear.weight"] @ x.mean(axis=(1, 2)) + w["linear.bias"]


def main(weights: str) -> None:
    """Write the golden file."""
    w = {name: tensor.astype(np.float64) for name, tensor in load_file(weights).items()}
    values = [[round(float(v), 6) for v in logits(image(kind), w)] for kind in range(4)]
    GOLDEN.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
