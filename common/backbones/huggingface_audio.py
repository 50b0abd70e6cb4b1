"""The family of Hugging Face's networks for audio, `huggingface-audio`: wav2vec 2 (Baevski et al.
2020), of the base and of the large kind, out of the folder that the plan names as its weights.

The convolution that makes positions is kept in the library as a direction and a length (weight
norm); here they are one weight, as adapters know it. A record is the mean over its frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedgraft.common.backbones.family import (
    Family,
    NetworkShape,
    Pooling,
    State,
    Step,
    keep_state,
)
from fedgraft.common.backbones.huggingface import refuse_names
from fedgraft.common.backbones.huggingface_folder import CONFIG, read_folder_tensors, read_json
from fedgraft.common.backbones.huggingface_library import build_library_model, drop_tables
from fedgraft.common.backbones.huggingface_shapes import (
    AUDIO_SHAPES,
    Wav2Vec2Shape,
    read_config,
    read_shape,
    write_shape,
)
from fedgraft.common.backbones.huggingface_tensors import (
    DESCRIPTION,
    HEAD,
    choose_tensors,
    take_file,
)
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.series import SignalPreparation, read_preparation
from fedgraft.common.inputs.tokenizer_file import tensor_of
from fedgraft.common.plan.signal_section import SignalSection

NAME = "huggingface-audio"
PROCESSOR = "preprocessor_config.json"
POSITIONS = "encoder.pos_conv_embed.conv"
# names of length and direction in files: today's, and those before
NORMED = (
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ("weight_g", "weight_v"),
)
# of a record, where the plan does not say it
USUAL_SECONDS = 5


class Wav2Vec2Network(nn.Module):
    """Wav2vec 2, with the children of the library's model and their names.

    net = Wav2Vec2Network(shape, files={})
    net(audio)  # float32 (n, 1, T) → (n, 2)
    """

    turned: tuple[str, ...] = ()

    def __init__(self, shape: Any, files: Mapping[str, bytes]) -> None:
        super().__init__()
        whole = build_library_model("Wav2Vec2Model", "Wav2Vec2Config", shape, {})
        for name, child in whole.named_children():
            self.add_module(name, child)
        parametrize.remove_parametrizations(self.get_submodule(POSITIONS), "weight")
        drop_tables(self)
        self.is_stable = shape.do_stable_layer_norm
        self.least_samples = shape.least_samples
        for name, content in files.items():
            self.register_buffer(name, tensor_of(content))
        self.classifier = nn.Linear(shape.hidden_size, 2)

    def forward(self, audio: Tensor) -> Tensor:
        """Audio (n, 1, T) → logits (n, 2)."""
        x = embed_audio(self, audio)
        for block in self.get_submodule("encoder.layers").children():
            x = block(x)
        return self.classifier(mean_of_frames(self, x))


def embed_audio(net: Any, audio: Tensor) -> Tensor:
    """Audio (n, 1, T) → frames (n, frames, width).

    Raise `UserError` where a record is shorter than a frame.
    """
    if audio.shape[2] < net.least_samples:
        what = f"{audio.shape[2]} samples, and one frame of this network takes {net.least_samples}"
        raise UserError(what, where="backbone.signal.samples", remedy="write more samples")
    x = audio
    for layer in net.feature_extractor.conv_layers:
        x = layer(x)
    x, _ = net.feature_projection(x.transpose(1, 2))
    x = x + net.encoder.pos_conv_embed(x)
    return x if net.is_stable else net.encoder.layer_norm(x)


def mean_of_frames(net: Any, x: Tensor) -> Tensor:
    """Frames (n, frames, width) → their mean as the library's last states have it (n, width)."""
    if net.is_stable:
        x = net.encoder.layer_norm(x)
    return x.mean(1)


_LIBRARY = "transformers.models.wav2vec2.modeling_wav2vec2"
BLOCK_TYPES: Mapping[str, bool] = {
    f"{_LIBRARY}.Wav2Vec2EncoderLayer": True,
    f"{_LIBRARY}.Wav2Vec2EncoderLayerStableLayerNorm": True,
}
ORDER: tuple[Step, ...] = (embed_audio, "encoder.layers", mean_of_frames, HEAD)


