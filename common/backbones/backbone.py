"""A name and weights → a frozen backbone in eval mode, with its preparation and its fingerprint.

The classifier is taken out and `nn.Identity` stands in its place: a backbone gives features. Its
tensors are read-only by agreement: every grafted model shares them, in every thread.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.backbones import FAMILIES, family_line, family_of
from fedgraft.common.backbones.family import NetworkShape, State, last_linear
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import (
    SUFFIXES,
    fingerprint_of,
    read_tensors,
    write_beside,
    write_tensors,
)
from fedgraft.common.inputs import INPUTS
from fedgraft.common.inputs.material import Preparation

LARGEST_IMAGE = 4096  # pixels
MOST_NAMED = 3  # tensors that do not fit, in one message
_random_state = threading.Lock()


@dataclass(frozen=True)
class Backbone:
    """A frozen network that turns inputs into features.

        backbone = load_backbone("cifar-resnet20", weights="cifar10_resnet20.safetensors")
        backbone.net(backbone.preprocess(images).only)  # (n, features)

    Attributes:
        name: its name in the registry.
        net: the network in eval mode, nothing requires a gradient, `nn.Identity` where the
            classifier sat.
        head_name: dotted name of that place (`fc`, `linear`, `classifier.3`, `heads.head`, …).
        features: length of the feature vector.
        preprocess: what its inputs go through first.
        fingerprint: SHA-256 over all parameters and buffers of `net`.
    """

    name: str
    net: nn.Module
    head_name: str
    features: int
    preprocess: Preparation
    fingerprint: str


@dataclass(frozen=True)
class BackboneRequest:
    """Which backbone, with which values.

        load_backbone("mlp", weights="heart.safetensors", columns=13)

    Attributes:
        name: one of `known_backbones`.
        weights: a `.safetensors`, `.pth` or `.pt` file, the name of torchvision's weights
            (IMAGENET1K_V1; fetched once, then kept by torch), or None for the network's own random
            initialisation from `seed`.
        image_size: side of the (square) inputs, pixels; default: the weights' own.
        random: keep shape and preparation, throw away what was learnt (the random-backbone
            baseline).
        hidden: widths of the hidden layers (`mlp`).
        columns: inputs of a table's row (`mlp`); 0 takes the number from the weights.
        seed: of a random initialisation.
        fingerprint: that the backbone must have; None accepts any.
    """

    name: str
    weights: str | Path | None = None
    image_size: int | None = None
    random: bool = False
    hidden: tuple[int, ...] = (64, 64)
    columns: int = 0
    seed: int = 0
    fingerprint: str | None = None


def known_backbones() -> list[str]:
    """Return the names that `load_backbone` takes (imports torchvision)."""
    return [name for family in FAMILIES.values() for name in family.names()]


def check_name(name: str) -> None:
    """Raise `UserError` for a name that no backbone has, with the nearest ones that exist."""
    if name in family_of(name).names():
        return
    near = get_close_matches(name, known_backbones(), n=3, cutoff=0.5)
    remedy = "for instance cifar-resnet20, mlp, resnet18, vit_b_16"
    if near:
        remedy = f"did you mean {' or '.join(near)}?"
    raise UserError(f"no backbone is called {name!r}", where="backbone.name", remedy=remedy)


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
    state, sidecar = _read_weights(request)
    if sidecar and size is None:
        preparation = preparation_from_json(name, sidecar["preprocess"])
    else:
        preparation = preparation_of(name, request.weights, size)
    backbone = _give_values(request, state, preparation)
    if request.fingerprint not in (None, backbone.fingerprint):
        mine = backbone.fingerprint
        what = f"the backbone's fingerprint is {mine}, and the plan wants {request.fingerprint}"
        remedy = "use the weights that were agreed on, or correct the plan"
        raise UserError(what, where="backbone.fingerprint", remedy=remedy)
    return backbone


def preparation_of(
    name: str, weights: str | Path | None = None, image_size: int | None = None
) -> Preparation:
    """Return what a network's inputs go through: as its weights were trained, or as is usual."""
    if isinstance(weights, Path):
        weights = None
    return family_of(name).preparation(name, weights, image_size)


def preparation_from_json(name: str, data: Mapping[str, Any]) -> Preparation:
    """Return the preparation of a backbone's inputs that `to_json` wrote.

    Raises:
        UserError: it is none.
    """
    return INPUTS[family_line(name).material].read_preparation(data)


