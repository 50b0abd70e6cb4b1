"""Pre-trained networks: one family a file, one closed registry; no dotted paths out of a plan."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgraft.common.registry import Line, Registry

if TYPE_CHECKING:
    from fedgraft.common.backbones.family import Family


@dataclass(frozen=True)
class FamilyLine(Line):
    """A family, and what a plan must know of it without importing it.

    Attributes:
        pattern: a regular expression that all of its names match, and no earlier family's.
        material: the member of `common.inputs.INPUTS` that it takes.
        learns: whether nodes' histograms tell constants of it, in a round of their own before a
            closed form; weights bring none.
        scaled_by_plan: whether `task.ranges`, or a round of histograms before the steps, scale its
            columns where weights do not.
        is_untrained: whether nothing of it is trained beforehand: it has no weights, and no steps.
        has_folders: whether its weights are folders, and it is nothing without one.
        has_pools: whether a plan may say how its tokens become one vector.
        described_by_weights: whether its sizes are known only from its weights.
        has_pairs: whether a folder of it may hold an encoder of texts beside its own, so that texts
            can say what a class is.
    """

    pattern: str
    material: str
    learns: bool = False
    scaled_by_plan: bool = False
    is_untrained: bool = False
    has_folders: bool = False
    has_pools: bool = False
    described_by_weights: bool = False
    has_pairs: bool = False


_LINES = {
    "cifar": FamilyLine("fedgraft.common.backbones.cifar:CIFAR", r"cifar-resnet\d+", "image"),
    "mlp": FamilyLine("fedgraft.common.backbones.mlp:MLP", r"mlp", "tabular", scaled_by_plan=True),
    "columns": FamilyLine(
        "fedgraft.common.backbones.columns:COLUMNS",
        r"columns",
        "tabular",
        learns=True,
        is_untrained=True,
    ),
    "with-table": FamilyLine(
        "fedgraft.common.backbones.with_table:WITH_TABLE",
        r"with-table/.+",
        "image-and-table",
        learns=True,
        scaled_by_plan=True,
    ),
    "timm": FamilyLine("fedgraft.common.backbones.timm_models:TIMM", r"timm/.+", "image"),
    "huggingface": FamilyLine(
        "fedgraft.common.backbones.huggingface:HUGGINGFACE",
        r"huggingface",
        "text",
        has_folders=True,
        has_pools=True,
        described_by_weights=True,
    ),
    "huggingface-image": FamilyLine(
        "fedgraft.common.backbones.huggingface_image:HUGGINGFACE_IMAGE",
        r"huggingface-image",
        "image",
        has_folders=True,
        has_pools=True,
        described_by_weights=True,
        has_pairs=True,
    ),
    "monai-2d": FamilyLine(
        "fedgraft.common.backbones.monai_models:MONAI_2D", r"monai/.+-2d", "image"
    ),
    "monai": FamilyLine("fedgraft.common.backbones.monai_models:MONAI", r"monai/.+", "volume"),
    "onnx": FamilyLine(
        "fedgraft.common.backbones.onnx_models:ONNX", r"onnx", "image", described_by_weights=True
    ),
    "onnx-text": FamilyLine(
        "fedgraft.common.backbones.onnx_models:ONNX_TEXT",
        r"onnx-text",
        "text",
        described_by_weights=True,
    ),
    "fastai-text": FamilyLine(
        "fedgraft.common.backbones.awd_lstm:AWD_LSTM",
        r"fastai/awd-lstm",
        "text",
        has_folders=True,
        described_by_weights=True,
    ),
    "fastai": FamilyLine("fedgraft.common.backbones.fastai_models:FASTAI", r"fastai/.+", "image"),
    "huggingface-audio": FamilyLine(
        "fedgraft.common.backbones.huggingface_audio:HUGGINGFACE_AUDIO",
        r"huggingface-audio",
        "series",
        has_folders=True,
        described_by_weights=True,
    ),
    "series-resnet": FamilyLine(
        "fedgraft.common.backbones.series_resnet:SERIES_RESNET", r"series-resnet", "series"
    ),
    "torchvision": FamilyLine(
        "fedgraft.common.backbones.torchvision_models:TORCHVISION", r".*", "image"
    ),
}
# whose pattern takes every name
EVERY_OTHER = "torchvision"
FAMILIES: Registry[Family] = Registry("backbone.name", "family", _LINES)


def family_line(backbone: str) -> FamilyLine:
    """Return the line of the family that a backbone's name belongs to."""
    return FAMILIES.lines[family_name(backbone)]


def family_of(backbone: str) -> Family:
    """Return the family that a backbone's name belongs to."""
    return FAMILIES[family_name(backbone)]


def family_name(backbone: str) -> str:
    """Return which family a backbone's name belongs to: the first whose pattern it matches, and
    torchvision, which takes every name, after all others.
    """
    for name, line in FAMILIES.lines.items():
        if name != EVERY_OTHER and re.fullmatch(line.pattern, backbone):
            return name
    return EVERY_OTHER
