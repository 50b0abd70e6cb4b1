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
from fedgraft.common.plan.signal_section import SignalSection
from fedgraft.common.plan.volume_section import VolumeSection
from tests.awd_lstm_folders import write_encoder
from tests.huggingface_folders import (
    library_model,
    write_audio_folder,
    write_folder,
    write_image_folder,
)
from tests.tokenizers_for_tests import small_tokenizer

AUDIO = SignalSection(channels=("audio",), rate=1000, samples=200)
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


def open_converted(folder: Path) -> Backbone:
    """Return a network that was converted from an ONNX file."""
    # they are no part of every environment
    from fedgraft.simulations.conversion.convert import ConvertRequest, convert_model
    from tests.onnx_files import build, export, residual_net

    path = export(build(residual_net), folder / "residual.onnx")
    made = convert_model(ConvertRequest(path, pixels="imagenet"))
    return load_backbone("onnx", weights=made["path"])


def open_converted_text(folder: Path) -> Backbone:
    """Return a BERT that was converted from an ONNX file."""
    from fedgraft.simulations.conversion.convert import ConvertRequest, convert_model
    from tests.onnx_files import export_texts

    path = export_texts(library_model("bert"), folder / "bert.onnx")
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_bytes(small_tokenizer())
    made = convert_model(ConvertRequest(path, tokenizer=tokenizer, max_length=8))
    return load_backbone("onnx-text", weights=made["path"])


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
    "with-table": Tiny(
        "`with-table/…` (`cifar-resnet8`)",
        lambda folder: load_backbone(
            "with-table/cifar-resnet8", image_size=16, category_sizes=(0, 2), ranges=((0, 1),)
        ),
        torch.zeros(1, 3 * 16 * 16 + 3),
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
    "monai-2d": Tiny(
        "`monai/…-2d` (`resnet10`)",
        lambda folder: load_backbone("monai/resnet10-2d", image_size=32),
        torch.zeros(1, 3, 32, 32),
        "monai",
    ),
    "monai": Tiny(
        "`monai/…-3d` (`resnet10`)",
        lambda folder: load_backbone("monai/resnet10-3d", volume=VolumeSection(size=(16, 16, 16))),
        torch.zeros(1, 1, 16, 16, 16),
        "monai",
    ),
    "huggingface-audio": Tiny(
        "`huggingface-audio` (wav2vec 2)",
        lambda folder: load_backbone(
            "huggingface-audio", weights=write_audio_folder(folder), signal=AUDIO
        ),
        torch.zeros(1, 1, 200),
        "transformers",
    ),
    "series": Tiny(
        "`series-resnet`",
        lambda folder: load_backbone("series-resnet", signal=AUDIO),
        torch.zeros(1, 1, 200),
    ),
    "onnx": Tiny("`onnx`", open_converted, torch.zeros(1, 3, 16, 16), "onnx"),
    "onnx-text": Tiny(
        "`onnx-text` (BERT)", open_converted_text, torch.zeros(1, 8, dtype=torch.int64), "onnx"
    ),
    "fastai": Tiny(
        "`fastai/…` (`resnet18`)",
        lambda folder: load_backbone("fastai/resnet18", image_size=32),
        torch.zeros(1, 3, 32, 32),
    ),
    "fastai-text": Tiny(
        "`fastai/awd-lstm` (ULMFiT)",
        lambda folder: load_backbone(
            "fastai/awd-lstm", weights=write_encoder(folder), max_length=8
        ),
        torch.zeros(1, 8, dtype=torch.int64),
    ),
    "mlp": Tiny(
        "`mlp`",
        lambda folder: load_backbone("mlp", columns=5, hidden=(16, 8)),
        torch.zeros(1, 5),
    ),
    "own": Tiny("your own (`examples/own_network`)", open_own, torch.zeros(1, 3, 16, 16)),
}
