"""The family of an image's network with a table beside it: `with-table/resnet18`, ….

Two encoders side by side, and one head over the features of both: any pre-trained network for
images whose name says its shape, and a table's columns as the family `columns` reads them. Weights
are the image network's; a table has none. Its constants are declared by the plan, or nodes'
histograms tell them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.backbones import FAMILIES, columns, family_of
from fedgraft.common.backbones.columns import Columns
from fedgraft.common.backbones.family import Family, Learnt, NetworkShape, State, last_linear
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.inputs.image_and_table import PairPreparation
from fedgraft.common.inputs.input_positions import count_inputs
from fedgraft.common.statistics.histograms import TableHistograms

PREFIX = "with-table/"
# whose names say their shapes, and whose weights are files or known by a name
FAMILIES_OF_IMAGES = ("cifar", "timm", "monai-2d", "fastai", "torchvision")
# children of the network
IMAGE = "image"
TABLE = "table"
HEAD = "head"


class WithTable(nn.Module):
    """(n, pixels + inputs), an image and behind it a row → features of both → classifier `head`.

        shape = NetworkShape(image_size=32, category_sizes=(0, 2))
        net = WithTable("cifar-resnet20", CifarResNet(20), shape)
        net(torch.zeros(1, 3 * 32 * 32 + 3))  # a column of numbers, and one of two categories

    Args:
        name: of the image's network.
        image: that network; its classifier, the last Linear, is taken out.
        shape: pixels of an image's side, and of the table what `Columns` takes.
    """

    def __init__(self, name: str, image: nn.Module, shape: NetworkShape) -> None:
        super().__init__()
        self.left_out, classifier = last_linear(image)
        image.set_submodule(self.left_out, nn.Identity())
        self.name = name
        self.shape = shape
        self.classifier = (classifier.in_features, classifier.out_features)
        self.inputs = count_inputs(shape.category_sizes)
        self.image = image
        self.table = encode_columns(shape)
        self.head = nn.Linear(classifier.in_features + self.table.features, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Images and rows (n, pixels + inputs), NaN where a value is missing → logits (n, 2)."""
        return self.head(encode_rows(self, encode_images(self, x)))


def encode_columns(shape: NetworkShape) -> Columns:
    """Return what makes features of a table's rows; no Linear of it is an adapter's."""
    table = Columns(shape.category_sizes, hinges=shape.hinges, ranges=shape.ranges)
    table.set_submodule(HEAD, nn.Identity())
    return table


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────
def encode_images(net: Any, x: Tensor) -> Tensor:
    """Images and rows (n, pixels + inputs) → features of the images, and rows as they were (n,
    features + inputs).
    """
    side = net.shape.image_size
    pixels = x[:, : -net.inputs].unflatten(1, (-1, side, side))
    return torch.cat([net.image(pixels), x[:, -net.inputs :]], dim=1)


def encode_rows(net: Any, x: Tensor) -> Tensor:
    """Features of images, and rows (n, features + inputs) → features of both (n, d)."""
    return torch.cat([x[:, : -net.inputs], net.table(x[:, -net.inputs :])], dim=1)


# ── the family ────────────────────────────────────────────────────────────────────────────────────
def image_network(name: str) -> str:
    """Return the name of the network for images: what weights and preparations are of."""
    return name.removeprefix(PREFIX)


@cache
def names() -> tuple[str, ...]:
    """Return all names. Imports torchvision, and of the extras those that are installed."""
    known: list[str] = []
    for family in FAMILIES_OF_IMAGES:
        try:
            known += FAMILIES[family].names()
        except UserError:
            # an extra that is not installed
            continue
    return tuple(PREFIX + name for name in known)


def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network whose image part has its family's own initialisation.

    Raises:
        UserError: without columns, or images whose side nothing says.
    """
    if not shape.category_sizes:
        what = "a table without columns"
        raise UserError(what, where="task.columns", remedy="name the feature columns")
    if shape.image_size is None:
        what = "images of any size"
        raise UserError(what, where="backbone.image_size", remedy="write it, in pixels")
    own = image_network(name)
    return WithTable(own, family_of(own).build(own, shape), shape)


def prepare_pairs(name: str, weights: str | None, size: int | None) -> PairPreparation:
    """Return what images go through as their network's family says; rows a cast alone."""
    own = image_network(name)
    image = family_of(own).preparation(own, weights, size)
    if not isinstance(image, Preprocess):
        raise TypeError(f"{own} prepares no images")
    return PairPreparation(image)


def fetch(name: str, weights: str) -> dict[str, Tensor]:
    """Return the image network's weights of a name. Raise `UserError` as its family."""
    own = image_network(name)
    return family_of(own).fetch(own, weights)


def read_shape(state: State, shape: NetworkShape, where: str) -> NetworkShape:
    """Return the shape with columns and constants as the tensors have them; as the plan has them
    where these are an image network's alone.

    Raises:
        UserError: they are for other columns than the plan names.
    """
    if not has_table(state):
        return shape
    return read_table_shape(state, shape, where)


def fit(net: nn.Module, state: State) -> State:
    """Return the tensors of both parts; those of an image network get the plan's table beside."""
    if has_table(state):
        return state
    assert isinstance(net, WithTable)
    fitted: dict[str, Tensor] = {}
    for key, tensor in fit_image(net, state).items():
        fitted[f"{IMAGE}.{key}"] = tensor
    for key, tensor in encode_columns(net.shape).state_dict().items():
        fitted[f"{TABLE}.{key}"] = tensor
    return fitted


def fit_image(net: WithTable, state: State) -> dict[str, Tensor]:
    """Return an image network's tensors under today's names, without its classifier's."""
    # a family may count all tensors of its network
    net.image.set_submodule(net.left_out, nn.Linear(*net.classifier, device="meta"))
    fitted = family_of(net.name).fit(net.image, state)
    net.image.set_submodule(net.left_out, nn.Identity())
    owner = f"{net.left_out}."
    return {key: tensor for key, tensor in fitted.items() if not key.startswith(owner)}


def has_table(state: State) -> bool:
    """Whether tensors are those of both parts, and not of an image network alone."""
    return f"{TABLE}.category_sizes" in state


def read_table_shape(state: State, shape: NetworkShape, where: str) -> NetworkShape:
    """Return what `columns` reads of the table's part of a network's tensors."""
    owner = f"{TABLE}."
    own: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith(owner):
            own[key.removeprefix(owner)] = tensor
    return columns.read_shape(own, shape, where)


def learn_constants(histograms: TableHistograms, hinges: bool) -> dict[str, Tensor]:
    """Return the constants' parameters by name out of merged histograms of all numbers."""
    own = columns.learn_constants(histograms, hinges)
    return {f"{TABLE}.{name}": tensor for name, tensor in own.items()}


def count_joined(shape: NetworkShape) -> int:
    """Return how many features are the table's."""
    return columns.count_features(shape.category_sizes, hinges=shape.hinges)


WITH_TABLE = Family(
    names=names,
    build=build,
    preparation=prepare_pairs,
    fetch=fetch,
    read_shape=read_shape,
    fit=fit,
    order={f"{__name__}.WithTable": (encode_images, encode_rows, HEAD)},
    used_by_steps={encode_images: (IMAGE,), encode_rows: (TABLE,)},
    # a table's constants are preparation: they stay in a random backbone
    kept_when_random=(f"{TABLE}.*",),
    learnt=Learnt(f"{TABLE}.{columns.CONSTANTS}", learn_constants),
    weights_of=image_network,
    joined=count_joined,
)
