"""A name and weights → a frozen backbone in eval mode, with its preprocessing and its fingerprint.

The classifier is taken out and `nn.Identity` stands in its place: a backbone gives features. Its
tensors are read-only by agreement: every grafted model shares them, in every thread.
"""

from __future__ import annotations

import json
import urllib.error
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.backbones.networks import (
    CIFAR,
    build,
    check_name,
    classifier_of,
    current_name,
    is_torchvision,
    known_networks,
)
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import (
    SUFFIXES,
    fingerprint_of,
    read_tensors,
    write_beside,
    write_tensors,
)
from fedgraft.common.inputs.image import Preprocess, for_images

__all__ = [
    "Backbone",
    "Preprocess",
    "backbone_from_state",
    "backbone_state",
    "fingerprint_of",
    "known_backbones",
    "load_backbone",
    "preprocess_of",
    "save_backbone",
]


@dataclass(frozen=True)
class Backbone:
    """A frozen network that turns inputs into features.

    Attributes:
        name: its name in the registry.
        net: the network in eval mode, nothing requires a gradient, `nn.Identity` where the
            classifier sat.
        head_name: dotted name of that place (`fc`, `linear`, `classifier.3`, `heads.head`, …).
        features: length of the feature vector.
        preprocess: what images go through first.
        fingerprint: SHA-256 over all parameters and buffers of `net`.
    """

    name: str
    net: nn.Module
    head_name: str
    features: int
    preprocess: Preprocess
    fingerprint: str


def known_backbones() -> list[str]:
    """Names that `load_backbone` takes (imports torchvision)."""
    return list(known_networks())


def load_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    image_size: int | None = None,
    random: bool = False,
    hidden: tuple[int, ...] = (64, 64),
    columns: int = 0,
    seed: int = 0,
    fingerprint: str | None = None,
) -> Backbone:
    """Build a backbone and give it its values. Deterministic; leaves the global random state alone.

    Args:
        name: one of `known_backbones`.
        weights: a `.safetensors`, `.pth` or `.pt` file, the name of torchvision's weights
            (IMAGENET1K_V1; fetched once, then kept by torch), or None for the network's own random
            initialisation from `seed`.
        image_size: side of the (square) inputs, pixels; default: the weights' own.
        random: keep shape and preprocessing, throw away what was learnt (the random-backbone
            baseline; `mlp` keeps its standardisation, which is preprocessing).
        hidden: widths of the hidden layers (`mlp`).
        columns: feature columns (`mlp`); 0 takes the number from the weights.
        fingerprint: what the backbone must be; None accepts any.

    Raises:
        UserError: an unknown name, weights that are missing, damaged, not allowed or of another
            network, no network to fetch them, or another fingerprint.
    """
    check_name(name)
    if image_size is not None and not 1 <= image_size <= 4096:
        raise UserError(
            f"{image_size} pixels", where="backbone.image_size", remedy="give 1 to 4096"
        )
    state, sidecar = _learnt(name, weights)
    if sidecar and image_size is None:
        preprocess = Preprocess.from_json(sidecar["preprocess"])
    else:
        preprocess = preprocess_of(name, weights, image_size)
    source = str(weights)
    if state is None:
        if name == "mlp" and columns < 1:
            raise UserError(
                "an mlp without columns", where="task.columns", remedy="name the feature columns"
            )
        net = build(name, seed=seed, columns=columns, hidden=hidden, image_size=preprocess.crop)
        made = _finish(name, net, preprocess)
    else:
        if name == "mlp":
            _check_mlp(state, source, columns, hidden)
        made = _with_state(name, state, preprocess, source)
        if random:
            made = _randomised(made, seed)
    if fingerprint is not None and made.fingerprint != fingerprint:
        raise UserError(
            f"the backbone's fingerprint is {made.fingerprint}, and the plan wants {fingerprint}",
            where="backbone.fingerprint",
            remedy="use the weights that were agreed on, or correct the plan",
        )
    return made


def preprocess_of(
    name: str, weights: str | Path | None = None, image_size: int | None = None
) -> Preprocess:
    """What a network's images go through: torchvision's preset for the weights (the default ones
    for a file).

    Another `image_size` keeps the preset's proportion between resizing and cropping.
    """
    if name == "mlp":
        return Preprocess()
    if name in CIFAR:
        return for_images(image_size or 32)
    from torchvision import models

    known = models.get_model_weights(name)
    entry = (
        known[weights]
        if isinstance(weights, str) and weights in known.__members__
        else known["DEFAULT"]
    )
    preset = entry.transforms()
    size, crop = int(preset.resize_size[0]), int(preset.crop_size[0])
    if image_size is not None:
        size, crop = round(size * image_size / crop), image_size
    return Preprocess(
        size=size,
        crop=crop,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        antialias=bool(preset.antialias),
    )


