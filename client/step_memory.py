"""How much memory a training step takes, counted before anything is computed: the step is walked on
`meta`, and every tensor that it makes is counted while it lives.

So gradient checkpointing, a quantized weight that is made and let go, the gradients of single
examples and an optimizer's state are in it as they are in the step. What the arithmetic's own
libraries take for a moment, and what the allocator leaves between tensors, is not.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fedgraft.client.open_on_card import probe_targets, take_private_step, take_step
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.model.frozen_precision import rounded_bytes
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import GraftedModel
from fedgraft.common.model.meta_walk import META, MetaWalk
from fedgraft.common.plan.agreement import Agreement


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a node needs for a step.

    Attributes:
        weights: of the frozen part, as it is kept.
        trained: adapters and head, their gradients and the optimizer's two averages.
        frozen_pass: most of what is alive beside them while the frozen part runs for a batch.
        step: the same in a training step behind it: forward and backward.
    """

    weights: int
    trained: int
    frozen_pass: int
    step: int

    @property
    def in_all(self) -> int:
        """Bytes of all of it, of the larger of the two passes."""
        return self.weights + self.trained + max(self.frozen_pass, self.step)


def count_step(model: GraftedModel, plan: Agreement, inputs: Batch) -> StepMemory:
    """Count what a step of a plan takes for a batch of inputs; the model is not touched.

    Args:
        inputs: prepared ones `(n, …)`, of which the shapes alone are used.
    """
    private = plan.privacy.mode == "sample"
    shapes = copy_shapes(model)
    trained = sum(parameter.nbytes for parameter in shapes.trainable_parameters().values())
    frozen = sum(tensor.nbytes for tensor in shapes.frozen_state().values())
    if shapes.front is not None:
        # there is no autocast on meta: the pass is counted in float32
        frozen += rounded_bytes(shapes.net)
        shapes.front = None
    targets = probe_targets(plan, len(inputs))
    with LiveBytes(shapes.net) as live:
        prefix = frozen_prefix(shapes)
        entering: Tensor = inputs.joined.to(META)
        frozen_pass = 0
        if prefix is not None:
            entering = prefix(entering)
            frozen_pass = live.peak
            live.peak = live.now
            shapes = prefix.tail
        take = take_private_step if private else take_step
        take(shapes, plan, Batch({"x": entering}), targets)
    return StepMemory(frozen, 4 * trained, frozen_pass, live.peak)


def copy_shapes(model: GraftedModel) -> GraftedModel:
    """Return a copy of a model on `meta`, for which no value is copied."""
    shapes: dict[int, Any] = {}
    for parameter in model.parameters():
        on_meta = parameter.detach().to(META)
        shapes[id(parameter)] = nn.Parameter(on_meta, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        shapes[id(buffer)] = buffer.detach().to(META)
    # a deep copy takes what this table says was copied already
    return copy.deepcopy(model, shapes)


class LiveBytes(MetaWalk):
    """Counts the bytes of tensors on `meta` that are alive.

        with LiveBytes(model) as live:
            model(inputs)
        live.peak

    Attributes:
        now, peak: bytes made since it began.

    Args:
        model: whose own tensors are not counted.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        own = (*model.parameters(), *model.buffers())
        self._known = {tensor.untyped_storage()._cdata for tensor in own}

    def keep(self, result: Any) -> Any:
        """Count what an operation made, until it is gone."""
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device == META:
                self._follow(leaf)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, count: int) -> None:
        self._known.discard(key)
        self.now -= count