# ── the family ────────────────────────────────────────────────────────────────────────────────────
def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network with the library's own initialisation. Raise `UserError` without a folder's
    description.
    """
    if DESCRIPTION not in shape.files:
        what = f"{name} is a model's folder, and none is named"
        raise UserError(
            what, where="backbone.weights", remedy="write the folder, such as ./wav2vec2"
        )
    described = read_shape(shape.files[DESCRIPTION], AUDIO_SHAPES, name)
    return Wav2Vec2Network(described, shape.files)


def prepare_audio(name: str, weights: str | None, size: int | None) -> SignalPreparation:
    """Return what audio goes through where no folder says it."""
    return SignalPreparation(SignalSection())


def read_files(state: State, shape: NetworkShape, where: str) -> NetworkShape:
    """Return what the description among the tensors says. Raise `UserError` where it is not there,
    or records have several channels.
    """
    content = take_file(state, DESCRIPTION, where)
    read_shape(content, AUDIO_SHAPES, where)
    if shape.channels not in (None, 1):
        what = f"{shape.channels} channels, and {NAME} hears one"
        remedy = "name one channel: that of several in an audio file is their mean"
        raise UserError(what, where="backbone.signal.channels", remedy=remedy)
    return replace(shape, channels=1, files={DESCRIPTION: content})


def read_folder(
    folder: Path, size: int | None, pool: Pooling | None
) -> tuple[State, SignalPreparation]:
    """Return the tensors of a model's folder and how its audio is prepared.

    Raises:
        UserError: what is there is no model that is known, or asks for more than data.
    """
    described = read_config(read_json(folder / CONFIG), AUDIO_SHAPES, "mean", str(folder / CONFIG))
    preparation = read_processor(folder)
    given = fold_positions(read_folder_tensors(folder))
    state = choose_tensors(Wav2Vec2Network, described, given, str(folder))
    state[DESCRIPTION] = tensor_of(write_shape(described))
    return state, preparation


def read_processor(folder: Path) -> SignalPreparation:
    """Return how a folder's `preprocessor_config.json` prepares audio: its rate, and whether each
    record is standardised. Raise `UserError` where it is not there, or says something else.
    """
    path = folder / PROCESSOR
    config = read_json(path)
    try:
        rate = float(config["sampling_rate"])
        section = {
            "channels": ["audio"],
            "rate": rate,
            "samples": round(USUAL_SECONDS * rate),
            "standardise": config.get("do_normalize", True),
        }
        return read_preparation(section)
    except (KeyError, TypeError, ValueError, OverflowError, UserError) as error:
        what = f"a preparation of audio that is not known here ({type(error).__name__})"
        remedy = "known are sampling_rate (Hz) and do_normalize"
        raise UserError(what, where=str(path), remedy=remedy) from error


def fold_positions(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the weight of the convolution that makes positions: its direction, at its
    length for each place of the window.
    """
    folded = dict(given)
    for prefix in ("", Wav2Vec2Shape.prefix):
        for length, direction in NORMED:
            g = given.get(f"{prefix}{POSITIONS}.{length}")
            v = given.get(f"{prefix}{POSITIONS}.{direction}")
            if g is not None and v is not None:
                v = v.float()
                norm = torch.linalg.vector_norm(v, dim=(0, 1), keepdim=True)
                folded[f"{prefix}{POSITIONS}.weight"] = v * (g.float() / norm)
    return folded


HUGGINGFACE_AUDIO = Family(
    names=lambda: (NAME,),
    build=build,
    preparation=prepare_audio,
    fetch=refuse_names,
    read_shape=read_files,
    fit=keep_state,
    block_types=BLOCK_TYPES,
    order={f"{__name__}.Wav2Vec2Network": ORDER},
    used_by_steps={
        embed_audio: (
            "feature_extractor",
            "feature_projection",
            "encoder.pos_conv_embed",
            "encoder.layer_norm",
        ),
        mean_of_frames: ("encoder.layer_norm",),
    },
    read_folder=read_folder,
    kept_when_random=(DESCRIPTION,),
)