def backbone_state(backbone: Backbone) -> dict[str, Tensor]:
    """All parameters and buffers by name, sorted: what is handed out, what the fingerprint covers.
    No copies.
    """
    return _state(backbone.net)


def backbone_from_state(name: str, state: Mapping[str, Tensor], preprocess: Preprocess) -> Backbone:
    """A backbone from tensors that came over the wire or from a store.

    Raises:
        UserError: an unknown name, or tensors that are not this network's.
    """
    check_name(name)
    return _with_state(name, dict(state), preprocess, f"backbone {name}")


def save_backbone(backbone: Backbone, path: str | Path, provenance: Mapping[str, Any]) -> None:
    """Write `path` (.safetensors) and beside it `path`.json: name, fingerprint, preprocessing and
    provenance.

    `load_backbone` takes the preprocessing from there. Each file is written whole or not at all.

    Raises:
        UserError: another suffix, or a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(
            "a backbone is kept as .safetensors",
            where=str(path),
            remedy="end the name in .safetensors",
        )
    about = {
        "name": backbone.name,
        "fingerprint": backbone.fingerprint,
        "preprocess": backbone.preprocess.to_json(),
        "provenance": dict(provenance),
    }
    write_tensors(backbone_state(backbone), path, {"fingerprint": backbone.fingerprint})
    write_beside((json.dumps(about, indent=2, sort_keys=True) + "\n").encode(), _sidecar(path))


# ── where values come from ────────────────────────────────────────────────────────────────────────


def _learnt(
    name: str, weights: str | Path | None
) -> tuple[dict[str, Tensor] | None, Mapping[str, Any]]:
    """Tensors of the weights (None: no weights) and what `save_backbone` wrote beside them ({}:
    nothing).
    """
    if weights is None:
        return None, {}
    if isinstance(weights, Path) or Path(weights).suffix in SUFFIXES or "/" in weights:
        path = Path(weights)
        return read_tensors(path), _read_sidecar(path, name)
    if not is_torchvision(name):
        raise UserError(
            f"{name} has no weights called {weights!r}",
            where="backbone.weights",
            remedy=f"give a file in {', '.join(SUFFIXES)}, or null for a random initialisation",
        )
    return _download(name, weights), {}


def _download(name: str, weights: str) -> dict[str, Tensor]:
    from torchvision import models

    known = models.get_model_weights(name)
    if weights not in known.__members__:
        near = get_close_matches(weights.upper(), known.__members__, n=1, cutoff=0.0)
        raise UserError(
            f"torchvision has no weights {weights!r} for {name}",
            where="backbone.weights",
            remedy=(
                f"write {near[0] if near else 'DEFAULT'}, or the path of a file in"
                f" {', '.join(SUFFIXES)}"
            ),
        )
    entry = known[weights]
    try:
        return dict(entry.get_state_dict(progress=False, check_hash=True))
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"{entry.url} could not be fetched ({type(error).__name__}); is this machine offline?",
            where="backbone.weights",
            remedy=(
                "fetch that file elsewhere, copy it here, and write its path as backbone.weights"
            ),
        ) from error


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_sidecar(path: Path, name: str) -> Mapping[str, Any]:
    beside = _sidecar(path)
    if not beside.is_file():
        return {}
    try:
        about = json.loads(beside.read_text(encoding="utf-8"))
        made_for, _ = about["name"], Preprocess.from_json(about["preprocess"])
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(
            "what stands beside the weights cannot be read",
            where=str(beside),
            remedy="save the backbone again",
        ) from error
    if made_for != name:
        raise UserError(
            f"weights of {made_for}, not of {name}",
            where=str(path),
            remedy=f"write backbone.name: {made_for}",
        )
    return about


# ── values into a network ─────────────────────────────────────────────────────────────────────────


def _with_state(
    name: str, state: Mapping[str, Tensor], preprocess: Preprocess, source: str
) -> Backbone:
    """The network with `state` for values, classifier left out; checks every name and shape."""
    if is_torchvision(name):
        state = {
            new: tensor for old, tensor in state.items() if (new := current_name(old)) is not None
        }
    if name == "mlp":
        columns, hidden = mlp_shape(state, source)
        net = build(name, seed=None, columns=columns, hidden=hidden)
    else:
        net = build(name, seed=None, image_size=preprocess.crop)
        if name.startswith("vit_"):
            state = _fit_positions(net, state)
    head_name, _ = classifier_of(net)
    wanted = {
        key: value for key, value in net.state_dict().items() if not key.startswith(f"{head_name}.")
    }
    given = {key: value for key, value in state.items() if not key.startswith(f"{head_name}.")}
    for (
        key,
        tensor,
    ) in wanted.items():  # counters of training steps that older files lack; unused in eval mode
        if key.endswith(".num_batches_tracked") and key not in given:
            given[key] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    _check_fit(name, wanted, given, source)
    for key, tensor in wanted.items():
        _put(net, key, given[key].to(tensor.dtype).contiguous())
    return _finish(name, net, preprocess)


def _check_fit(
    name: str, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str
) -> None:
    wrong = [f"{key} is missing" for key in wanted if key not in given]
    wrong += [f"{key} is not of this network" for key in given if key not in wanted]
    wrong += [
        f"{key} is {list(given[key].shape)} and should be {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in given and given[key].shape != tensor.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"these are not the weights of {name}: {'; '.join(wrong[:3])}{more}",
            where=source,
            remedy=(
                "give the weights of this network, or the name of the network that these weights"
                " belong to"
            ),
        )


def _fit_positions(net: Any, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A vision transformer's table of positions, interpolated where the images have another
    size.
    """
    from torchvision.models.vision_transformer import interpolate_embeddings

    key = "encoder.pos_embedding"
    wanted = net.encoder.pos_embedding.shape
    if (
        key not in state
        or state[key].ndim != 3
        or state[key].shape[1] == wanted[1]
        or state[key].shape[2] != wanted[2]
    ):
        return state
    try:
        fitted = interpolate_embeddings(
            net.image_size, net.patch_size, OrderedDict({key: state[key]})
        )
    except ValueError:
        return state  # `_check_fit` says what does not fit
    return {**state, key: fitted[key]}


