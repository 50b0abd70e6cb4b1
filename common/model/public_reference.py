"""A backbone with a public reference for the features that a plan chooses.

Where it comes from, the first that there is: the plan's own declarations (a table's ranges); a file
that `fedgraft pretrain` made of public source data; records that anybody has; or nothing, and
features are brought to norm 1 and no more.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from fedgraft.common.backbones.backbone import Backbone, backbone_state
from fedgraft.common.backbones.reference import NAME, Reference
from fedgraft.common.files.tensor_files import fingerprint_of
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.material import Raw
from fedgraft.common.model.depth_features import DepthFeatures, count_features
from fedgraft.common.model.frozen_precision import list_rounded, run_in_bfloat16
from fedgraft.common.model.grafted_model import DepthChoice, choose_features, copy_sharing
from fedgraft.common.model.map_heads import MapChoice
from fedgraft.common.model.place_features import IMAGES, PlaceFeatures, open_places

# of features of records, or of their places
Choice = DepthChoice | MapChoice
AT_ONCE = 32
# references that a process keeps, the newest: a simulation opens its plan's backbone three times
MOST_KEPT = 4
_kept: dict[tuple[str, ...], Reference] = {}


def with_reference(backbone: Backbone, reference: Reference) -> Backbone:
    """Return the backbone with a reference, and so with another fingerprint: it is part of what is
    frozen and approved.
    """
    net = copy_sharing(backbone.net, lambda parameter: True)
    net.add_module(NAME, reference.eval().requires_grad_(False))
    changed = replace(backbone, net=net)
    return replace(changed, fingerprint=fingerprint_of(backbone_state(changed)))


def is_norm_alone(backbone: Backbone) -> bool:
    """Whether a backbone's features are brought to norm 1 without a reference."""
    reference = backbone.net._modules.get(NAME)
    return isinstance(reference, Reference) and reference.is_norm_alone()


# ── where it comes from ───────────────────────────────────────────────────────────────────────────
def bring_to_norm(backbone: Backbone, choice: Choice) -> Reference:
    """Return a reference for features of which nothing is known."""
    features = features_of(backbone, choice)
    if isinstance(features, PlaceFeatures):
        return Reference(features.head.in_features)
    return Reference(count_features(features, choice.example))


def take_declared(mean: Tensor, change: Tensor) -> Reference:
    """Return a reference that follows from what a plan declares."""
    reference = Reference(len(mean))
    reference.set(mean, change)
    return reference


def fit_public(backbone: Backbone, choice: Choice, public: Callable[[], Raw]) -> Reference:
    """Return the reference that public records give: the same bits on one kind of processor.

    It is computed once in a process for the same tensors, preparation and features.

    Args:
        public: gives raw records that anybody has, `(n, …)`, always the same ones.
    """
    features = features_of(backbone, choice)
    key = (backbone.fingerprint, *describe_features(backbone, features, choice))
    known = _kept.get(key)
    if known is not None:
        return known
    raw = public()
    if isinstance(features, PlaceFeatures):
        raw = raw[:IMAGES]
    parts = [raw[start : start + AT_ONCE] for start in range(0, len(raw), AT_ONCE)]
    values = compute_features(features, map(backbone.preprocess, parts), choice.precision)
    reference = Reference(values.shape[1])
    reference.fit(values)
    while len(_kept) >= MOST_KEPT:
        del _kept[next(iter(_kept))]
    _kept[key] = reference
    return reference


def fit_source(backbone: Backbone, choice: Choice, batches: Iterable[Batch]) -> Reference:
    """Return the reference that a plan's public source data give, however few they are.

    Args:
        batches: prepared.
    """
    # scikit-learn takes a second to import
    from sklearn.covariance import ledoit_wolf_shrinkage

    values = compute_features(features_of(backbone, choice), batches, choice.precision)
    reference = Reference(values.shape[1])
    with threadpool_limits(1):
        shrink = float(ledoit_wolf_shrinkage(values.double().numpy()))
    reference.fit(values, shrink)
    return reference


# ── features ──────────────────────────────────────────────────────────────────────────────────────
def features_of(backbone: Backbone, choice: Choice) -> DepthFeatures | PlaceFeatures:
    """Return the chosen features of a backbone: of records, or of some places of them."""
    net = copy_sharing(backbone.net, lambda parameter: True)
    if isinstance(choice, MapChoice):
        return open_places(backbone, net, choice)
    return choose_features(backbone, net, choice)


def describe_features(
    backbone: Backbone, features: DepthFeatures | PlaceFeatures, choice: Choice
) -> tuple[str, ...]:
    """Return what features depend on beside the backbone's tensors."""
    preparation = json.dumps(backbone.preprocess.to_json(), sort_keys=True)
    described = (backbone.name, preparation, features.pool, *features.stages)
    if choice.precision != "bfloat16":
        return described
    return (*described, choice.precision)


@torch.no_grad()
def compute_features(
    features: DepthFeatures | PlaceFeatures, batches: Iterable[Batch], precision: str
) -> Tensor:
    """Return the features of prepared batches `(n, d)`, on one thread."""
    compute: Callable[[Tensor], Tensor] = features
    if precision == "bfloat16":
        # what is whitened is what nodes will compute, with the noise of its rounding
        net = features.maps.net if isinstance(features, PlaceFeatures) else features.net
        rounded = copy.deepcopy(features, list_rounded(net))
        compute = partial(run_in_bfloat16, rounded)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        parts = [compute(batch.joined) for batch in batches]
    finally:
        torch.set_num_threads(threads)
    return torch.cat(parts)
