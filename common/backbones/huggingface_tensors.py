"""The tensors of a model's folder under the names of the library's modules, and the small files
that travel among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fedgraft.common.backbones.family import State
from fedgraft.common.backbones.huggingface_shapes import HuggingFaceShape
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.tokenizer_file import bytes_of

# the tensor that holds what a network is
DESCRIPTION = "config"
# the child that stands for the classifier
HEAD = "classifier"
# the child that stands before it in the library's own classifier
NATIVE = "pre_classifier"
# of all tensors together; no more is made for weights that are not there
MOST_VALUES = 4_000_000_000
# and what brings an image into the space that a pair's texts share
PROJECTION = "visual_projection"
# in files of 2019
FORMER = ((r"LayerNorm\.weight$", "LayerNorm.gamma"), (r"LayerNorm\.bias$", "LayerNorm.beta"))


def take_file(state: State, name: str, where: str) -> bytes:
    """Return the bytes of a small file among tensors. Raise `UserError` where it is not there."""
    tensor = state.get(name)
    if tensor is None:
        what = f"these are not the tensors of a Hugging Face model: {name} is missing"
        remedy = "give the model's folder, or a file that fedgraft wrote"
        raise UserError(what, where=where, remedy=remedy)
    return bytes_of(tensor)


def choose_tensors(
    network: Any, described: HuggingFaceShape, given: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Return a network's tensors out of a folder's, whatever head they came with.

    Args:
        network: class of the network, with `turned`: ends of the names of weights that the library
            keeps the other way round.

    Raises:
        UserError: a tensor that is not there, or a network of more values than are made here.
    """
    with torch.device("meta"):
        expected = network(described, {}).state_dict()
    values = sum(tensor.numel() for tensor in expected.values())
    if values > MOST_VALUES:
        what = f"a network of {values:,} values; at most {MOST_VALUES:,} are taken"
        raise UserError(what, where=where, remedy="give a smaller model")
    chosen: dict[str, Tensor] = {}
    missing: list[str] = []
    for name in expected:
        if name.startswith(f"{HEAD}."):
            continue
        tensor = _find_tensor(name, given, described)
        if tensor is None:
            missing.append(name)
            continue
        if name.endswith(network.turned):
            tensor = tensor.T
        chosen[name] = tensor
    if missing and all(name.startswith(f"{NATIVE}.") for name in missing):
        *_, name = _names_in_files(missing[0], described)
        what = f"native, and {name} is missing: it is trained with the model's own classifier"
        remedy = (
            f"in {where} put a sequence classifier (of AutoModelForSequenceClassification), or"
            " write mean"
        )
        raise UserError(what, where="backbone.pool", remedy=remedy)
    if missing == [f"{PROJECTION}.weight"]:
        what = f"joint, and {missing[0]} is missing in {where}: it is part of a pair of encoders"
        remedy = "give the folder of the pair (CLIPModel), or write first"
        raise UserError(what, where="backbone.pool", remedy=remedy)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        kind = described.model_type
        what = f"these are not the tensors of this {kind}: {missing[0]}{more} missing"
        remedy = "give the folder of one model, with its own config.json"
        raise UserError(what, where=where, remedy=remedy)
    return chosen


def _find_tensor(
    name: str, given: Mapping[str, Tensor], described: HuggingFaceShape
) -> Tensor | None:
    for candidate in _names_in_files(name, described):
        for full in (candidate, described.prefix + candidate):
            if full in given:
                return given[full]
    return None


def _names_in_files(name: str, described: HuggingFaceShape) -> Iterator[str]:
    """Yield the names that a tensor has had in files."""
    yield name
    for pattern, replacement in (*described.former, *FORMER):
        name = re.sub(pattern, replacement, name)
    yield name