def backbone_state(backbone: Backbone) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, sorted: what is handed out, what the fingerprint
    covers. No copies.
    """
    return _state_of(backbone.net)


def backbone_from_state(name: str, state: State, preparation: Preparation) -> Backbone:
    """Return a backbone from tensors that came over the wire or from a store.

    Raises:
        UserError: an unknown name, or tensors that are not this network's.
    """
    check_name(name)
    return _with_state(name, state, NetworkShape(), preparation, f"backbone {name}")


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
def _read_weights(request: BackboneRequest) -> tuple[State | None, Mapping[str, Any]]:
    """Return tensors of the weights (None: no weights) and what `save_backbone` wrote beside them
    ({}: nothing).
    """
    weights = request.weights
    if weights is None:
        return None, {}
    if isinstance(weights, Path) or Path(weights).suffix in SUFFIXES or "/" in weights:
        path = Path(weights)
        return read_tensors(path), _read_sidecar(path, request.name)
    return family_of(request.name).fetch(request.name, weights), {}


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
        if made_for == name:
            preparation_from_json(name, about["preprocess"])
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(what, where=str(beside), remedy="save the backbone again") from error
    if made_for != name:
        what = f"weights of {made_for}, not of {name}"
        raise UserError(what, where=str(path), remedy=f"write backbone.name: {made_for}")
    return about


# ── values into a network ─────────────────────────────────────────────────────────────────────────
def _give_values(
    request: BackboneRequest, state: State | None, preparation: Preparation
) -> Backbone:
    """Return the backbone with the weights' values, or with random ones."""
    shape = NetworkShape(_side_of(preparation), request.columns, request.hidden)
    if state is None:
        return _finish(request.name, build_network(request.name, shape, request.seed), preparation)
    learnt = _with_state(request.name, state, shape, preparation, str(request.weights))
    if request.random:
        return _randomise(learnt, request.seed)
    return learnt


def build_network(name: str, shape: NetworkShape, seed: int | None) -> nn.Module:
    """Return a network, classifier included.

    Neither way touches the global random state in the end: torch's initialisers know no other, so
    it is forked under a lock.

    Args:
        seed: for its own random initialisation; None gives tensors without values, for weights to
            come: no time is spent on an initialisation that they replace.
    """
    family = family_of(name)
    if seed is None:
        try:
            with torch.device("meta"):
                return family.build(name, shape)
        except NotImplementedError:
            # a constructor that looks at values (RegNet): they are replaced later
            seed = 0
    with _random_state, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return family.build(name, shape)


def _with_state(
    name: str, state: State, shape: NetworkShape, preparation: Preparation, where: str
) -> Backbone:
    """Return the network with `state` for values, classifier left out; check names and shapes.

    Raises:
        UserError: tensors that are not this network's.
    """
    family = family_of(name)
    shape = family.read_shape(state, replace(shape, image_size=_side_of(preparation)), where)
    net = build_network(name, shape, None)
    state = family.fit(net, state)
    head_name, _ = last_linear(net)
    expected = _without(net.state_dict(), head_name)
    given = _without(state, head_name)
    for key, tensor in expected.items():
        # counters of training steps that older files lack; unused in eval mode
        if key.endswith(".num_batches_tracked") and key not in given:
            given[key] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    _check_fit(name, expected, given, where)
    for key, tensor in expected.items():
        _put(net, key, given[key].to(tensor.dtype).contiguous())
    return _finish(name, net, preparation)


def _without(state: State, head_name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(f"{head_name}.")}


def _check_fit(name: str, expected: State, given: State, where: str) -> None:
    """Raise `UserError` where tensors are missing, strange or of another shape."""
    problems = [f"{key} is missing" for key in expected if key not in given]
    problems += [f"{key} is not of this network" for key in given if key not in expected]
    for key, tensor in expected.items():
        agreed = list(tensor.shape)
        shape = list(given.get(key, tensor).shape)
        if shape != agreed:
            problems.append(f"{key} is {shape} and should be {agreed}")
    if not problems:
        return
    listed = "; ".join(problems[:MOST_NAMED])
    if len(problems) > MOST_NAMED:
        listed += f"; and {len(problems) - MOST_NAMED} more"
    raise UserError(
        f"these are not the weights of {name}: {listed}",
        where=where,
        remedy=(
            "give the weights of this network, or the name of the network that these weights"
            " belong to"
        ),
    )


def _put(net: nn.Module, key: str, tensor: Tensor) -> None:
    owner_name, _, last = key.rpartition(".")
    owner = net.get_submodule(owner_name)
    if last in owner._parameters:
        owner._parameters[last] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[last] = tensor


def _finish(name: str, net: nn.Module, preparation: Preparation) -> Backbone:
    head_name, classifier = last_linear(net)
    features = classifier.in_features
    net.set_submodule(head_name, nn.Identity())
    net.eval().requires_grad_(False)
    fingerprint = fingerprint_of(_state_of(net))
    return Backbone(name, net, head_name, features, preparation, fingerprint)


def _state_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in sorted(net.state_dict().items())}


def _randomise(learnt: Backbone, seed: int) -> Backbone:
    """Return the same network with its own random initialisation instead of what it learnt."""
    state = backbone_state(learnt)
    family = family_of(learnt.name)
    side = _side_of(learnt.preprocess)
    shape = family.read_shape(state, NetworkShape(side), learnt.name)
    net = build_network(learnt.name, shape, seed)
    for key in family.kept_when_random:
        _put(net, key, state[key].clone())
    return _finish(learnt.name, net, learnt.preprocess)


def _side_of(preparation: Preparation) -> int | None:
    """Return the side of prepared images, pixels; None where it is not fixed."""
    return getattr(preparation, "crop", None)
