"""Backbones as files: weights by a file or a name, and what stands beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.common.backbones import family_of
from fedgraft.common.backbones.backbone import (
    Backbone,
    backbone_state,
    build_network,
    channels_of,
    check_name,
    freeze_network,
    network_with_state,
    preparation_from_json,
    preparation_of,
    randomise,
    side_of,
)
from fedgraft.common.backbones.family import NetworkShape, Pooling, State, last_linear
from fedgraft.common.backbones.quantization import Quantization, quantize_layers
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import SUFFIXES, read_tensors, write_beside, write_tensors
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.inputs.material import PREPARATION, Preparation, write_preparation
from fedgraft.common.inputs.tokenizer_file import tensor_of
from fedgraft.common.plan.signal_section import SignalSection
from fedgraft.common.plan.volume_section import VolumeSection

# pixels
LARGEST_IMAGE = 4096


@dataclass(frozen=True)
class BackboneRequest:
    """Which backbone, with which values.

        load_backbone("mlp", weights="heart.safetensors", columns=13)

    Attributes:
        name: one of `known_backbones`.
        weights: a `.safetensors`, `.pth` or `.pt` file, a folder (`huggingface`), the name of
            torchvision's weights (IMAGENET1K_V1; fetched once, then kept by torch), or None for the
            network's own random initialisation from `seed`.
        image_size: side of the (square) inputs, pixels; default: the weights' own.
        channels: of an image; default: the weights' own.
        max_length: tokens of a text; default: the weights' own.
        pool: how tokens become one vector; default: the weights' own.
        volume: what volumes are brought to; default: the weights' own.
        signal: what series are brought to; default: the weights' own.
        quantization: of the weights of frozen Linear layers, see `quantization.py`; None: float32,
            or as they are in the file.
        random: keep shape and preparation, throw away what was learnt (the random-backbone
            baseline).
        hidden: widths of the hidden layers (`mlp`).
        columns: inputs of a table's row (`mlp`); 0 takes the number from the weights.
        category_sizes, hinges, ranges, learns_scales: of tables, see `NetworkShape`.
        seed: of a random initialisation.
        fingerprint: that the backbone must have; None accepts any.
    """

    name: str
    weights: str | Path | None = None
    image_size: int | None = None
    channels: int | None = None
    max_length: int | None = None
    pool: Pooling | None = None
    volume: VolumeSection | None = None
    signal: SignalSection | None = None
    quantization: Quantization | None = None
    random: bool = False
    hidden: tuple[int, ...] = (64, 64)
    columns: int = 0
    category_sizes: tuple[int, ...] = ()
    hinges: bool = True
    ranges: tuple[tuple[float, float], ...] | None = None
    learns_scales: bool = False
    seed: int = 0
    fingerprint: str | None = None

    @property
    def asked_channels(self) -> int | None:
        """Channels of images or volumes, where a plan says that there are others than usual."""
        volume = self.volume
        if volume is not None and (volume.inputs > 1 or volume.slices is not None):
            return volume.inputs
        return self.channels

    @property
    def size(self) -> int | None:
        """Pixels of an image's side, or tokens of a text; None: the weights' own."""
        return self.max_length if self.image_size is None else self.image_size


def load_backbone(name: str, **options: Any) -> Backbone:
    """Build a backbone and give it its values. Deterministic; leaves the global random state alone.

    Args:
        name: one of `known_backbones`.
        options: the other fields of `BackboneRequest`.

    Raises:
        UserError: an unknown name, weights that are missing, damaged, not allowed or of another
            network, no network to fetch them, or another fingerprint.
    """
    request = BackboneRequest(name, **options)
    check_name(name)
    size = request.image_size
    if size is not None and not 1 <= size <= LARGEST_IMAGE:
        remedy = f"give 1 to {LARGEST_IMAGE}"
        raise UserError(f"{size} pixels", where="backbone.image_size", remedy=remedy)
    state, preparation = _read_weights(request)
    if request.volume is not None or request.signal is not None:
        preparation = _bring_to(request, preparation)
    if preparation is None:
        preparation = preparation_of(name, request.weights, request.size)
    if request.channels is not None:
        assert isinstance(preparation, Preprocess)
        preparation = preparation.with_channels(request.channels)
    if request.asked_channels is not None:
        state = _say_preparation(state, preparation)
    backbone = _give_values(request, state, preparation)
    if request.fingerprint not in (None, backbone.fingerprint):
        mine = backbone.fingerprint
        what = f"the backbone's fingerprint is {mine}, and the plan wants {request.fingerprint}"
        remedy = "use the weights that were agreed on, or correct the plan"
        raise UserError(what, where="backbone.fingerprint", remedy=remedy)
    return backbone


def _bring_to(request: BackboneRequest, learnt: Preparation | None) -> Preparation:
    """Return the preparation of volumes or signals that a request asks for.

    Args:
        learnt: what the weights were trained with; None: they do not say.
    """
    section = request.volume if request.signal is None else request.signal
    assert section is not None
    if isinstance(section, VolumeSection) and section.slices is not None:
        section = _scale_slices(section, request, learnt)
    asked = preparation_from_json(request.name, section.model_dump(mode="json"))
    if isinstance(section, SignalSection) and learnt is not None:
        _check_signal(section, learnt.to_json(), str(request.weights))
    return asked


def _scale_slices(
    section: VolumeSection, request: BackboneRequest, learnt: Preparation | None
) -> VolumeSection:
    """Return a plan's section with mean and deviation as the weights of a network over images want
    them, where a window brings intensities to 0–1 and nothing else scales them.
    """
    if section.mean or section.is_standardised or not (section.window or section.windows):
        return section
    images = learnt or preparation_of(request.name, request.weights, section.size[1])
    if not isinstance(images, Preprocess):
        return section
    brought = images.with_channels(section.inputs)
    return section.model_copy(update={"mean": brought.mean, "std": brought.std})


def _say_preparation(state: State | None, preparation: Preparation) -> State | None:
    """Return tensors among which stands how inputs are prepared now, where it stands there."""
    if state is None or PREPARATION not in state:
        return state
    return {**state, PREPARATION: tensor_of(write_preparation(preparation))}


def _check_signal(asked: SignalSection, learnt: Mapping[str, Any], where: str) -> None:
    """Raise `UserError` where signals would go by at another pace, or on another scale, than those
    that weights were trained with.
    """
    for key in ("rate", "standardise"):
        mine = getattr(asked, key)
        if learnt[key] is not None and mine != learnt[key]:
            own = json.dumps(learnt[key])
            what = f"weights trained with {key}: {own}, and the plan says {json.dumps(mine)}"
            remedy = f"write backbone.signal.{key}: {own}"
            raise UserError(what, where=where, remedy=remedy)


def _give_values(
    request: BackboneRequest, state: State | None, preparation: Preparation
) -> Backbone:
    """Return the backbone with the weights' values, or with random ones."""
    name = request.name
    shape = NetworkShape(
        image_size=side_of(preparation),
        channels=channels_of(preparation),
        pool=request.pool,
        columns=request.columns,
        hidden=request.hidden,
        category_sizes=request.category_sizes,
        hinges=request.hinges,
        ranges=request.ranges,
        learns_scales=request.learns_scales,
    )
    if state is None:
        net = build_network(name, shape, request.seed)
        head_name, _ = last_linear(net)
        quantize_layers(net, head_name, request.quantization)
        return freeze_network(name, net, preparation)
    where = str(request.weights)
    channels = request.asked_channels
    kind = None if request.random else request.quantization
    learnt = network_with_state(name, state, shape, preparation, where, channels, kind)
    if request.random:
        return randomise(learnt, request.seed, request.quantization)
    return learnt


