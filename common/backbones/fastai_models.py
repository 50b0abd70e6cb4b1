"""The family of fastai's vision learners: `fastai/resnet34`, …, out of `learn.save(FILE,
with_opt=False)`. Its networks are torchvision's; fastai itself is never imported.

A learner is a body and a head. Its body has the children of torchvision's network under numbers:
`0.4.0.conv1.weight` is `layer1.0.conv1.weight`. Its head is left out as every classifier is, with
the largest values of each channel that fastai hands it beside their means.
"""

from __future__ import annotations

import re
from functools import cache

from torch import Tensor, nn

from fedgraft.common.backbones import torchvision_models
from fedgraft.common.backbones.family import (
    Family,
    NetworkShape,
    State,
    keep_shape,
    refuse_to_fetch,
)
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image import IMAGENET_MEAN, IMAGENET_STD, Preprocess

PREFIX = "fastai/"
# of torchvision's networks those with nothing but a Linear behind the body
KNOWN = re.compile(r"resnet\d+|resnext\d+_\d+x\d+d|wide_resnet\d+_2|densenet\d+")
USUAL_SIDE = 224
# tensors of a learner's body, with the child's number; and of its head
_BODY = re.compile(r"0\.(\d+)\.(.+)")
_HEAD = "1."
# a body that fastai made of one of timm's networks
_TIMM = "0.model."


@cache
def names() -> tuple[str, ...]:
    """Return all names. Imports torchvision."""
    known = filter(KNOWN.fullmatch, torchvision_models.names())
    return tuple(PREFIX + name for name in known)


def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return torchvision's network in its own initialisation."""
    return torchvision_models.build(name.removeprefix(PREFIX), shape)


def prepare_images(name: str, weights: str | None, size: int | None) -> Preprocess:
    """Return how fastai's learners see images by default: squares, normalised as for ImageNet."""
    side = size or USUAL_SIDE
    return Preprocess(side, side, IMAGENET_MEAN, IMAGENET_STD)


def fit(net: nn.Module, state: State) -> State:
    """Return a learner's tensors under torchvision's names; those of other files as they are.

    Raises:
        UserError: its body is one of timm's networks.
    """
    if any(key.startswith(_TIMM) for key in state):
        raise UserError(
            "a learner on one of timm's networks",
            where="backbone.weights",
            remedy=(
                "save learn.model[0].model.state_dict() with torch.save, and write backbone.name:"
                " timm/NAME"
            ),
        )
    children = [name for name, _ in net.named_children()]
    if not any(_BODY.fullmatch(key) for key in state):
        return state
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith(_HEAD):
            continue
        found = _BODY.fullmatch(key)
        name = key
        if found is not None and int(found[1]) < len(children):
            name = f"{children[int(found[1])]}.{found[2]}"
        renamed[name] = tensor
    return renamed


FASTAI = Family(
    names=names,
    build=build,
    preparation=prepare_images,
    fetch=refuse_to_fetch,
    read_shape=keep_shape,
    fit=fit,
)
