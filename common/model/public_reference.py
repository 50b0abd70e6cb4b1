"""A backbone with a public reference for the features that a plan chooses."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedgraft.common.backbones.backbone import Backbone, backbone_state
from fedgraft.common.backbones.reference import NAME, Reference
from fedgraft.common.files.tensor_files import fingerprint_of
from fedgraft.common.model.depth_features import DepthFeatures, count_features
from fedgraft.common.model.grafted_model import DepthChoice, choose_features, copy_sharing

AT_ONCE = 32


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
        reference.fit(compute_features_of(backbone, features, public))
    net.add_module(NAME, reference.eval().requires_grad_(False))
    changed = replace(backbone, net=net)
    return replace(changed, fingerprint=fingerprint_of(backbone_state(changed)))


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
