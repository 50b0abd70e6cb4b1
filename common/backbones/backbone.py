"""A name and tensors → a frozen backbone in eval mode, with its preparation and its fingerprint.

The classifier is taken out and `nn.Identity` stands in its place: a backbone gives features. Its
tensors are read-only by agreement: every grafted model shares them, in every thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.backbones import FAMILIES, family_line, family_of
from fedgraft.common.backbones.family import NetworkShape, State, last_linear
from fedgraft.common.backbones.image_channels import bring_network, bring_state
from fedgraft.common.backbones.quantization import (
    Quantization,
    choose_layers,
    open_quantized,
    quantize_layer,
    quantize_layers,
)
from fedgraft.common.backbones.reference import NAME as REFERENCE
from fedgraft.common.backbones.reference import Reference
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import fingerprint_of
from fedgraft.common.inputs import INPUTS
from fedgraft.common.inputs.material import (
    PREPARATION,
    Preparation,
    Tensors,
    write_preparation,
)
from fedgraft.common.inputs.tokenizer_file import bytes_of

# tensors that do not fit, in one message
MOST_NAMED = 3
# the raw material whose networks are built for colour, and brought to other channels
IMAGES = "image"
# whose slices such networks may be given
VOLUMES = "volume"
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
        text_head: weights `(classes, features)` of the head that texts give, where a plan begins
            with it: at the coordinator alone, which sends it as it sends any head.
    """

    name: str
    net: nn.Module
    head_name: str
    features: int
    preprocess: Preparation
    fingerprint: str
    text_head: Tensor | None = None


def known_backbones() -> list[str]:
    """Return the names that `load_backbone` takes on this machine (imports torchvision)."""
    names: list[str] = []
    for family in FAMILIES.values():
        # an extra that is not installed has none
        with contextlib.suppress(UserError):
            names += family.names()
    return names


def check_name(name: str) -> None:
    """Raise `UserError` for a name that no backbone has, with the nearest ones that exist, or whose
    family needs an extra.
    """
    if name in family_of(name).names():
        return
    near = get_close_matches(name, known_backbones(), n=3, cutoff=0.5)
    remedy = "for instance cifar-resnet20, mlp, resnet18, vit_b_16"
    if near:
        remedy = f"did you mean {' or '.join(near)}?"
    raise UserError(f"no backbone is called {name!r}", where="backbone.name", remedy=remedy)


def preparation_of(
    name: str, weights: str | Path | None = None, size: int | None = None
) -> Preparation:
    """Return what a network's inputs go through: as its weights were trained, or as is usual."""
    if isinstance(weights, Path):
        weights = None
    return family_of(name).preparation(name, weights, size)


def preparation_from_json(
    name: str, data: Mapping[str, Any], tensors: Tensors | None = None
) -> Preparation:
    """Return the preparation of a backbone's inputs that `to_json` wrote.

    Args:
        tensors: gives the backbone's tensors, where records are to be prepared.

    Raises:
        UserError: it is none.
    """
    material = family_line(name).material
    # a network over images, with how volumes are cut into them
    if material == IMAGES and "slices" in data:
        material = VOLUMES
    preparation = INPUTS[material].read_preparation(data)
    if tensors is None:
        return preparation
    return bind_preparation(name, preparation, tensors)


def bind_preparation(name: str, preparation: Preparation, tensors: Tensors) -> Preparation:
    """Return a preparation with what it needs of its backbone's tensors."""
    return INPUTS[family_line(name).material].bind(preparation, tensors)


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
    return network_with_state(name, state, NetworkShape(), preparation, f"backbone {name}")


# ── values into a network ─────────────────────────────────────────────────────────────────────────
def build_network(name: str, shape: NetworkShape, seed: int | None) -> nn.Module:
    """Return a network, classifier included.

    Neither way touches the global random state in the end: torch's initialisers know no other, so
    it is forked under a lock.

    Args:
        seed: for its own random initialisation; None gives tensors without values, for weights to
            come: no time is spent on an initialisation that they replace.
    """
    if seed is None:
        try:
            with torch.device("meta"):
                return _build(name, shape)
        except NotImplementedError:
            # a constructor that looks at values (RegNet): they are replaced later
            seed = 0
    with _random_state, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _build(name, shape)


def _build(name: str, shape: NetworkShape) -> nn.Module:
    net = family_of(name).build(name, shape)
    if family_line(name).material == IMAGES:
        bring_network(name, net, shape.channels)
    return net


