"""Whom an attack on membership asks about: members and others that nothing else tells apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedgraft.simulations.attacks.target import NodeData, Target

NOBODY = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Candidates:
    """One node's candidates: first the members, then as many non-members, of the same classes in
    the same order.

        Candidates(rows=np.array([3, 8]), is_member=np.array([True, False]))

    Attributes:
        rows: row numbers of the node's file, int64 `(n,)`.
        is_member: which of them the node trained on, bool `(n,)`.
    """

    rows: np.ndarray
    is_member: np.ndarray


def match_strata(
    members: np.ndarray, others: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of members and of others such that both have each stratum in the same
    proportion.

    Else an attack would win at a node of sick people by calling all sick people members. As many as
    can be are kept.

    Args:
        members, others: the stratum of each, int64 `(m,)` and `(n,)`.
    """
    highest = max(members.max(initial=0), others.max(initial=0))
    strata = int(highest) + 1
    needed = np.bincount(members, minlength=strata)
    there = np.bincount(others, minlength=strata)
    # a stratum that one side lacks tells nothing of membership
    on_both_sides = (needed > 0) & (there > 0)
    ratios = there[on_both_sides] / needed[on_both_sides]
    ratio = ratios.min(initial=np.inf)

    chosen_members = [NOBODY]
    chosen_others = [NOBODY]
    for stratum in np.flatnonzero(on_both_sides):
        chosen_members.append(np.flatnonzero(members == stratum))
        drawn = rng.permutation(np.flatnonzero(others == stratum))
        count = max(1, round(ratio * needed[stratum]))
        chosen_others.append(np.sort(drawn[:count]))
    return np.concatenate(chosen_members), np.concatenate(chosen_others)


def choose_candidates(target: Target, rng: np.random.Generator) -> list[Candidates]:
    """Return as many members as non-members at each node and of each class; as many as there
    are.
    """
    return [_choose_at(target, data, rng) for data in target.nodes]


def _choose_at(target: Target, data: NodeData, rng: np.random.Generator) -> Candidates:
    strata_of_members = target.strata(data.train)
    strata_of_others = target.strata(data.others)
    mine, theirs = match_strata(strata_of_members, strata_of_others, rng)
    strata_of_mine = strata_of_members[mine]
    strata_of_theirs = strata_of_others[theirs]

    members = [NOBODY]
    others = [NOBODY]
    for stratum in np.unique(strata_of_theirs):
        some_members = rng.permutation(mine[strata_of_mine == stratum])
        some_others = rng.permutation(theirs[strata_of_theirs == stratum])
        count = min(len(some_members), len(some_others))
        members.append(some_members[:count])
        others.append(some_others[:count])

    rows_of_members = data.train.rows[np.concatenate(members)]
    rows_of_others = data.others.rows[np.concatenate(others)]
    rows = np.concatenate([rows_of_members, rows_of_others])
    is_member = np.repeat([True, False], [len(rows_of_members), len(rows_of_others)])
    return Candidates(rows, is_member)
