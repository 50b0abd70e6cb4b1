"""The plan's `backbone`: the frozen network."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from fedgraft.common.plan.section import Problem, Section, Text, check_together
from fedgraft.common.plan.signal_section import SignalSection
from fedgraft.common.plan.volume_section import VolumeSection
from fedgraft.common.plan.window import Window, check_windows

# of an image
MOST_CHANNELS = 32
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

    later: ClassVar[tuple[str, ...]] = (
        "max_length",
        "pool",
        "volume",
        "signal",
        "channels",
        "windows",
        "preparation",
        "precision",
        "quantization",
    )

    name: Text = Field(
        description=(
            "cifar-resnet8/20/32/44/56, mlp, columns (a table as it is; nothing is trained"
            " beforehand), timm/NAME, monai/NAME-3d or -2d, series-resnet, onnx (a model that"
            " `fedgraft convert` made; of texts onnx-text), fastai/resnet34 and its kin,"
            " fastai/awd-lstm, huggingface, huggingface-image or huggingface-audio (the model in"
            " the folder `weights`, for texts, images or signals), a torchvision model such as"
            " resnet18, or with-table/NAME: one of the networks for images, and a table's columns"
            " beside it"
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
    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)] | None = Field(
        default=None,
        description=(
            "images only: how many channels they have, such as 4 sequences of an MRI; the first"
            " convolution is brought to it (default: as many as `windows`, if there are several,"
            " else the network's own three; grey images are repeated)"
        ),
    )
    windows: Annotated[tuple[Window, ...], Field(max_length=MOST_CHANNELS)] = Field(
        default=(),
        description=(
            "images only, grey ones: lowest and highest value, such as [[0, 80]] in Hounsfield"
            " units of a CT slice (DICOM), else in values as they are stored; several are as many"
            " channels, such as [[0, 80], [-20, 180], [-800, 2000]]"
        ),
    )
    max_length: Annotated[int, Field(ge=4, le=8192)] | None = Field(
        default=None,
        description=(
            "texts only: how many tokens of a text are read; longer ones are cut, shorter ones"
            " padded (default: 128, or as many as the network has positions)"
        ),
    )
    pool: Literal["mean", "first", "last", "native", "joint"] | None = Field(
        default=None,
        description=(
            "huggingface and huggingface-image only: how tokens become one vector: their mean, the"
            " first, the last, or native: as the library's own classifier of this architecture"
            " does, so that `fedgraft export` can write one; or joint: CLIP's images in the space"
            " that they share with texts, a vector of length 1 (default: the folder's own)"
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
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        default="float32",
        description=(
            "of the frozen part in front of the first trained layer: bfloat16 is faster on"
            " processors that have units for it, which `fedgraft node check` measures;"
            " what is trained stays in float32. tf32 is float32 with shorter products on an NVIDIA"
            " card, there of what is trained, too, and float32 elsewhere"
        ),
    )
    quantization: Literal["int8", "nf4"] | None = Field(
        default=None,
        description=(
            "weights of the frozen Linear layers in 8 bits or 4 (NF4), for networks that do not fit"
            " otherwise; adapters are trained beside them in float32 (QLoRA). The coordinator"
            " quantizes, and hands out the result (default: as the weights are)"
        ),
    )
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(min_length=1)] = (
        Field(default=(64, 64), description="mlp only: width of each hidden layer")
    )

    @property
    def image_channels(self) -> int | None:
        """Return how many channels images have; None: as many as the network is made for."""
        if self.channels is None and len(self.windows) > 1:
            return len(self.windows)
        return self.channels

    @model_validator(mode="after")
    def _has_channels(self) -> BackboneSection:
        problems = check_windows("windows", self.windows)
        windows = len(self.windows)
        if windows > 1 and windows != self.image_channels:
            what = f"{windows} windows are {windows} channels, and channels says {self.channels}"
            problems.append(Problem("windows", what, "leave `channels` out"))
        if windows == 1 and self.channels not in (None, 1, 3):
            what = f"one window is a grey image, and channels says {self.channels}"
            problems.append(Problem("windows", what, "write a window for each channel"))
        return check_together(self, problems)


class PlannedBackboneSection(BackboneSection):
    """The frozen network, and where its values come from on the coordinator's machine."""

    weights: Annotated[Text, AfterValidator(check_weights)] | None = Field(
        default=None,
        description=(
            "a .safetensors, .pth or .pt file, a torchvision name such as IMAGENET1K_V1, or for"
            " huggingface and fastai/awd-lstm a folder such as ./minilm; null: random"
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
