"""Local steps of one node: optimizer, schedule, proximal term, augmentation. Knows nothing of
privacy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.client.data.split import Split
from fedgraft.client.training.optimizers import Steps
from fedgraft.common.plan.plan import Optimizer
from fedgraft.common.tasks.classification_sums import Sums, sums_of, zero


@dataclass(frozen=True)
class Trained:
    """What local training did: optimizer steps and the mean cross-entropy over the examples seen,
    in nats.
    """

    steps: int
    loss: float


def train(
    model: nn.Module,
    split: Split,
    *,
    epochs: int,
    batch_size: int,
    optimizer: Steps,
    proximal: float,
    augment: str,
    generator: torch.Generator,
    adjustment: Tensor | None = None,
) -> Trained:
    """Minimise cross-entropy for `epochs` passes over a split, in place.

    The model stays in eval mode: a frozen BatchNorm must not absorb private data into its buffers.

    Args:
        proximal: μ of FedProx (Li et al. 2020, eq. 2): adds μ/2 · ‖w − w_received‖² to the loss.
        generator: the only source of randomness (order of examples, augmentation).
        adjustment: `(classes,)`, added to the logits inside the loss; see `log_shares`.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    received = [parameter.detach().clone() for parameter in trainable] if proximal else []
    steps, loss_sum, seen = 0, 0.0, 0
    for _ in range(epochs):
        for inputs, labels in split.shuffled(batch_size, generator):
            logits = model(augmented(inputs, augment, generator))
            loss = F.cross_entropy(logits if adjustment is None else logits + adjustment, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            # The proximal gradient μ(w − w_received), added directly: no graph is needed for it.
            for parameter, start in zip(trainable, received, strict=False):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - start, alpha=proximal)
            optimizer.step()
            steps += 1
            loss_sum += float(loss.detach()) * len(labels)
            seen += len(labels)
    return Trained(steps=steps, loss=loss_sum / max(seen, 1))


def log_shares(labels: Tensor, classes: int) -> Tensor:
    """Logarithm of each class's share of a node's own labels, `(classes,)`; −∞ for a class that it
    does not have.

    Added to the logits inside the loss, it makes them learn log p(x | class) and not log p(class |
    x): the node's own shares, which differ from the next one's, stay out of the shared model
    (balanced softmax: Ren et al. 2020, eq. 4; at federated nodes: Zhang et al. 2022, "Federated
    learning with label distribution skew via logits calibration"). The model then takes all classes
    for equally frequent. A class that a node does not have is not learnt to be absent.
    """
    return (torch.bincount(labels, minlength=classes) / max(len(labels), 1)).log()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    split: Split,
    classes: int,
    look: Callable[[Tensor], None] = lambda logits: None,
    *,
    silent: bool = False,
) -> Sums:
    """Metric sums of a model over a split; `examples` is 0 where the split is empty.

    Args:
        look: is shown the logits `(n, classes)` of each batch, in the split's order.
        silent: a record whose logits are not finite counts as if all were 0. Under differential
            privacy: a server could send a model that overflows on certain records only, and a
            refusal would tell that they are there.

    Raises:
        Refused: logits that are not finite, unless `silent`.
    """
    total = zero(classes)
    for inputs, labels in split.in_order():
        logits = model(inputs)
        if silent:
            logits = logits.where(torch.isfinite(logits).all(1, keepdim=True), 0.0)
        look(logits)
        total = total + sums_of(logits, labels)
    return total


def build_optimizer(model: nn.Module, chosen: Optimizer, lr: float) -> torch.optim.Optimizer:
    """The plan's optimizer over what is trainable, at this round's learning rate."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if chosen.name == "sgd":
        return torch.optim.SGD(
            trainable, lr=lr, momentum=chosen.momentum, weight_decay=chosen.weight_decay
        )
    kind = torch.optim.AdamW if chosen.name == "adamw" else torch.optim.Adam
    return kind(trainable, lr=lr, weight_decay=chosen.weight_decay)


def learning_rate(base: float, schedule: str, round_: int, rounds: int) -> float:
    """Learning rate of a round (from 1): constant, or half a cosine from `base` towards 0 over the
    rounds.
    """
    if schedule == "constant":
        return base
    return base * 0.5 * (1 + math.cos(math.pi * (round_ - 1) / rounds))


def augmented(inputs: Tensor, augment: str, generator: torch.Generator) -> Tensor:
    """Flip, or flip and crop (4 pixels of padding), images `(batch, channels, H, W)`; drawn from
    `generator`.
    """
    if augment == "none":
        return inputs
    flip = torch.rand(len(inputs), generator=generator) < 0.5
    inputs = torch.where(flip[:, None, None, None], inputs.flip(-1), inputs)
    if augment == "flip":
        return inputs
    size, pad = inputs.shape[-1], 4
    padded = F.pad(inputs, (pad, pad, pad, pad))
    corners = torch.randint(0, 2 * pad + 1, (len(inputs), 2), generator=generator).tolist()
    crops = [
        image[:, y : y + size, x : x + size] for image, (y, x) in zip(padded, corners, strict=True)
    ]
    return torch.stack(crops)
