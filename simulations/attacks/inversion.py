"""Gradient inversion: from the gradient of a few images back to the images.

Geiping, Bauermeister, Dröge and Moeller, "Inverting gradients: how easy is it to break privacy in
federated learning?" (NeurIPS 2020): find images whose gradient points the same way (1 − cosine) and
that are smooth (total variation), by Adam on the sign of the gradient. Two things make the attacker
stronger: the head's part of the gradient, drowned by the others, counts once more by itself; and
they search the principal components of public images, from their mean. That mean is also what the
attack is measured against: whoever has no gradient can show it. What is sought, and compared, is
the image as the model sees it.

A linear head gives its input away without any search: with one record ∂L/∂W = (∂L/∂b) hᵀ, so that h
is the quotient of a row of the first by an entry of the second (Phong et al. 2018, section III).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.split import Split
from fedgraft.client.privacy.dp_sgd import Randomness
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.plan import Plan
from fedgraft.simulations.attacks.gradients import gradient, mechanism_of, released
from fedgraft.simulations.attacks.similarity import psnr, ssim
from fedgraft.simulations.attacks.target import open_target

IMAGES = 4  # that are attacked
TOGETHER = 1  # images in a batch
STEPS = 150
RATE = 0.1  # in standard deviations of a component
SMOOTH = 1e-4  # weight of the total variation
PRIOR = 1e-4  # weight of the mean square of the components, in their standard deviations


def inversion(
    plan: Plan,
    run: Path,
    nodes: Sequence[Path],
    seed: int,
    *,
    images: int = IMAGES,
    together: int = TOGETHER,
) -> dict[str, Any]:
    """Invert gradients of the first node's images at the model that every node starts from.

    Args:
        images: how many, in batches of `together`.

    Returns:
        ssim, psnr: means over the images; ssim_mean, psnr_mean: of the mean image; better: on how
            many images the attack's SSIM is above the mean image's by more than 0.02; features:
            relative error of the head's inputs from single images, features_mean: of the mean
            features.

    Raises:
        UserError: no finished run there, or one of tables.
    """
    if plan.task.kind != "image-classification":
        raise UserError(
            "inversion is for images", where="attacks", remedy="leave it out for tables"
        )
    target = open_target(plan, run, nodes)
    data, mechanism = target.nodes[0], mechanism_of(target, 0)
    rng = np.random.default_rng([seed, 4])
    chosen = rng.permutation(len(data.train))[:images]
    randomness = Randomness(b"inversion" + seed.to_bytes(8, "little"))
    preprocess = target.backbone.preprocess
    truth = _as_seen(data.train, chosen, preprocess)
    public = _as_seen(data.others, np.arange(len(data.others)), preprocess)
    mean = public.mean(0)
    target.model.load_adapter_state(target.first)

    found = []
    for start in range(0, len(chosen), together):
        rows = torch.from_numpy(chosen[start : start + together])
        observed = released(
            target.model, data.train.inputs(rows), data.train.labels[rows], mechanism, randomness
        )
        found.append(
            invert(
                target.model,
                replace(preprocess, size=None, crop=None),
                observed,
                data.train.labels[rows],
                public=public,
                generator=torch.Generator().manual_seed(seed),
            )
        )
    guessed = torch.cat(found)
    ours = np.array([ssim(a, b) for a, b in zip(guessed, truth, strict=True)])
    means = np.array([ssim(mean, b) for b in truth])

    errors, baseline = [], []
    others = _features(target.model, data.others.inputs(torch.arange(len(data.others)))).mean(0)
    for row in chosen:
        at = torch.tensor([row])
        inputs, labels = data.train.inputs(at), data.train.labels[at]
        seen = released(target.model, inputs, labels, mechanism, randomness)
        wanted = _features(target.model, inputs)[0]
        errors.append(float((head_input(target.model, seen) - wanted).norm() / wanted.norm()))
        baseline.append(float((others - wanted).norm() / wanted.norm()))
    return {
        "kind": "inversion",
        "node": data.node.name,
        "images": len(chosen),
        "together": together,
        "ssim": float(ours.mean()),
        "ssim_mean": float(means.mean()),
        "psnr": float(np.mean([psnr(a, b) for a, b in zip(guessed, truth, strict=True)])),
        "psnr_mean": float(np.mean([psnr(mean, b) for b in truth])),
        "better": int((ours > means + 0.02).sum()),
        "features": float(np.median(errors)),
        "features_mean": float(np.median(baseline)),
    }


def invert(
    model: GraftedModel,
    preprocess: Preprocess,
    observed: Sequence[Tensor],
    labels: Tensor,
    *,
    public: Tensor,
    generator: torch.Generator,
    steps: int = STEPS,
    smooth: float = SMOOTH,
    rate: float = RATE,
) -> Tensor:
    """Images `(n, C, H, W)` on 0–1 whose gradient points as the observed one does.

    Args:
        observed: the mean gradient, in the order of `model.trainable_parameters()`.
        labels: of the images `(n,)`, known (see `fedgraft.simulations.attacks.labels`).
        public: images `(m, C, H, W)` on 0–1 of the same kind, two or more.
        preprocess: how the model takes images on 0–1: without resizing.
        rate: of Adam, in standard deviations of a component; falls to nothing as half a cosine.
    """
    mean, components = _principal(public)
    inner = 0.01 * torch.randn(
        (len(labels), len(components)), generator=generator
    )  # so that several differ
    inner.requires_grad_()
    optimizer = torch.optim.Adam([inner], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    head = [
        at
        for at, name in enumerate(model.trainable_parameters())
        if name.startswith(model.head_name)
    ]

    def images() -> Tensor:
        return (mean + (inner @ components)).view(-1, *public.shape[1:]).clamp(0, 1)

    for _ in range(steps):
        guess = images()
        mine = gradient(model, preprocess(guess), labels, graph=True)
        apart = distance(mine, observed) + distance(
            [mine[at] for at in head], [observed[at] for at in head]
        )
        loss = apart + smooth * total_variation(guess) + PRIOR * inner.square().mean()
        (slope,) = torch.autograd.grad(loss, [inner])
        inner.grad = slope.sign()
        optimizer.step()
        schedule.step()
    return images().detach()


def _principal(public: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(values,)` and principal components `(k, values)`, each as long as its standard
    deviation.
    """
    flat = public.flatten(1)
    mean = flat.mean(0)
    _, spread, components = torch.linalg.svd(flat - mean, full_matrices=False)
    kept = min(len(public) - 1, len(components))
    return mean, components[:kept] * (spread[:kept, None] / (len(public) - 1) ** 0.5)


def distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """1 − cosine of the angle between two gradients, each given in parts."""
    dot = torch.stack([(a * b).sum() for a, b in zip(some, others, strict=True)]).sum()
    squares = [
        torch.stack([a.square().sum() for a in side]).sum().clamp_min(1e-24)
        for side in (some, others)
    ]
    return 1 - dot / (squares[0] * squares[1]).sqrt()


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours of images (n, C, H, W), down and across together."""
    return images.diff(dim=-2).abs().mean() + images.diff(dim=-1).abs().mean()


def head_input(model: GraftedModel, observed: Sequence[Tensor]) -> Tensor:
    """What the head was given, `(features,)`, from the gradient of one record: exact where nothing
    is noised.
    """
    named = dict(zip(model.trainable_parameters(), observed, strict=True))
    weight, bias = named[f"{model.head_name}.weight"], named[f"{model.head_name}.bias"]
    row = int(bias.abs().argmax())
    return weight[row] / bias[row]


@torch.no_grad()
def _features(model: GraftedModel, inputs: Tensor) -> Tensor:
    """Inputs of the head, `(n, features)`."""
    seen: list[Tensor] = []
    handle = model.net.get_submodule(model.head_name).register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    try:
        model(inputs)
    finally:
        handle.remove()
    return seen[0]


def _as_seen(split: Split, positions: np.ndarray, preprocess: Preprocess) -> Tensor:
    """Images as the model sees them, on 0–1: `(n, C, side, side)`, C = 1 where they are grey."""
    prepared = split.inputs(torch.from_numpy(positions))
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1) for values in (preprocess.mean, preprocess.std)
    )
    channels = split.records.read(split.rows[:1]).shape[1]
    return (prepared * std + mean)[:, :channels].clamp(0, 1)
