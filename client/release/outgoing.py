"""An adapter on its way out, and what it is released under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from fedgraft.client.privacy.mechanism import Mechanism
from fedgraft.client.store.error_feedback import Feedback
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.privacy.clipping import apply_update, update_of
from fedgraft.common.privacy.randomness import Randomness
from fedgraft.common.wire.layout import Layout


@dataclass(frozen=True)
class ReleaseTerms:
    """What an update is released under.

    Attributes:
        plan: what was agreed on.
        round: number of the round, from 1.
        clip: L2 norm that mode central clips to in this round.
        mechanism: the noisy step of mode local; None in other modes.
        randomness: of its noise.
        layout: of the adapter on the wire; with `memory` where updates are encoded.
        memory: what rounding lost in earlier rounds.
    """

    plan: Agreement
    round: int
    clip: float | None = None
    mechanism: Mechanism | None = None
    randomness: Randomness | None = field(default=None, repr=False)
    layout: Layout | None = None
    memory: Feedback | None = None


@dataclass(frozen=True)
class Outgoing:
    """An adapter after local training.

    Attributes:
        trained: the adapter's tensors by name.
        received: the adapter that training began with.
        update: how far they are apart, once a step has changed that; None: as trained.
        encoded: what travels instead of the adapter; None: the adapter itself.
    """

    trained: Mapping[str, Tensor]
    received: Mapping[str, Tensor]
    update: dict[str, Tensor] | None = None
    encoded: np.ndarray | None = None

    def difference(self) -> dict[str, Tensor]:
        """Return how far the adapter is from the one received."""
        if self.update is not None:
            return self.update
        return update_of(self.trained, self.received)

    def state(self) -> dict[str, Tensor]:
        """Return the adapter that leaves."""
        if self.update is None:
            return dict(self.trained)
        return apply_update(self.received, self.update)
