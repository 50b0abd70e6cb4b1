"""A backbone with a public reference for the features that a plan chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedgraft.common.backbones.backbone import Backbone, backbone_state
from fedgraft.common.backbones.reference import NAME, Reference
from fedgraft.common.files.tensor_files import fingerprint_of
from fedgraft.common.model.depth_features import DepthFeatures, count_features
from fedgraft.common.model.grafted_model import DepthChoice, choose_features, copy_sharing

AT_ONCE = 32
# references that a process keeps, of some 500 kB each
MOST_FITTED = 16
_FITTED: dict[tuple[str, str, tuple[str, ...], str, str], Mapping[str, Tensor]] = {}


def add_reference(backbone: Backbone, choice: DepthChoice, public: Tensor | None) -> Backbone:
    """Return the backbone with a reference, and so with another fingerprint: it is part of what is
    frozen and approved. On one thread, the same bits on one kind of processor.

    Args:
        public: raw records that anybody has, `(n, …)`; None: features are brought to norm 1 and no
            more.
    """
    net = copy_sharing(backbone.net, lambda parameter: True)
    features = choose_features(backbone, net, choice)
    reference = Reference(count_features(features, choice.example))
    if public is not None:
        reference.load_state_dict(_fit_once(backbone, features, public))
    net.add_module(NAME, reference.eval().requires_grad_(False))
    changed = replace(backbone, net=net)
    return replace(changed, fingerprint=fingerprint_of(backbone_state(changed)))


def _fit_once(backbone: Backbone, features: DepthFeatures, public: Tensor) -> Mapping[str, Tensor]:
    """Return the fitted reference's tensors; what this process has fitted is not fitted again: a
    run opens its backbone several times, and a study in each of its cells.
    """
    content = fingerprint_of({"public": public})
    preparation = json.dumps(backbone.preprocess.to_json(), sort_keys=True)
    key = (backbone.fingerprint, preparation, features.stages, features.pool, content)
    if key not in _FITTED:
        values = compute_features_of(backbone, features, public)
        reference = Reference(values.shape[1])
        reference.fit(values)
        if len(_FITTED) >= MOST_FITTED:
            _FITTED.clear()
        _FITTED[key] = reference.state_dict()
    return _FITTED[key]


@torch.no_grad()
def compute_features_of(backbone: Backbone, features: DepthFeatures, raw: Tensor) -> Tensor:
    """Return the features of raw records `(n, d)`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        parts = [features(backbone.preprocess(part).only) for part in torch.split(raw, AT_ONCE)]
    finally:
        torch.set_num_threads(threads)
    return torch.cat(parts)
