"""Clipped sums of single examples' gradients, in one pass backwards.

    forward: each trained layer keeps its input x
    → one pass backwards to the outputs: g = ∂loss/∂y
    → the norm of each example's gradient from x and g
    → the sum over examples, each scaled by its factor

The book-keeping of Bu et al. 2022 ("Differentially private optimization on large model at small
cost", section 4): no gradient of a parameter is asked of torch, so none is computed for nothing,
and no second pass is needed. Convolutions with LoRA are merged here, however small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.client.privacy.clipping_engine import Drawn, Losses
from fedgraft.client.privacy.example_gradients import Gradient, Rows, clip_and_sum, mean_by_owner
from fedgraft.client.privacy.layer_gradients import Rule, merged_lora, rule_for
from fedgraft.common.adapters.fused import fuse, unfuse
from fedgraft.common.model.grafted_model import GraftedModel


def knows_layers(model: GraftedModel) -> bool:
    """Return whether every layer that the model trains is one of those known here."""
    return all(rule_for(layer) is not None for layer in _trained_layers(model))


@dataclass(frozen=True, eq=False)
class _Call:
    """A trained layer in a forward pass: its rule, its input and its output."""

    rule: Rule
    layer: nn.Module
    x: Tensor
    y: Tensor


class OnePass:
    """Keeps the inputs and outputs of a model's trained layers while it is attached."""

    def __init__(self, model: GraftedModel, losses: Losses, max_norm: float) -> None:
        self._model = model
        self._losses = losses
        self._max_norm = max_norm
        self._calls: list[_Call] = []
        self._hooks: list[Any] = []
        fuse(model.net, always=True)
        merged = [host for host in model.net.modules() if "forward" in host.__dict__]
        inside: set[int] = set()
        for host in merged:
            inside |= {id(layer) for layer in host.modules() if layer is not host}
            self._attach(host, merged_lora)
        for layer in _trained_layers(model):
            if id(layer) in inside:
                continue
            rule = rule_for(layer)
            if rule is None:
                raise RuntimeError(f"no gradients of single examples are known for {layer}")
            self._attach(layer, rule)

    def sums(self, drawn: Drawn) -> dict[Tensor, Tensor]:
        """Return the clipped sums of a batch, by parameter.

        Raises:
            RuntimeError: a layer that was called more than once, or whose first axis is not the
                examples.
        """
        losses = self._losses(self._model(drawn.inputs), drawn.targets)
        calls = self._calls
        self._calls = []
        if len({id(call.layer) for call in calls}) < len(calls):
            raise RuntimeError("a trained layer is called more than once")

        outputs = [call.y for call in calls]
        slopes = torch.autograd.grad(losses.sum(), outputs, allow_unused=True)
        # of stages that were run again on the way back
        self._calls = []
        with torch.no_grad():
            gradients: list[Gradient] = []
            for call, g in zip(calls, slopes, strict=True):
                if g is not None:
                    rows = _count_rows(call, g, len(losses), self._model.slices)
                    own = call.rule(call.layer, call.x.contiguous(), g.contiguous())
                    gradients += [each.join(rows) for each in own]
            if drawn.owners is not None:
                gradients = [_by_owner(each, drawn.owners) for each in gradients]
            return clip_and_sum(gradients, self._max_norm)

    def detach(self) -> None:
        """Leave the model as it was."""
        self._calls = []
        for hook in self._hooks:
            hook.remove()
        unfuse(self._model.net)

    def _attach(self, layer: nn.Module, rule: Rule) -> None:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if torch.is_grad_enabled():
                self._calls.append(_Call(rule, module, inputs[0].detach(), output))

        self._hooks.append(layer.register_forward_hook(keep))


def _count_rows(call: _Call, g: Tensor, examples: int, slices: int | None) -> int:
    """Return how many rows of its first axis a trained layer has for an example: one, or its
    slices. Raise `RuntimeError` for anything else.
    """
    for rows in (1, slices or 1):
        if len(call.x) == len(g) == examples * rows:
            return rows
    raise RuntimeError("a trained layer does not have the examples as its first axis")


def _by_owner(gradient: Gradient, owners: Tensor) -> Rows:
    return Rows(gradient.parameter, mean_by_owner(gradient.rows(), owners))


def _trained_layers(model: GraftedModel) -> list[nn.Module]:
    """Return the modules that hold trainable parameters of their own."""
    layers = []
    for module in model.net.modules():
        own = module._parameters.values()
        if any(p is not None and p.requires_grad for p in own):
            layers.append(module)
    return layers
