"""The family of multi-layer perceptrons for tables: one name, `mlp`; its shape is in its weights."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fedgraft.common.backbones.cifar import keep_state, refuse_to_fetch
from fedgraft.common.backbones.family import Family, NetworkShape, State
from fedgraft.common.backbones.mlp_network import Mlp
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.table import TablePreparation

_HERE = "fedgraft.common.backbones.mlp_network"


def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network with torch's own initialisation. Raise `UserError` without columns."""
    if shape.columns < 1:
        what = "an mlp without columns"
        raise UserError(what, where="task.columns", remedy="name the feature columns")
    return Mlp(shape.columns, shape.hidden)


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
        raise UserError(
            f"weights for {columns} columns, and the plan names {shape.columns}",
            where=where,
            remedy=(
                "name the columns that the backbone was trained on, in the same order, or train it"
                " again"
            ),
        )
    if shape.hidden and hidden != shape.hidden:
        raise UserError(
            f"weights with hidden layers {list(hidden)}, and the plan says {list(shape.hidden)}",
            where=where,
            remedy=f"write backbone.hidden: {list(hidden)}",
        )
    return replace(shape, columns=columns, hidden=hidden)


def shape_of_tensors(state: State, where: str) -> tuple[int, tuple[int, ...]]:
    """Return columns and hidden widths. Raise `UserError` where these are no mlp's tensors."""
    remedy = "make them with fedgraft pretrain"
    try:
        columns = int(state["standardise.mean"].shape[0])
        hidden: list[int] = []
        while f"layers.{len(hidden)}.linear.weight" in state:
            hidden.append(int(state[f"layers.{len(hidden)}.linear.weight"].shape[0]))
    except (KeyError, IndexError) as error:
        what = "these are not the weights of an mlp"
        raise UserError(what, where=where, remedy=remedy) from error
    if not hidden or not columns:
        raise UserError("these are not the weights of an mlp", where=where, remedy=remedy)
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