def network_with_state(
    name: str,
    state: State,
    shape: NetworkShape,
    preparation: Preparation,
    where: str,
    channels: int | None = None,
    quantization: Quantization | None = None,
) -> Backbone:
    """Return the network with `state` for values, classifier left out; check names and shapes.

    Args:
        channels: for which weights for colour or grey images are made to do, since a plan says so;
            None: they must be as many already.
        quantization: of the weights of its Linear layers, one after the other; None: as they are.

    Raises:
        UserError: tensors that are not this network's.
    """
    family = family_of(name)
    state, reference = split_reference(state)
    shape = family.read_shape(state, _sized(shape, preparation), where)
    net = build_network(name, shape, None)
    state = family.fit(net, state)
    if channels is not None:
        state = bring_state(net.state_dict(), state, channels)
    head_name, _ = last_linear(net)
    open_quantized(net, state)
    expected = _without(net.state_dict(), head_name)
    given = _without(state, head_name)
    for key, tensor in expected.items():
        # counters of training steps that older files lack; unused in eval mode
        if key.endswith(".num_batches_tracked") and key not in given:
            given[key] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    _check_fit(name, expected, given, where)
    _check_preparation(given, preparation, where)
    chosen = choose_layers(net, head_name) if quantization else []
    for key, tensor in expected.items():
        _put(net, key, given[key].to(tensor.dtype).contiguous())
        layer, _, part = key.rpartition(".")
        if quantization and part == "weight" and layer in chosen:
            quantize_layer(net, layer, quantization)
    if reference is not None:
        net.add_module(REFERENCE, reference)
    return freeze_network(name, net, preparation)


def split_reference(state: State) -> tuple[State, Reference | None]:
    """Return a network's own tensors, and the public reference that came with them, if one did."""
    own: dict[str, Tensor] = {}
    of_reference: dict[str, Tensor] = {}
    for name, tensor in state.items():
        owner, _, part = name.partition(".")
        if owner == REFERENCE:
            of_reference[part] = tensor
        else:
            own[name] = tensor
    if not of_reference:
        return state, None
    mean = of_reference.get("mean")
    if mean is None or mean.ndim != 1:
        raise UserError("a reference without its mean", remedy="save the backbone again")
    reference = Reference(len(mean))
    _check_fit("the reference", reference.state_dict(), of_reference, REFERENCE)
    reference.load_state_dict(of_reference)
    return own, reference


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


def _check_preparation(given: State, preparation: Preparation, where: str) -> None:
    """Raise `UserError` where inputs would be prepared in another way than stands among the
    tensors, and so under their fingerprint.
    """
    content = given.get(PREPARATION)
    if content is None or bytes_of(content) == write_preparation(preparation):
        return
    remedy = "leave backbone.image_size as it was when the file was written, or load it anew"
    raise UserError("inputs prepared in another way than these tensors", where=where, remedy=remedy)


def _put(net: nn.Module, key: str, tensor: Tensor) -> None:
    owner_name, _, last = key.rpartition(".")
    owner = net.get_submodule(owner_name)
    if last in owner._parameters:
        owner._parameters[last] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[last] = tensor


def freeze_network(name: str, net: nn.Module, preparation: Preparation) -> Backbone:
    """Return the backbone that a whole network is without its classifier."""
    head_name, classifier = last_linear(net)
    features = classifier.in_features
    net.set_submodule(head_name, nn.Identity())
    net.eval().requires_grad_(False)
    state = _state_of(net)
    bound = bind_preparation(name, preparation, lambda: state)
    return Backbone(name, net, head_name, features, bound, fingerprint_of(state))


def _state_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in sorted(net.state_dict().items())}


def randomise(learnt: Backbone, seed: int, quantization: Quantization | None = None) -> Backbone:
    """Return the same network with its own random initialisation instead of what it learnt."""
    state = backbone_state(learnt)
    family = family_of(learnt.name)
    shape = family.read_shape(state, _sized(NetworkShape(), learnt.preprocess), learnt.name)
    net = build_network(learnt.name, shape, seed)
    for key, tensor in state.items():
        if any(fnmatchcase(key, pattern) for pattern in family.kept_when_random):
            _put(net, key, tensor.clone())
    quantize_layers(net, learnt.head_name, quantization)
    return freeze_network(learnt.name, net, learnt.preprocess)


def _sized(shape: NetworkShape, preparation: Preparation) -> NetworkShape:
    """Return a shape with the size that prepared inputs have."""
    length = getattr(preparation, "max_length", None)
    channels = channels_of(preparation)
    return replace(shape, image_size=side_of(preparation), max_length=length, channels=channels)


def channels_of(preparation: Preparation) -> int | None:
    """Return the channels of prepared images, volumes or signals; None for anything else."""
    return getattr(preparation, "channels", None)


def slices_of(preparation: Preparation) -> int | None:
    """Return how many slices of a volume a network over images is given; None: its records are what
    it takes.
    """
    return getattr(preparation, "slices", None)


def side_of(preparation: Preparation) -> int | None:
    """Return the side of prepared images, pixels; None where it is not fixed."""
    return getattr(preparation, "crop", None)
