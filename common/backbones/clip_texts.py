"""Texts that say what a class is, by the encoder of texts that CLIP's encoder of images was trained
in a pair with (Radford et al. 2021): the head that they give is the pair's own answer.

Only the coordinator opens the encoder of texts; nodes get a head as with any plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.backbones.huggingface_folder import CONFIG, read_folder_tensors, read_json
from fedgraft.common.backbones.huggingface_shapes import ClipTextShape
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.text import TextPreparation

FAMILY = "huggingface"
PROJECTION = "text_projection.weight"
SCALE = "logit_scale"
# what the library takes for the end of a text where a configuration does not say it
END_OF_TEXT = 49407
# of configurations before 2023, in which it means: the token with the largest number
LARGEST_TOKEN = 2
# characters of a text in a message
LONGEST_SHOWN = 60


@torch.no_grad()
def weigh_texts(folder: Path, classes: Sequence[Sequence[str]]) -> Tensor:
    """Return the weights `(classes, d)` of the head that gives a pair's own answer, its bias 0: of
    each class the direction of the mean of its texts' directions (§3.1.4), times exp(logit_scale).

    Args:
        folder: of the pair.
        classes: the texts of each class.

    Raises:
        UserError: the folder holds no pair, or a text is longer than its encoder reads, or ends
            otherwise than it was trained with.
    """
    projection, scale = _read_shared(folder)
    encoder = load_backbone(FAMILY, weights=folder, pool="last")
    end = _read_end(folder)
    directions: list[Tensor] = []
    for texts in classes:
        tokens = _number_tokens(encoder, texts, end)
        encoded = F.normalize(encoder.net(tokens) @ projection.T, dim=-1)
        directions.append(F.normalize(encoded.mean(0), dim=-1))
    return (scale * torch.stack(directions)).float()


def _read_shared(folder: Path) -> tuple[Tensor, Tensor]:
    """Return the map of texts into the shared space `(d, width)`, and the scale of answers."""
    tensors = read_folder_tensors(folder)
    projection = _take(tensors, PROJECTION, folder)
    scale = _take(tensors, SCALE, folder)
    return projection.float(), scale.double().exp()


def _take(tensors: Mapping[str, Tensor], name: str, folder: Path) -> Tensor:
    """Return a tensor that every pair has. Raise `UserError` where it is not there."""
    if name in tensors:
        return tensors[name]
    what = f"no pair of encoders: {name} is missing"
    remedy = "give the folder of a whole CLIPModel: both encoders, their projections, the scale"
    raise UserError(what, where=str(folder), remedy=remedy)


def _read_end(folder: Path) -> int:
    """Return the token at whose place the library's encoder reads a text."""
    part: Any = read_json(folder / CONFIG).get(ClipTextShape.part)
    if not isinstance(part, dict):
        part = {}
    end = part.get("eos_token_id", END_OF_TEXT)
    if type(end) is int:
        return end
    what = f"text_config.eos_token_id is {str(end)[:40]}, and a number is known here"
    raise UserError(what, where=str(folder / CONFIG), remedy="give another model")


def _number_tokens(encoder: Backbone, texts: Sequence[str], end: int) -> Tensor:
    """Return the tokens of texts `(n, length)`, −1 behind their ends. Raise `UserError` for one
    that is too long, or whose last token is not the one that the library reads it at.
    """
    preparation = encoder.preprocess
    assert isinstance(preparation, TextPreparation)
    for text in texts:
        shown = f"{text[:LONGEST_SHOWN]!r}"
        count = preparation.count(text)
        if count > preparation.max_length:
            what = f"{shown} is {count} tokens, and at most {preparation.max_length} are read"
            raise UserError(what, where="task.prompts", remedy="write a shorter text")
    prepared = preparation(texts).only
    for text, row in zip(texts, prepared, strict=True):
        if not _ends_where_read(row[row >= 0], end):
            what = f"{text[:LONGEST_SHOWN]!r} does not end in the token that its encoder reads"
            remedy = f"give the pair's own tokenizer.json, which ends texts in token {end}"
            raise UserError(what, where="task.prompts", remedy=remedy)
    return prepared


def _ends_where_read(numbers: Tensor, end: int) -> bool:
    """Whether the library's encoder reads a text `(tokens,)` at its last token."""
    place = (numbers == end).int().argmax()
    if end == LARGEST_TOKEN:
        place = numbers.argmax()
    return int(place) == len(numbers) - 1
