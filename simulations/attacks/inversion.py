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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.split import Split
from fedgraft.common.errors import UserError
from fedgraft.common.inputs import input_line
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.inputs.material import Preparation
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.plan.plan import Plan
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.simulations.attacks.gradients import ObservedStep, observe_step
from fedgraft.simulations.attacks.image_search import (
    Observation,
    PublicImages,
    search_images,
)
from fedgraft.simulations.attacks.similarity import psnr, ssim
from fedgraft.simulations.attacks.target import NodeData, open_target

# that are attacked
IMAGES = 4
# images in a batch
TOGETHER = 1
# of SSIM, by which an image has to be closer than the mean image
CLOSER = 0.02


def invert_gradients(
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
    line = input_line(plan.task.material)
    if not line.has_pixels or line.has_columns:
        remedy = "leave it out for tables"
        raise UserError("inversion is for images", where="attacks", remedy=remedy)
    target = open_target(plan, run, nodes)
    randomness = Randomness(b"inversion" + seed.to_bytes(8, "little"))
    step = observe_step(target, 0, randomness)
    target.model.load_adapter_state(target.first)
    data = target.nodes[0]
    preparation = _preparation_of_images(target.backbone.preprocess)
    order = np.random.default_rng([seed, 4]).permutation(len(data.train))
    chosen = order[:images]

    truth = _as_seen(data.train, chosen, preparation)
    everybody = np.arange(len(data.others))
    public = _as_seen(data.others, everybody, preparation)
    prior = PublicImages.of(public, preparation)
    guesses = []
    for start in range(0, len(chosen), together):
        positions = torch.from_numpy(chosen[start : start + together])
        labels = data.train.labels[positions]
        released = step.release(data.train.inputs(positions), labels)
        observed = Observation(released, labels)
        generator = torch.Generator().manual_seed(seed)
        guesses.append(search_images(step, observed, prior, generator=generator))
    mean = public.mean(0)
    likeness = _compare(torch.cat(guesses), truth, mean)
    recovered = _recover_features(step, data, chosen)
    return {
        "kind": "inversion",
        "node": data.node.name,
        "images": len(chosen),
        "together": together,
        **likeness,
        **recovered,
    }


# ── images ────────────────────────────────────────────────────────────────────────────────────────
def _preparation_of_images(preparation: Preparation) -> Preprocess:
    if not isinstance(preparation, Preprocess):
        raise TypeError(f"{type(preparation).__name__} does not prepare images")
    return preparation


def _as_seen(split: Split, positions: np.ndarray, preparation: Preprocess) -> Tensor:
    """Return images as the model sees them, on 0–1: `(n, C, side, side)`, C = 1 where they are
    grey.
    """
    prepared = split.inputs(torch.from_numpy(positions)).only
    mean = torch.tensor(preparation.mean).view(1, -1, 1, 1)
    std = torch.tensor(preparation.std).view(1, -1, 1, 1)
    channels = split.records.read(split.rows[:1]).shape[1]
    images = prepared * std + mean
    return images[:, :channels].clamp(0, 1)


def _compare(guesses: Tensor, truth: Tensor, mean: Tensor) -> dict[str, Any]:
    """Return how like the truth the guesses are, and how like it the mean image is.

    Args:
        guesses, truth: images `(n, C, H, W)` on 0–1.
        mean: of public images `(C, H, W)`.
    """
    of_guesses = []
    of_mean = []
    noise_of_guesses = []
    noise_of_mean = []
    for guess, image in zip(guesses, truth, strict=True):
        of_guesses.append(ssim(guess, image))
        of_mean.append(ssim(mean, image))
        noise_of_guesses.append(psnr(guess, image))
        noise_of_mean.append(psnr(mean, image))
    needed = np.array(of_mean) + CLOSER
    is_better = np.array(of_guesses) > needed
    return {
        "ssim": _average(of_guesses),
        "ssim_mean": _average(of_mean),
        "psnr": _average(noise_of_guesses),
        "psnr_mean": _average(noise_of_mean),
        "better": int(is_better.sum()),
    }


def _average(values: Sequence[float]) -> float:
    return float(np.mean(values))


# ── the head's inputs ─────────────────────────────────────────────────────────────────────────────
def read_head_input(model: GraftedModel, gradient: Sequence[Tensor]) -> Tensor:
    """Return what the head was given, `(features,)`, from the gradient of one record: exact where
    nothing is noised.
    """
    by_name = dict(zip(model.trainable_parameters(), gradient, strict=True))
    weight = by_name[f"{model.head_name}.weight"]
    bias = by_name[f"{model.head_name}.bias"]
    row = int(bias.abs().argmax())
    return weight[row] / bias[row]


def _recover_features(
    step: ObservedStep, data: NodeData, positions: np.ndarray
) -> dict[str, float]:
    """Return relative errors of the head's inputs, medians over single records: as read off the
    gradient, and of their mean over public records.
    """
    everybody = torch.arange(len(data.others))
    public = _features(step.model, data.others.inputs(everybody))
    mean = public.mean(0)
    errors = []
    errors_of_mean = []
    for position in positions:
        record = torch.tensor([position])
        batch = data.train.inputs(record)
        released = step.release(batch, data.train.labels[record])
        features = _features(step.model, batch)[0]
        guess = read_head_input(step.model, released)
        errors.append(_relative_error(guess, features))
        errors_of_mean.append(_relative_error(mean, features))
    return {
        "features": float(np.median(errors)),
        "features_mean": float(np.median(errors_of_mean)),
    }


def _relative_error(guess: Tensor, truth: Tensor) -> float:
    error = (guess - truth).norm() / truth.norm()
    return float(error)


@torch.no_grad()
def _features(model: GraftedModel, batch: Batch) -> Tensor:
    """Return the inputs of the head, `(n, features)`."""
    seen: list[Tensor] = []
    head = model.net.get_submodule(model.head_name)
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model(batch)
    finally:
        handle.remove()
    return seen[0].cpu()
