"""Entities as tags of tokens, IOB2 (Tjong Kim Sang and Veenstra 1999, "Representing text chunks"):
0 is outside, 1 + 2 t begins an entity of type t, 2 + 2 t goes on with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedgraft.common.tasks.entity_spans import Entity

# of a place that holds no token of the text
NO_TAG = -1
OUTSIDE = 0

# where a token lies in its text, (start, end); None: it is none of the text's
Place = tuple[int, int] | None


def count_tags(types: int) -> int:
    """Return how many tags there are."""
    return 2 * types + 1


def begin(type_: int) -> int:
    """Return the tag of a token that begins an entity."""
    return 1 + 2 * type_


def go_on(type_: int) -> int:
    """Return the tag of a token that goes on with an entity."""
    return 2 + 2 * type_


# ── texts ↔ tokens ────────────────────────────────────────────────────────────────────────────────
def tag_tokens(places: Sequence[Place], entities: Sequence[Entity]) -> list[int]:
    """Return the tag of each token.

    A token is of the entity that it shares most characters with, the first of equal ones.
    """
    tags: list[int] = []
    before: Entity | None = None
    for place in places:
        if place is None:
            tags.append(NO_TAG)
            continue
        entity = _find_entity(place, entities)
        if entity is None:
            tags.append(OUTSIDE)
        elif entity is before:
            tags.append(go_on(entity.type))
        else:
            tags.append(begin(entity.type))
        before = entity
    return tags


def _find_entity(place: tuple[int, int], entities: Sequence[Entity]) -> Entity | None:
    most = 0
    found: Entity | None = None
    for entity in entities:
        shared = min(place[1], entity.end) - max(place[0], entity.start)
        if shared > most:
            most = shared
            found = entity
    return found


def find_spans(tags: Sequence[int], places: Sequence[Place], text: str) -> list[Entity]:
    """Return the entities of a text that its tokens' tags say, without blanks at their ends.

    Args:
        tags: of all tokens; those of tokens that are none of the text's are passed over.
    """
    own = [place for place in places if place is not None]
    kept = [tag for tag, place in zip(tags, places, strict=False) if place is not None]
    found: list[Entity] = []
    for entity in list_entities(kept):
        start = own[entity.start][0]
        end = own[entity.end - 1][1]
        inside = text[start:end]
        start += len(inside) - len(inside.lstrip())
        end -= len(inside) - len(inside.rstrip())
        if start < end:
            found.append(Entity(start, end, entity.type))
    return found


# ── tags → entities ───────────────────────────────────────────────────────────────────────────────
def list_entities(tags: Sequence[int]) -> list[Entity]:
    """Return the entities of a sequence of tags, by tokens; strictly: what goes on with nothing is
    none, as `seqeval` has it in its strict mode for IOB2.
    """
    found: list[Entity] = []
    for number, tag in enumerate(tags):
        if tag <= OUTSIDE:
            continue
        type_ = (tag - 1) // 2
        if tag == begin(type_):
            found.append(Entity(number, number + 1, type_))
        elif found and found[-1].end == number and found[-1].type == type_:
            found[-1] = Entity(found[-1].start, number + 1, type_)
    return found


def best_tags(logits: Tensor) -> Tensor:
    """Return the likeliest sequence of tags in which nothing goes on that has not begun, int64
    `(n, tokens)`: the path of Viterbi (1967) over log-probabilities of tokens.

    Args:
        logits: `(n, tokens, tags)`. Tokens that are none of the text's should say "outside".
    """
    scores = logits.detach().log_softmax(-1)
    allowed = follow_rules(scores.shape[-1]).to(scores.device)
    forbidden = torch.zeros(allowed.shape, dtype=scores.dtype).masked_fill(~allowed, -torch.inf)
    best = scores[:, 0] + forbidden[OUTSIDE]
    came_from: list[Tensor] = []
    for number in range(1, scores.shape[1]):
        # (n, tag before, tag)
        best, before = (best[:, :, None] + forbidden).max(1)
        best = best + scores[:, number]
        came_from.append(before)
    tag = best.argmax(1)
    path = [tag]
    for before in reversed(came_from):
        tag = before.gather(1, tag[:, None])[:, 0]
        path.append(tag)
    return torch.stack(path[::-1], dim=1)


def follow_rules(tags: int) -> Tensor:
    """Return which tag may follow which, bool `(tags, tags)`: only what begins or goes on with a
    type goes on with it.
    """
    allowed = torch.ones(tags, tags, dtype=torch.bool)
    for type_ in range(tags // 2):
        allowed[:, go_on(type_)] = False
        allowed[begin(type_), go_on(type_)] = True
        allowed[go_on(type_), go_on(type_)] = True
    return allowed
