"""Small networks as ONNX files, exported by torch or put together by hand."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision.models as vision
from torch import Tensor, nn

from fedgraft.common.backbones.family import last_linear

SIDE = 16
# of a model for texts
INPUTS = ("input_ids", "attention_mask")


class Residual(nn.Module):
    """Two convolutions beside what enters them, or beside a 1×1 convolution of it."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.beside: nn.Module = nn.Identity()
        if stride != 1:
            self.beside = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.beside(x))


def residual_net() -> nn.Module:
    """Three residual blocks, the second of which makes images smaller."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        nn.ReLU(),
        Residual(8, 8),
        Residual(8, 12, 2),
        Residual(12, 12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def plain_net() -> nn.Module:
    """A network whose paths never part."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 1, 1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, 1, 1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 10, 3, 1, 1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(40, 12),
        nn.ReLU(),
        nn.Linear(12, 5),
    )


def transformer() -> nn.Module:
    """A vision transformer; torch's attention puts the records second inside."""
    net = vision.VisionTransformer(SIDE, 4, 2, 2, 12, 20, num_classes=5)
    nn.init.normal_(last_linear(net)[1].weight)
    return net


SMALL = {"residual": residual_net, "plain": plain_net, "transformer": transformer}


def build(make: Any, seed: int = 0) -> nn.Module:
    """Return a network with features that vary, and normalisations that do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make()
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return net.eval()


def export(net: nn.Module, path: Path, side: int = SIDE, *, any_batch: bool = True) -> Path:
    """Write a network as torch's own exporter does, and return the file."""
    axes = {"image": {0: "n"}, "logits": {0: "n"}} if any_batch else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.zeros(1, 3, side, side),),
            str(path),
            opset_version=17,
            dynamo=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes=axes,
        )
    return path


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────
class States(torch.nn.Module):
    """The last states of a model of the library alone."""

    def __init__(self, inner: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.inner = inner
        self.names = names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        output = self.inner(**dict(zip(self.names, inputs, strict=True)))
        return output.logits if hasattr(output, "logits") else output.last_hidden_state


def export_texts(
    net: Any, path: Path, names: Sequence[str] = INPUTS, *, length: int = 14, **options: Any
) -> Path:
    """Write a model of the library as an ONNX file, as torch exports it."""
    example = tuple(torch.ones(2, length, dtype=torch.int64) for _ in names)
    dynamic = {name: {0: "n", 1: "l"} for name in names}
    options = {"dynamic_axes": dynamic, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            States(net, names).eval(),
            example,
            str(path),
            input_names=list(names),
            output_names=["output"],
            opset_version=17,
            dynamo=False,
            **options,
        )
    return path
