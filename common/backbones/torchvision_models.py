"""The family of torchvision's classifiers: every model whose last layer is a Linear."""

from __future__ import annotations

import re
import urllib.error
from collections import OrderedDict
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from torch import Tensor, nn

from fedgraft.common.backbones.family import Family, NetworkShape, State, keep_shape
from fedgraft.common.backbones.patches import check_patches
from fedgraft.common.backbones.torchvision_order import BLOCK_TYPES, ORDER, USED_BY_STEPS
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import SUFFIXES
from fedgraft.common.inputs.image import Preprocess

# their classifier is a convolution
NO_LINEAR_END = ("squeezenet1_0", "squeezenet1_1")
# as torchvision sets them for its own weights; no auxiliary heads
LEGACY_INPUT: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": True},
}
# names in torchvision's older files → names in its networks
LEGACY_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
POSITIONS = "encoder.pos_embedding"


@cache
def names() -> tuple[str, ...]:
    """Return all names. Imports torchvision."""
    from torchvision import models

    listed = models.list_models(module=models)
    return tuple(name for name in listed if name not in NO_LINEAR_END)


def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network with torchvision's own initialisation.

    Raises:
        UserError: a vision transformer whose patches do not fill the image.
    """
    from torchvision import models

    options = dict(LEGACY_INPUT.get(name, {}))
    # only a vision transformer's table of positions has the size of its images
    if name.startswith("vit_") and shape.image_size is not None:
        check_patches(name, int(name.rsplit("_", 1)[1]), shape.image_size)
        options["image_size"] = shape.image_size
    return models.get_model(name, weights=None, **options)


def prepare_images(name: str, weights: str | None, image_size: int | None) -> Preprocess:
    """Return torchvision's preset for the weights (the default ones for a file).

    Another `image_size` keeps the preset's proportion between resizing and cropping.
    """
    from torchvision import models

    known = models.get_model_weights(name)
    entry = known["DEFAULT"]
    if weights is not None and weights in known.__members__:
        entry = known[weights]
    preset = entry.transforms()
    size = int(preset.resize_size[0])
    crop = int(preset.crop_size[0])
    if image_size is not None:
        size = round(size * image_size / crop)
        crop = image_size
    return Preprocess(
        size=size,
        crop=crop,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        antialias=bool(preset.antialias),
    )


def fetch(name: str, weights: str) -> dict[str, Tensor]:
    """Return torchvision's weights of a name, fetched once and then kept by torch.

    Raises:
        UserError: there are none of this name, or no network to fetch them.
    """
    from torchvision import models

    where = "backbone.weights"
    known = models.get_model_weights(name)
    if weights not in known.__members__:
        near = [*get_close_matches(weights.upper(), known.__members__, cutoff=0.0), "DEFAULT"]
        remedy = f"write {near[0]}, or the path of a file in {', '.join(SUFFIXES)}"
        raise UserError(
            f"torchvision has no weights {weights!r} for {name}", where=where, remedy=remedy
        )
    entry = known[weights]
    try:
        return dict(entry.get_state_dict(progress=False, check_hash=True))
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        reason = type(error).__name__
        what = f"{entry.url} could not be fetched ({reason}); is this machine offline?"
        remedy = f"fetch that file elsewhere, copy it here, and write its path as {where}"
        raise UserError(what, where=where, remedy=remedy) from error


def fit(net: nn.Module, state: State) -> State:
    """Return tensors under the names of today's networks, positions in the network's own number."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith(AUXILIARY):
            renamed[current_name(name)] = tensor
    return fit_positions(net, renamed)


def current_name(tensor_name: str) -> str:
    """Return a tensor's name in torchvision's networks of today, from its name in a file."""
    for old, new in LEGACY_NAMES:
        tensor_name = old.sub(new, tensor_name)
    return tensor_name


def fit_positions(net: Any, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors with a vision transformer's table of positions interpolated where the
    images have another size.
    """
    table = state.get(POSITIONS)
    if table is None or table.ndim != 3 or not hasattr(net, "patch_size"):
        return state
    _, tokens, width = net.encoder.pos_embedding.shape
    if table.shape[1] == tokens or table.shape[2] != width:
        return state
    from torchvision.models.vision_transformer import interpolate_embeddings

    embeddings = OrderedDict({POSITIONS: table})
    try:
        fitted = interpolate_embeddings(net.image_size, net.patch_size, embeddings)
    except ValueError:
        # what does not fit is said where names and shapes are compared
        return state
    return {**state, POSITIONS: fitted[POSITIONS]}


TORCHVISION = Family(
    names=names,
    build=build,
    preparation=prepare_images,
    fetch=fetch,
    read_shape=keep_shape,
    fit=fit,
    block_types=BLOCK_TYPES,
    order=ORDER,
    used_by_steps=USED_BY_STEPS,
)