def _put(net: nn.Module, key: str, tensor: Tensor) -> None:
    owner_name, _, last = key.rpartition(".")
    owner = net.get_submodule(owner_name)
    if last in owner._parameters:
        owner._parameters[last] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[last] = tensor


def _finish(name: str, net: nn.Module, preprocess: Preprocess) -> Backbone:
    head_name, classifier = classifier_of(net)
    features = classifier.in_features
    net.set_submodule(head_name, nn.Identity())
    net.eval().requires_grad_(False)
    return Backbone(name, net, head_name, features, preprocess, fingerprint_of(_state(net)))


def _state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in sorted(net.state_dict().items())}


def _randomised(learnt: Backbone, seed: int) -> Backbone:
    """The same network with its own random initialisation instead of what it learnt."""
    state = backbone_state(learnt)
    columns, hidden = mlp_shape(state, learnt.name) if learnt.name == "mlp" else (0, ())
    net = build(
        learnt.name, seed=seed, columns=columns, hidden=hidden, image_size=learnt.preprocess.crop
    )
    for key in ("standardise.mean", "standardise.std"):
        if key in state:
            _put(net, key, state[key].clone())
    return _finish(learnt.name, net, learnt.preprocess)


# ── the mlp's shape is in its weights ─────────────────────────────────────────────────────────────


def mlp_shape(state: Mapping[str, Tensor], source: str) -> tuple[int, tuple[int, ...]]:
    """Columns and hidden widths of the mlp that these tensors belong to. Raises `UserError` if to
    none.
    """
    try:
        columns = int(state["standardise.mean"].shape[0])
        depth = sum(
            1 for key in state if key.startswith("layers.") and key.endswith(".linear.weight")
        )
        hidden = tuple(int(state[f"layers.{i}.linear.weight"].shape[0]) for i in range(depth))
    except (KeyError, IndexError) as error:
        raise UserError(
            "these are not the weights of an mlp",
            where=source,
            remedy="make them with fedgraft pretrain",
        ) from error
    if not hidden or not columns:
        raise UserError(
            "these are not the weights of an mlp",
            where=source,
            remedy="make them with fedgraft pretrain",
        )
    return columns, hidden


def _check_mlp(
    state: Mapping[str, Tensor], source: str, columns: int, hidden: tuple[int, ...]
) -> None:
    file_columns, file_hidden = mlp_shape(state, source)
    if columns and columns != file_columns:
        raise UserError(
            f"weights for {file_columns} columns, and the plan names {columns}",
            where=source,
            remedy=(
                "name the columns that the backbone was trained on, in the same order, or train it"
                " again"
            ),
        )
    if tuple(hidden) != file_hidden:
        raise UserError(
            f"weights with hidden layers {list(file_hidden)}, and the plan says {list(hidden)}",
            where=source,
            remedy=f"write backbone.hidden: {list(file_hidden)}",
        )
