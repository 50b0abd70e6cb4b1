"""The plan's `backbone`: the frozen network."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from fedgraft.common.plan.section import Section, Text
from fedgraft.common.plan.signal_section import SignalSection
from fedgraft.common.plan.volume_section import VolumeSection

WEIGHT_FILES = (".safetensors", ".pth", ".pt")


def check_weights(text: str) -> str:
    """Return the text. Raise ValueError where it is neither a weights file, nor a folder, nor a
    weights' name.
    """
    is_file = text.lower().endswith(WEIGHT_FILES)
    if not (is_file or is_folder(text) or re.fullmatch(r"[A-Z][A-Z0-9_]*", text)):
        raise ValueError(
            f"it is neither a file ({', '.join(WEIGHT_FILES)}) nor a name such as IMAGENET1K_V1,"
            " nor a folder such as ./minilm"
        )
    return text


def is_folder(text: str) -> bool:
    """Whether a plan's text names a folder of weights: a path that does not end as a file of them
    does.
    """
    return "/" in text and not text.lower().endswith(WEIGHT_FILES)


class BackboneSection(Section):
    """The frozen network that the adapters are grafted onto, as all sides agree on it."""

    later: ClassVar[tuple[str, ...]] = ("max_length", "volume", "signal", "preparation")

    name: Text = Field(
        description=(
            "cifar-resnet8/20/32/44/56, mlp, columns (a table as it is; nothing is trained"
            " beforehand), timm/NAME, monai/NAME-3d or -2d, series-resnet, onnx (a model that"
            " `fedgraft convert` made), fastai/resnet34 and its kin, huggingface, huggingface-image"
            " or huggingface-audio (the model in the folder `weights`, for texts, images or"
            " signals), a torchvision model such as resnet18, or"
            " with-table/NAME: one of the networks for images, and a table's columns beside it"
        )
    )
    fingerprint: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = Field(
        default=None, description="if given, the loaded backbone must have this one (sha256:…)"
    )
    preparation: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = Field(
        default=None,
        description=(
            "if given, inputs must be prepared in the way that has this hash; `fedgraft validate`"
            " prints it, and a hospital refuses another"
        ),
    )
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = Field(
        default=None,
        description=(
            "height and width in pixels that images are brought to (default: the weights' own)"
        ),
    )
    max_length: Annotated[int, Field(ge=4, le=8192)] | None = Field(
        default=None,
        description=(
            "texts only: how many tokens of a text are read; longer ones are cut, shorter ones"
            " padded (default: 128, or as many as the network has positions)"
        ),
    )
    volume: VolumeSection | None = Field(
        default=None,
        description=(
            "volumes only: size, spacing and intensities that they are brought to (default: the"
            " weights' own, else 96 voxels each way, mean 0 and deviation 1)"
        ),
    )
    signal: SignalSection | None = Field(
        default=None,
        description=(
            "series only, which need it: channels, rate and length that signals are brought to"
        ),
    )
    random: bool = Field(
        default=False,
        description="throw away what the weights learnt and keep the preprocessing (a baseline)",
    )
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(min_length=1)] = (
        Field(default=(64, 64), description="mlp only: width of each hidden layer")
    )


class PlannedBackboneSection(BackboneSection):
    """The frozen network, and where its values come from on the coordinator's machine."""

    weights: Annotated[Text, AfterValidator(check_weights)] | None = Field(
        default=None,
        description=(
            "a .safetensors, .pth or .pt file, a torchvision name such as IMAGENET1K_V1, or for"
            " huggingface a model's folder such as ./minilm; null: random"
        ),
    )

    @property
    def weights_file(self) -> str | None:
        """Return the file or folder that the values are read from; None where they come by name or
        seed.
        """
        weights = self.weights or ""
        if weights.lower().endswith(WEIGHT_FILES) or is_folder(weights):
            return weights
        return None
