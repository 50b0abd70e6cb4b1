"""The seam of aggregation: what a rule says of itself, and what it is given in a round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
import torch

from fedgraft.common.plan.aggregate_section import AggregateSection
from fedgraft.common.privacy.clipping import State
from fedgraft.common.wire.layout import Layout

S = TypeVar("S")
Memory = dict[str, np.ndarray]
Sight = Literal["single updates", "a sum is enough"]


@dataclass(frozen=True)
class Updates:
    """The checked updates of one round, in the order of the nodes' names.

    Attributes:
        round: its number, from 1.
        layout: names, order and shapes of the adapter's tensors.
        sent: the adapter that the nodes were sent.
        states: the adapter that each of them made of it.
        weights: of the states in an average: the examples behind each, or 1 for every one.
    """

    round: int
    layout: Layout
    sent: State
    states: Sequence[State]
    weights: Sequence[int]

    def flat_sent(self) -> np.ndarray:
        """Return the adapter that was sent, float32 `(values,)`."""
        return flatten(self.sent, self.layout)

    def flat_states(self) -> Iterator[np.ndarray]:
        """Yield each node's adapter, float32 `(values,)`, one at a time: they may be large."""
        for state in self.states:
            yield flatten(state, self.layout)


def flatten(state: State, layout: Layout) -> np.ndarray:
    """Return an adapter's values in the order of its layout, `(values,)`."""
    parts = [state[name].detach().reshape(-1) for name, _ in layout.shapes]
    return torch.cat(parts).cpu().numpy()


def need_one(aggregate: AggregateSection) -> int:
    """Return 1: any number of updates will do."""
    return 1


def remember_nothing(state: object) -> Memory:
    """Return what a rule without memory has for a checkpoint."""
    return {}


def restore_nothing(state: object, memory: Memory) -> None:
    """Take over nothing."""


@dataclass(frozen=True)
class Rule(Generic[S]):
    """One way to make the next shared adapter of a round's updates; a line in `rules.RULES`.

        def combine(state: None, updates: Updates) -> np.ndarray:
            return np.stack(list(updates.flat_states())).max(axis=0)

        LARGEST = Rule(begin=lambda aggregate: None, combine=combine, sees="single updates",
                       is_average=False)

    Attributes:
        begin: makes what the rule keeps during a run, from the plan's `aggregate` section.
        combine: makes the next adapter's values `(values,)` of what it keeps and the updates.
        sees: whether it must see the single updates, or their weighted sum is enough.
        is_average: whether the result is an average of the updates, to which noise can be scaled.
        fewest: the least number of updates that it needs.
        memory: what must survive a restart, for the checkpoint; empty before there is any.
        restore: takes over what `memory` gave.
    """

    begin: Callable[[AggregateSection], S]
    combine: Callable[[S, Updates], np.ndarray]
    sees: Sight
    is_average: bool
    fewest: Callable[[AggregateSection], int] = need_one
    memory: Callable[[S], Memory] = remember_nothing
    restore: Callable[[S, Memory], None] = restore_nothing
