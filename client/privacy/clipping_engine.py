"""What gives the clipped sums of a step: one small protocol, one file an engine.

    client/privacy/linear_head.py     our own, for a linear head alone
    client/privacy/one_pass.py        our own, for layers whose gradients are known here
    client/privacy/opacus_hooks.py    Opacus's hooks, for all other layers
    client/privacy/ghost_clipping.py  Opacus's ghost clipping, where the plan asks for it

`client/privacy/choose_engine.py` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedgraft.common.errors import Code, Refused
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.plan.train_section import TrainSection
from fedgraft.common.tasks.step_losses import Losses, clipped_losses


@dataclass(frozen=True, eq=False)
class Drawn:
    """The examples of one step.

    Attributes:
        inputs: `(n, …)`.
        targets: `(n, …)`.
        owners: which unit each belongs to, `(n,)` numbers from 0; then each owner's mean gradient
            is clipped instead. None: each example is a unit.
    """

    inputs: Batch | Tensor
    targets: Tensor
    owners: Tensor | None = None


def losses_of(task: TaskSection, train: TrainSection) -> Losses:
    """Return a plan's loss by example. Raises `Refused` where its examples do not part.

    A weight bounds nothing: what it makes of an example's gradient is clipped.
    """
    losses = clipped_losses(task, train)
    if losses is None:
        what = f"privacy.mode: sample, and the loss of a {task.question} has no parts by example"
        raise Refused(Code.MODEL, f"{what}; write privacy.mode: local, central or none")
    return losses


class ClippingEngine(Protocol):
    """Per-example gradients of a model that it is attached to.

    engine = attach_engine(model, losses, mechanism)
    sums = engine.sums(Drawn(inputs, targets))
    engine.detach()
    """

    def sums(self, drawn: Drawn) -> dict[Tensor, Tensor]:
        """Return the sum over units of each one's clipped gradient, by parameter.

        A unit whose gradient is not finite counts as zero, and a parameter that is not there has
        the sum zero.
        """
        ...

    def detach(self) -> None:
        """Leave the model as it was."""
        ...
