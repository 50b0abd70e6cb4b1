"""Which words are what? Entities in a text: names, dates, drugs; tags of tokens say where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.inputs.material import Preparation
from fedgraft.common.inputs.text import TextPreparation
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.entity_spans import Entity, read_entities, write_entities
from fedgraft.common.tasks.entity_sums import EntitySums, answer_tags, sums_of, token_losses, zero
from fedgraft.common.tasks.entity_sums_from_wire import entity_sums_from_flat
from fedgraft.common.tasks.entity_tags import NO_TAG, begin, find_spans, tag_tokens
from fedgraft.common.tasks.task import LabelledSource, Task
from fedgraft.common.tasks.token_closed_form import TOKEN_HEAD, tags_of


# ── entities as the data have them ────────────────────────────────────────────────────────────────
def read_source(
    source: LabelledSource, task: TaskSection, rows: Sequence[int]
) -> list[list[Entity]]:
    """Return the entities of some texts. Raise `UserError` as `read_entities`, or where there are
    no texts.
    """
    if source.texts is None:
        what = "records without texts, and entities lie in texts"
        remedy = "give a table (.csv, .parquet or .jsonl) with a column of texts"
        raise UserError(what, where=source.where, remedy=remedy)
    names = [str(label) for label in task.labels or task.classes]
    found: list[list[Entity]] = []
    for row in rows:
        cell = str(source.labels[row])
        found.append(read_entities(cell, source.texts[row], names, source.place(row)))
    return found


def count_entities(source: LabelledSource, task: TaskSection) -> np.ndarray:
    """Return how many entities of each type each text has, int64 `(n, k)`. Raise as
    `read_source`.
    """
    counts = np.zeros((len(source.labels), len(task.classes)), np.int64)
    for row, entities in enumerate(read_source(source, task, range(len(source.labels)))):
        for entity in entities:
            counts[row, entity.type] += 1
    return counts


def find_rarest_type(counts: np.ndarray, task: TaskSection) -> np.ndarray:
    """Return of each text the type that fewest texts have, of those that it has, counted from 1; 0:
    it has none. Splits and partitions deal by it.
    """
    there = counts > 0
    strata = np.zeros(len(counts), np.int64)
    by_rarity = np.argsort(there.sum(0), kind="stable")
    for type_ in by_rarity[::-1].tolist():
        strata[there[:, type_]] = type_ + 1
    return strata


def align_tags(
    source: LabelledSource, rows: np.ndarray, preparation: Preparation, task: TaskSection
) -> Tensor:
    """Return the tag of each token of some texts, int64 `(n, max_length)`; −1 behind the end of a
    text, and where the tokenizer puts a token around it.

    What lies behind the end of a text that is cut is lost, its entities with it.
    """
    prepared = as_texts(preparation)
    tags = torch.full((len(rows), prepared.max_length), NO_TAG, dtype=torch.int64)
    texts: Sequence[str] = source.texts or []
    entities = read_source(source, task, rows.tolist())
    for number, row in enumerate(rows.tolist()):
        text: str = texts[int(row)]
        own = tag_tokens(prepared.locate(text), entities[number])
        tags[number, : len(own)] = torch.tensor(own, dtype=torch.int64)
    return tags


def as_texts(preparation: Preparation) -> TextPreparation:
    """Return the preparation of texts. Raise `UserError` for another material's."""
    if isinstance(preparation, TextPreparation):
        return preparation
    what = "entities lie in texts, and this backbone reads something else"
    raise UserError(what, where="backbone.name", remedy="write `name: huggingface`")


# ── answers ───────────────────────────────────────────────────────────────────────────────────────
def locate_entities(
    logits: Tensor, texts: Sequence[str], preparation: Preparation, task: TaskSection
) -> list[str]:
    """Return the entities of each text as spans of its characters, `12:18:NAME|30:35:DATE`."""
    found = find_answers(logits, texts, preparation)
    return [write_entities(entities, task.classes) for entities in found]


def find_answers(
    logits: Tensor, texts: Sequence[str], preparation: Preparation
) -> list[list[Entity]]:
    """Return the entities that a model's outputs say of each text."""
    prepared = as_texts(preparation)
    places = [prepared.locate(text) for text in texts]
    here = torch.zeros(logits.shape[:2], dtype=torch.bool)
    for row, own in enumerate(places):
        here[row, : len(own)] = torch.tensor([place is not None for place in own], dtype=torch.bool)
    tags = answer_tags(logits.detach().to("cpu", torch.float64), here).tolist()
    found: list[list[Entity]] = []
    for row, text in enumerate(texts):
        found.append(find_spans(tags[row], places[row], text))
    return found


def tell_nothing(logits: Tensor, task: TaskSection) -> Tensor:
    """Return no columns `(n, 0)`: what there is to tell is where entities are."""
    return logits.new_zeros(len(logits), 0)


def tell_sums(logits: Tensor, tags: Tensor, task: TaskSection) -> EntitySums:
    """Return the sums of a batch of predictions. Raise `Refused` as `sums_of`."""
    return sums_of(logits, tags)


def read_sums(flat: Mapping[str, Any], task: TaskSection) -> EntitySums:
    """Return sums from the wire. Raise `ValueError` for what no predictions could give."""
    return entity_sums_from_flat(flat, len(task.classes))


TOKEN_CLASSIFICATION = Task(
    name="token-classification",
    takes="tokens",
    outputs=tags_of,
    loss=lambda outputs, targets: token_losses(outputs, targets).mean(),
    losses=token_losses,
    zero=lambda task: zero(len(task.classes)),
    sums=tell_sums,
    read_sums=read_sums,
    targets=count_entities,
    strata=find_rarest_type,
    counted=lambda task: task.classes,
    count=lambda targets, task: (targets > 0).sum(0),
    predict=tell_nothing,
    columns=lambda task: (),
    answer=None,
    answered="entities",
    # every token of the first text is outside, every one of the second begins an entity
    probes=lambda task: torch.tensor([[0], [begin(0)]]),
    describe=lambda task: f"to find in texts: {', '.join(task.classes)}",
    parts=EntitySums.by_type,
    closed_form=TOKEN_HEAD,
    aligned=align_tags,
    locate=locate_entities,
    reports="entities found, answered and stated by type, right tokens, losses",
)
