"""A tiny network of every family, with random values: what the matrix of docs/matrix.md tries."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.extensions import load_extension, offer_extension
from tests.huggingface_folders import write_folder, write_image_folder

EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True)
class Tiny:
    """A tiny network.

    Attributes:
        words: the family, as the page calls it.
        open: (an empty folder) → the backbone.
        example: one prepared record.
        package: that it needs.
    """

    words: str
    open: Callable[[Path], Backbone]
    example: Tensor
    package: str = "torch"

    @property
    def is_installed(self) -> bool:
        """Whether the package is there."""
        return importlib.util.find_spec(self.package) is not None


def open_own(folder: Path) -> Backbone:
    """Return the network of the example's extension."""
    offer_extension(EXAMPLES / "own_network")
    load_extension("own_network")
    return load_backbone("own-network", image_size=16)


TINY_NETWORKS: dict[str, Tiny] = {
    "cifar": Tiny(
        "`cifar-resnet…`",
        lambda folder: load_backbone("cifar-resnet8", image_size=16),
        torch.zeros(1, 3, 16, 16),
    ),
    "torchvision": Tiny(
        "torchvision (`resnet18`)",
        lambda folder: load_backbone("resnet18", image_size=32),
        torch.zeros(1, 3, 32, 32),
    ),
    "timm": Tiny(
        "`timm/…` (`convnext_atto`)",
        lambda folder: load_backbone("timm/convnext_atto", image_size=32),
        torch.zeros(1, 3, 32, 32),
        "timm",
    ),
    "huggingface": Tiny(
        "`huggingface` (BERT)",
        lambda folder: load_backbone("huggingface", weights=write_folder(folder), max_length=8),
        torch.zeros(1, 8, dtype=torch.int64),
        "transformers",
    ),
    "huggingface-image": Tiny(
        "`huggingface-image` (ViT)",
        lambda folder: load_backbone("huggingface-image", weights=write_image_folder(folder)),
        torch.zeros(1, 3, 16, 16),
        "transformers",
    ),
    "mlp": Tiny(
        "`mlp`",
        lambda folder: load_backbone("mlp", columns=5, hidden=(16, 8)),
        torch.zeros(1, 5),
    ),
    "own": Tiny("your own (`examples/own_network`)", open_own, torch.zeros(1, 3, 16, 16)),
}
