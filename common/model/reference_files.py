"""A public reference as a file beside the weights that it is for: `fedgraft pretrain` makes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.reference import Reference
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import read_metadata, read_tensors, write_tensors
from fedgraft.common.model.grafted_model import DepthChoice
from fedgraft.common.model.public_reference import describe_features, features_of

SUFFIX = ".reference.safetensors"
# the entry of the file that says which features of which weights it is for
MADE_FOR = "made_for"


def reference_path(weights: Path) -> Path:
    """Return where the reference for a file of weights lies."""
    return weights.with_suffix(SUFFIX)


def save_reference(
    reference: Reference, path: Path, backbone: Backbone, choice: DepthChoice
) -> None:
    """Write a reference, and which features of which backbone it is for."""
    write_tensors(reference.state_dict(), path, {MADE_FOR: _describe(backbone, choice)})


def read_reference(path: Path, backbone: Backbone, choice: DepthChoice) -> Reference:
    """Return the reference for the chosen features of a backbone.

    Raises:
        UserError: it is damaged, or for other weights or features.
    """
    remedy = "make it for this plan with `fedgraft pretrain`, or remove it"
    state = read_tensors(path)
    if read_metadata(path).get(MADE_FOR) != _describe(backbone, choice):
        what = "a reference for other weights or other features than the plan's"
        raise UserError(what, where=str(path), remedy=remedy)
    mean = state.get("mean")
    whiten = state.get("whiten")
    if mean is None or whiten is None or not _is_square(mean.shape, whiten.shape):
        raise UserError("this is no reference", where=str(path), remedy=remedy)
    reference = Reference(len(mean))
    reference.set(mean, whiten)
    return reference


def _describe(backbone: Backbone, choice: DepthChoice) -> str:
    chosen = describe_features(backbone, features_of(backbone, choice), choice)
    return json.dumps([backbone.fingerprint, *chosen])


def _is_square(mean: Sequence[int], whiten: Sequence[int]) -> bool:
    return len(mean) == 1 and tuple(whiten) == (mean[0], mean[0])
