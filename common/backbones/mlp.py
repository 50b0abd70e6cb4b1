"""The family of perceptrons for tables: one name, `mlp`; its shape is in its weights."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fedgraft.common.backbones.family import (
    Family,
    NetworkShape,
    State,
    keep_state,
    refuse_to_fetch,
)
from fedgraft.common.backbones.mlp_network import Mlp
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.input_positions import number_inputs
from fedgraft.common.inputs.table import TablePreparation

_HERE = "fedgraft.common.backbones.mlp_network"


def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network with torch's own initialisation, its columns scaled by the plan's ranges.

    Raise `UserError` without columns.
    """
    if shape.columns < 1:
        what = "an mlp without columns"
        raise UserError(what, where="task.columns", remedy="name the feature columns")
    network = Mlp(shape.columns, shape.hidden)
    if shape.ranges is not None:
        network.standardise.declare(number_inputs(shape.category_sizes), shape.ranges)
    return network


def prepare_rows(name: str, weights: str | None, image_size: int | None) -> TablePreparation:
    """Return what rows go through: nothing but a cast."""
    return TablePreparation()


def read_shape(state: State, shape: NetworkShape, where: str) -> NetworkShape:
    """Return columns and hidden widths of the mlp that these tensors belong to.

    Raises:
        UserError: they belong to none, or the plan says something else.
    """
    columns, hidden = shape_of_tensors(state, where)
    if shape.columns and columns != shape.columns:
        what = f"weights for {columns} columns, and the plan names {shape.columns}"
        remedy = (
            "name the columns that the backbone was trained on, in the same order, or train it"
            " again"
        )
        raise UserError(what, where=where, remedy=remedy)
    if shape.hidden and hidden != shape.hidden:
        widths = list(hidden)
        what = f"weights with hidden layers {widths}, and the plan says {list(shape.hidden)}"
        raise UserError(what, where=where, remedy=f"write backbone.hidden: {widths}")
    return replace(shape, columns=columns, hidden=hidden)


def shape_of_tensors(state: State, where: str) -> tuple[int, tuple[int, ...]]:
    """Return columns and hidden widths. Raise `UserError` where these are no mlp's tensors."""
    refusal = UserError(
        "these are not the weights of an mlp",
        where=where,
        remedy="make them with fedgraft pretrain",
    )
    hidden: list[int] = []
    try:
        columns = len(state["standardise.mean"])
        while (weight := state.get(f"layers.{len(hidden)}.linear.weight")) is not None:
            hidden.append(len(weight))
    except (KeyError, TypeError) as error:
        raise refusal from error
    if not hidden or not columns:
        raise refusal
    return columns, tuple(hidden)


MLP = Family(
    names=lambda: ("mlp",),
    build=build,
    preparation=prepare_rows,
    fetch=refuse_to_fetch,
    read_shape=read_shape,
    fit=keep_state,
    block_types={f"{_HERE}.Layer": True},
    order={f"{_HERE}.Mlp": ("standardise", "layers", "head")},
    # the standardisation is preparation: it stays in a random backbone
    kept_when_random=("standardise.mean", "standardise.std"),
)
