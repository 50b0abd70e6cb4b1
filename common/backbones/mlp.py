"""The family of perceptrons for tables: one name, `mlp`; its shape is in its weights."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fedgraft.common.backbones.family import (
    Family,
    Learnt,
    NetworkShape,
    State,
    keep_state,
    refuse_to_fetch,
)
from fedgraft.common.backbones.mlp_network import (
    STANDARDISE,
    LearntStandardise,
    Mlp,
    Standardise,
    learn_scales,
)
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.input_positions import count_inputs, number_inputs
from fedgraft.common.inputs.table import TablePreparation

_HERE = "fedgraft.common.backbones.mlp_network"
# there where nodes' histograms tell the scales
CATEGORY_SIZES = f"{STANDARDISE}.category_sizes"


def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network with torch's own initialisation, its columns scaled by the plan's ranges, or
    by what nodes' histograms will tell.

    Raise `UserError` without columns.
    """
    if shape.columns < 1:
        what = "an mlp without columns"
        raise UserError(what, where="task.columns", remedy="name the feature columns")
    if shape.learns_scales:
        return Mlp(shape.columns, shape.hidden, LearntStandardise(shape.category_sizes))
    scales = Standardise(shape.columns)
    if shape.ranges is not None:
        scales.declare(number_inputs(shape.category_sizes), shape.ranges)
    return Mlp(shape.columns, shape.hidden, scales)


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
    sizes = state.get(CATEGORY_SIZES)
    if sizes is None:
        return replace(shape, columns=columns, hidden=hidden, learns_scales=False)
    told = tuple(map(int, sizes.tolist()))
    if shape.category_sizes and told != shape.category_sizes:
        what = "scales of other columns or categories than the plan names"
        raise UserError(what, where=where, remedy="name the same columns in the same order")
    return replace(shape, columns=columns, hidden=hidden, category_sizes=told, learns_scales=True)


def shape_of_tensors(state: State, where: str) -> tuple[int, tuple[int, ...]]:
    """Return columns and hidden widths. Raise `UserError` where these are no mlp's tensors."""
    refusal = UserError(
        "these are not the weights of an mlp",
        where=where,
        remedy="make them with fedgraft pretrain",
    )
    hidden: list[int] = []
    try:
        columns = count_columns(state)
        while (weight := state.get(f"layers.{len(hidden)}.linear.weight")) is not None:
            hidden.append(len(weight))
    except (KeyError, TypeError, ValueError) as error:
        raise refusal from error
    if not hidden or not columns:
        raise refusal
    return columns, tuple(hidden)


def count_columns(state: State) -> int:
    """Return how many inputs an mlp's tensors are for. Raise `KeyError`, `TypeError` or
    `ValueError` where these are none's.
    """
    sizes = state.get(CATEGORY_SIZES)
    if sizes is None:
        return len(state["standardise.mean"])
    if sizes.ndim != 1 or (sizes < 0).any():
        raise ValueError("no sizes of categories")
    return count_inputs(sizes.tolist())


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
    learnt=Learnt(STANDARDISE, lambda histograms, hinges: learn_scales(histograms)),
)
