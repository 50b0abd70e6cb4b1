"""Sums over entities that came over the wire: read, and held against one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedgraft.common.tasks.entity_sums import (
    LISTS,
    NAMES,
    OUTCOMES,
    STEP,
    EntitySums,
)
from fedgraft.common.tasks.flat_sums import check_keys, read_count, read_count_list, read_loss

# tokens of a text: no preparation reads more
MOST_TOKENS = 8192


def entity_sums_from_flat(flat: Mapping[str, Any], types: int) -> EntitySums:
    """Return the sums that `EntitySums.to_flat` wrote.

    Raises:
        ValueError: keys, types, sizes or values that no predictions could give, or totals that
            disagree.
    """
    check_keys(flat, NAMES)
    lists: dict[str, np.ndarray] = {}
    for name in LISTS:
        length = OUTCOMES * types + 1 if name == "shares" else types
        lists[name] = read_count_list(flat, name, length, least=0)
    sums = EntitySums(
        examples=read_count(flat, "examples"),
        loss=read_loss(flat),
        tokens=read_count(flat, "tokens"),
        right=read_count(flat, "right"),
        **lists,
    )
    if int(sums.shares.sum()) > sums.examples * STEP:
        raise ValueError("shares of more texts than there are")
    if sums.has_only_counts:
        check_nothing_else(sums)
    else:
        check_entities(sums)
    return sums


def check_nothing_else(sums: EntitySums) -> None:
    """Raise `ValueError` where noisy shares come with counts that are exact."""
    exact = (sums.hits, sums.answered, sums.stated)
    if sums.right or any(part.any() for part in exact):
        raise ValueError("entities without a token")
    if int(sums.shares.sum()) <= (sums.examples - 1) * STEP:
        raise ValueError("shares and texts disagree")


def check_entities(sums: EntitySums) -> None:
    """Raise `ValueError` where counts of entities and tokens cannot be of the same texts."""
    if sums.tokens > sums.examples * MOST_TOKENS or sums.right > sums.tokens:
        raise ValueError("tokens, right tokens and texts disagree")
    if (sums.hits > np.minimum(sums.answered, sums.stated)).any():
        raise ValueError("more entities are right than were answered, or than there are")
    if max(int(sums.answered.sum()), int(sums.stated.sum())) > sums.tokens:
        raise ValueError("more entities than tokens")
    mistakes = int((sums.answered + sums.stated - 2 * sums.hits).sum())
    wrong = sums.tokens - sums.right
    # a wrong token breaks an entity that ends before it, one that it is in, on both sides
    if bool(mistakes) != bool(wrong) or mistakes > 4 * wrong:
        raise ValueError("wrong entities and wrong tokens disagree")
    hits, answered, stated = sums.hits, sums.answered, sums.stated
    outcomes = np.stack([hits, answered - hits, stated - hits], axis=1).reshape(-1)
    shares = sums.shares[:-1]
    if (shares > outcomes * STEP).any() or ((shares > 0) != (outcomes > 0)).any():
        raise ValueError("entities and their shares disagree")
