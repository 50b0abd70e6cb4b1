"""A plan's model with a direction in its head for each canary, and a node's records with canaries
behind them.

A canary is a blank image (or row) that carries its number; on it the head sees one input of its
own, lit up. So its gradient has a direction that no record and no other canary shares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fedgraft.client.data.examples import Examples
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import GraftedModel, copy_sharing

# a value that no prepared record has; a canary's number is added to it
_CODE = 1.0e6
# of a lit input: its gradient drowns that of the bias and is clipped wherever records' are
_LIGHT = 100.0


class CanaryHead(nn.Module):
    """A linear head with one more input for each canary; what these add to the logits is their
    gradient alone.

    Attributes:
        features: how many inputs the head had.
        canaries: how many more it has.
        lit: inputs `(n, canaries)` of the batch at hand; all zero for a record.
    """

    def __init__(self, head: nn.Linear, canaries: int) -> None:
        super().__init__()
        self.features = head.in_features
        self.canaries = canaries
        self.lit = torch.empty(0)
        self.linear = nn.Linear(head.in_features + canaries, head.out_features)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.weight[:, : self.features] = head.weight
            self.linear.bias.copy_(head.bias)

    def light(self, x: Tensor) -> Tensor:
        """Take the canaries' numbers out of prepared inputs `(n, …)`, and light their inputs."""
        code = x.flatten(1).nan_to_num(0.0).amax(1)
        is_canary = code >= _CODE
        numbers = (code[is_canary] - _CODE).long()
        lit = torch.zeros((len(x), self.canaries), dtype=x.dtype)
        lit[is_canary, numbers] = _LIGHT
        self.lit = lit
        return torch.where(_over_inputs(is_canary, x), 0.0, x)

    def forward(self, features: Tensor) -> Tensor:
        """Features (n, features) → logits (n, classes)."""
        is_canary = self.lit.any(1, keepdim=True)
        features = torch.where(is_canary, 0.0, features)
        logits = self.linear(torch.cat([features, self.lit], dim=1))
        # Without their value a canary is never learnt, and its gradient stays as strong as in the
        # first step.
        value = self.lit @ self.linear.weight[:, self.features :].T
        return logits - value.detach()


@dataclass(frozen=True)
class CanaryModel:
    """A plan's model with a `CanaryHead`; made by `add_canaries`.

        probed = add_canaries(model, 500)
        probed.model(batch)  # (n, classes); canaries may be among the records
        probed.head.linear.weight.grad

    Attributes:
        model: the whole.
        head: its head.
    """

    model: GraftedModel
    head: CanaryHead


def add_canaries(model: GraftedModel, canaries: int) -> CanaryModel:
    """Return a copy of a model with one more input of its head for each canary.

    Raises:
        UserError: a network over images that is given the slices of volumes.
    """
    if model.slices is not None:
        what = "canaries in the slices of volumes are not known"
        remedy = "try the attack on a plan with a 3-D network"
        raise UserError(what, where="backbone.volume.slices", remedy=remedy)
    net = copy_sharing(model.net, lambda parameter: not parameter.requires_grad)
    linear = net.get_submodule(model.head_name)
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"the head is a {type(linear).__name__}")
    head = CanaryHead(linear, canaries)
    net.set_submodule(model.head_name, head)
    probed = GraftedModel(
        net,
        method=model.method,
        options=model.options,
        outputs=model.outputs,
        head_name=model.head_name,
    )
    probed.steps = (head.light, *probed.steps)
    return CanaryModel(probed, head)


def cut_canary_model(probed: CanaryModel) -> CanaryModel:
    """Return the part behind the frozen prefix, which sees activations instead of inputs; the same
    where nothing is frozen there.

    A canary is a blank activation with its number in it. The head shows the layers before it
    nothing of a canary, so its gradient is the same.
    """
    prefix = frozen_prefix(probed.model)
    if prefix is None:
        return probed
    tail = prefix.tail
    tail.steps = (probed.head.light, *tail.steps)
    return CanaryModel(tail, probed.head)


@dataclass(frozen=True, eq=False)
class WithCanaries:
    """A node's examples with some canaries behind them; canary k has label k mod outputs.

        examples = WithCanaries(split, torch.tensor([1, 4]), outputs=2)
        examples.inputs(torch.tensor([0, len(split)]))  # a record and canary 1

    Attributes:
        records: the node's own.
        numbers: of the canaries, int64 `(m,)`.
        outputs: of the model.
        labels: the targets, int64 `(n,)`.
    """

    records: Examples
    numbers: Tensor
    outputs: int
    labels: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        labels = torch.cat([self.records.labels, self.numbers % self.outputs])
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.records) + len(self.numbers)

    def inputs(self, positions: Tensor) -> Batch:
        """Return prepared inputs of these positions `(m,)`: records, and canaries behind them."""
        is_record = positions < len(self.records)
        records = self.records.inputs(positions[is_record])
        numbers = self.numbers[positions[~is_record] - len(self.records)]
        batch = records.empty_like(len(positions))
        for name, values in batch.tensors.items():
            values[is_record] = records.tensors[name]
            codes = _CODE + numbers.to(values.dtype)
            values[~is_record] = _over_inputs(codes, values)
        return batch

    def through(self, change: Callable[[Examples], Examples]) -> Examples:
        """Return the examples with the records changed."""
        return replace(self, records=self.records.through(change))


def _over_inputs(by_record: Tensor, x: Tensor) -> Tensor:
    """Return one value for each record `(n,)` in a shape that spreads over inputs `(n, …)`."""
    return by_record.view(-1, *[1] * (x.ndim - 1))
