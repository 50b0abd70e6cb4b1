"""The family of Hugging Face's transformers for texts: one name, `huggingface`; which network it is
stands in the folder that the plan names as its weights.

Among the tensors of such a backbone are two small files: what the network is (`config`), and its
tokenizer. So one fingerprint covers them all, and a node needs no folder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from fedgraft.common.backbones.family import Family, NetworkShape, Pooling, State, keep_state
from fedgraft.common.backbones.huggingface_folder import (
    CONFIG,
    read_folder_tensors,
    read_json,
    read_pooling,
    read_tokenizer_file,
)
from fedgraft.common.backbones.huggingface_shapes import (
    TEXT_SHAPES,
    HuggingFaceShape,
    check_pooling,
    read_config,
    read_shape,
    write_shape,
)
from fedgraft.common.backbones.huggingface_tensors import DESCRIPTION, choose_tensors, take_file
from fedgraft.common.backbones.huggingface_text import (
    BLOCK_TYPES,
    CALLS,
    NETWORKS,
    ORDER,
    USED_BY_STEPS,
    find_vocabulary,
    keep_tokens,
)
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.text import (
    DEFAULT_LENGTH,
    TOKENIZER,
    TextPreparation,
    is_token,
    prepare_texts,
)
from fedgraft.common.inputs.tokenizer_file import count_tokens, open_tokenizer, tensor_of

NAME = "huggingface"


def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network with the library's own initialisation. Raise `UserError` without a folder's
    description.
    """
    if DESCRIPTION not in shape.files:
        what = f"{name} is a model's folder, and none is named"
        raise UserError(what, where="backbone.weights", remedy="write the folder, such as ./minilm")
    described = read_shape(shape.files[DESCRIPTION], TEXT_SHAPES, name)
    return NETWORKS[described.model_type](described, shape.files)


def read_files(state: State, shape: NetworkShape, where: str) -> NetworkShape:
    """Return what the two files among the tensors say.

    Raises:
        UserError: they are not there or damaged, a tokenizer that has more tokens than the network,
            or texts that are longer than it can read.
    """
    files = {name: take_file(state, name, where) for name in (DESCRIPTION, TOKENIZER)}
    described = read_shape(files[DESCRIPTION], TEXT_SHAPES, where)
    _check_tokens(described, files[TOKENIZER], where)
    _check_length(described, shape.max_length)
    check_pooling(described, shape.pool, where)
    return replace(shape, files=files)


def read_folder(
    folder: Path, size: int | None, pool: Pooling | None
) -> tuple[State, TextPreparation]:
    """Return the tensors of a model's folder and its preparation.

    Args:
        size: tokens of a text; None: the usual number, or as many as the network can read.
        pool: how tokens become one vector; None: as the folder says, or their mean.

    Raises:
        UserError: what is there is no model that is known, or asks for more than data.
    """
    config = read_json(folder / CONFIG)
    where = str(folder / CONFIG)
    described = read_config(config, TEXT_SHAPES, _find_pooling(folder, pool), where, pool)
    tokenizer = read_tokenizer_file(folder)
    _check_tokens(described, tokenizer, str(folder))
    if size is None:
        size = min(DEFAULT_LENGTH, described.positions or DEFAULT_LENGTH)
    _check_length(described, size)
    files = {DESCRIPTION: write_shape(described), TOKENIZER: tokenizer}
    network = NETWORKS[described.model_type]
    given = read_folder_tensors(folder)
    state = choose_tensors(network, described, given, str(folder))
    for name, content in files.items():
        state[name] = tensor_of(content)
    return state, TextPreparation(size)


def _find_pooling(folder: Path, pool: Pooling | None) -> Pooling | None:
    """Return how a folder's model pools; None where it does not say, or the plan says it."""
    return None if pool else read_pooling(folder)


def refuse_names(name: str, weights: str) -> dict[str, Tensor]:
    """Raise `UserError`: nothing is fetched from a hub."""
    what = f"{weights!r} is no folder here, and nothing is fetched from a hub"
    remedy = "download the model, and write its folder, such as ./minilm"
    raise UserError(what, where="backbone.weights", remedy=remedy)


# ── checks ────────────────────────────────────────────────────────────────────────────────────────
def _check_tokens(described: HuggingFaceShape, tokenizer: bytes, where: str) -> None:
    """Raise `UserError` where a tokenizer gives numbers that the network has no row for."""
    count = count_tokens(open_tokenizer(tokenizer))
    if count > described.tokens:
        what = f"a tokenizer of {count:,} tokens for a network that knows {described.tokens:,}"
        remedy = "give the folder of one model, with its own tokenizer.json"
        raise UserError(what, where=where, remedy=remedy)


def _check_length(described: HuggingFaceShape, length: int | None) -> None:
    """Raise `UserError` where texts are longer than a network can read."""
    positions = described.positions
    if length is None or positions is None or length <= positions:
        return
    what = f"{length} tokens, and this {described.model_type} reads at most {positions}"
    raise UserError(what, where="backbone.max_length", remedy=f"write {positions} or fewer")


HUGGINGFACE = Family(
    names=lambda: (NAME,),
    build=build,
    preparation=prepare_texts,
    fetch=refuse_names,
    read_shape=read_files,
    fit=keep_state,
    block_types=BLOCK_TYPES,
    order=ORDER,
    used_by_steps=USED_BY_STEPS,
    calls=CALLS,
    places=is_token,
    read_folder=read_folder,
    kept_when_random=(DESCRIPTION, TOKENIZER),
    keep_tokens=keep_tokens,
    vocabulary=find_vocabulary,
)
