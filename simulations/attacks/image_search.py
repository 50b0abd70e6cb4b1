"""The search for images whose gradient points as an observed one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from fedgraft.common.inputs.image import Preprocess
from fedgraft.simulations.attacks.gradients import ObservedStep


@dataclass(frozen=True)
class Observation:
    """What an attacker saw of a step.

        Observation(step.release(batch, labels), labels)

    Attributes:
        gradient: the mean gradient, in the order of `model.trainable_parameters()`.
        labels: of the images `(n,)`, known (see `fedgraft.simulations.attacks.label_leakage`).
    """

    gradient: Sequence[Tensor]
    labels: Tensor


@dataclass(frozen=True)
class PublicImages:
    """What an attacker knows of images of the same kind; made by `PublicImages.of`.

        prior = PublicImages.of(images, backbone.preprocess)
        prior.draw(torch.zeros(1, len(prior.components)))  # the mean image

    Attributes:
        mean: of all images, flat `(values,)`.
        components: principal components `(k, values)`, each as long as its standard deviation.
        shape: of one image, (C, H, W).
        preparation: how the model takes images on 0–1: without resizing.
    """

    mean: Tensor
    components: Tensor
    shape: tuple[int, ...]
    preparation: Preprocess

    @classmethod
    def of(cls, images: Tensor, preparation: Preprocess) -> PublicImages:
        """Return what two images or more tell.

        Args:
            images: as the model sees them, `(m, C, H, W)` on 0–1.
            preparation: how the model takes images.
        """
        flat = images.flatten(1)
        mean = flat.mean(0)
        _, spread, directions = torch.linalg.svd(flat - mean, full_matrices=False)
        freedom = len(images) - 1
        count = min(freedom, len(directions))
        deviations = spread[:count, None] / freedom**0.5
        components = directions[:count] * deviations
        unresized = replace(preparation, size=None, crop=None)
        return cls(mean, components, tuple(images.shape[1:]), unresized)

    def draw(self, weights: Tensor) -> Tensor:
        """Return the images `(n, C, H, W)` on 0–1 with these weights of the components `(n, k)`."""
        flat = self.mean + (weights @ self.components)
        return flat.view(-1, *self.shape).clamp(0, 1)


@dataclass(frozen=True)
class Search:
    """How images are searched for.

    Attributes:
        steps: of Adam.
        rate: of Adam, in standard deviations of a component; falls to nothing as half a cosine.
        smooth: weight of the total variation.
        prior: weight of the mean square of the components, in their standard deviations.
        start: deviation of the first weights, so that several images differ.
    """

    steps: int = 150
    rate: float = 0.1
    smooth: float = 1e-4
    prior: float = 1e-4
    start: float = 0.01


def search_images(
    step: ObservedStep,
    observed: Observation,
    public: PublicImages,
    *,
    generator: torch.Generator,
    search: Search = Search(),
) -> Tensor:
    """Return images `(n, C, H, W)` on 0–1 whose gradient points as the observed one does.

    Args:
        generator: of the first weights.
    """
    shape = (len(observed.labels), len(public.components))
    weights = search.start * torch.randn(shape, generator=generator)
    weights.requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=search.rate)
    schedule = CosineAnnealingLR(optimizer, search.steps)
    head = _numbers_of_head(step)
    head_observed = [observed.gradient[number] for number in head]

    for _ in range(search.steps):
        images = public.draw(weights)
        batch = public.preparation(images)
        gradient = step.gradient(batch, observed.labels, graph=True)
        head_gradient = [gradient[number] for number in head]
        apart = distance(gradient, observed.gradient)
        head_apart = distance(head_gradient, head_observed)
        rough = search.smooth * total_variation(images)
        unlikely = search.prior * weights.square().mean()
        loss = apart + head_apart + rough + unlikely
        (slope,) = torch.autograd.grad(loss, [weights])
        weights.grad = slope.sign()
        optimizer.step()
        schedule.step()
    return public.draw(weights).detach()


def _numbers_of_head(step: ObservedStep) -> list[int]:
    """Return which of the gradient's parts are the head's."""
    names = step.model.trainable_parameters()
    head_name = step.model.head_name
    return [number for number, name in enumerate(names) if name.startswith(head_name)]


def distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Return 1 − cosine of the angle between two gradients, each given in parts."""
    products = [(one * other).sum() for one, other in zip(some, others, strict=True)]
    dot = torch.stack(products).sum()
    squares = _squared_norm(some) * _squared_norm(others)
    return 1 - dot / squares.sqrt()


def _squared_norm(parts: Sequence[Tensor]) -> Tensor:
    squares = torch.stack([part.square().sum() for part in parts])
    return squares.sum().clamp_min(1e-24)


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours of images (n, C, H, W), down and across
    together.
    """
    down = images.diff(dim=-2).abs().mean()
    across = images.diff(dim=-1).abs().mean()
    return down + across