def save_backbone(backbone: Backbone, path: str | Path, provenance: Mapping[str, Any]) -> None:
    """Write `path` (.safetensors) and beside it `path`.json: name, fingerprint, preparation and
    provenance.

    `load_backbone` takes the preparation from there. Each file is written whole or not at all.

    Raises:
        UserError: another suffix, or a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        remedy = "end the name in .safetensors"
        raise UserError("a backbone is kept as .safetensors", where=str(path), remedy=remedy)
    about = {
        "name": backbone.name,
        "fingerprint": backbone.fingerprint,
        "preprocess": backbone.preprocess.to_json(),
        "provenance": dict(provenance),
    }
    write_tensors(backbone_state(backbone), path, {"fingerprint": backbone.fingerprint})
    text = json.dumps(about, indent=2, sort_keys=True) + "\n"
    write_beside(text.encode(), _sidecar(path))


# ── where values come from ────────────────────────────────────────────────────────────────────────
def _read_weights(request: BackboneRequest) -> tuple[State | None, Preparation | None]:
    """Return tensors of the weights (None: no weights), and their own preparation (None: the usual
    one of their network).
    """
    name = request.name
    weights = request.weights
    family = family_of(name)
    if weights is None:
        return None, None
    path = Path(weights)
    if family.read_folder is not None and path.is_dir():
        return family.read_folder(path, request.size, request.pool)
    if isinstance(weights, Path) or path.suffix in SUFFIXES or "/" in weights:
        state = read_tensors(path)
        beside = _read_sidecar(path, name)
        if beside and request.size is None:
            return state, preparation_from_json(name, beside["preprocess"])
        return state, None
    return family.fetch(name, weights), None


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_sidecar(path: Path, name: str) -> Mapping[str, Any]:
    beside = _sidecar(path)
    if not beside.is_file():
        return {}
    what = "what stands beside the weights cannot be read"
    try:
        about = json.loads(beside.read_text(encoding="utf-8"))
        made_for = about["name"]
        is_suited = made_for in (name, family_of(name).weights_of(name))
        if is_suited:
            preparation_from_json(name, about["preprocess"])
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(what, where=str(beside), remedy="save the backbone again") from error
    if not is_suited:
        what = f"weights of {made_for}, not of {name}"
        raise UserError(what, where=str(path), remedy=f"write backbone.name: {made_for}")
    return about
