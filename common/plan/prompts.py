"""Texts that say what the classes of a plan are: what a pair of encoders (CLIP) answers by before
anything is learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from fedgraft.common.plan.section import Names, Text, as_names

# where a class's name stands in a text that is written once for all classes
PLACE = "{}"
# Radford et al. 2021, §3.1.4
USUAL = (f"a photo of a {PLACE}.",)


class TextsByClass(dict[str, tuple[str, ...]]):
    """Texts by class, never changed: what is opened once is kept under a task's sections."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items())))


Texts = Annotated[Names, BeforeValidator(as_names), Field(min_length=1)]
TextsOfClasses = Annotated[
    dict[Text, Texts], Field(max_length=10_000), AfterValidator(TextsByClass)
]
Prompts = Texts | TextsOfClasses


def find_mistake(prompts: Prompts, classes: tuple[str, ...]) -> tuple[str, str] | None:
    """Return what is wrong with a plan's texts, and what to write instead; None: nothing is."""
    if isinstance(prompts, Mapping):
        missing = [name for name in classes if name not in prompts]
        foreign = [name for name in prompts if name not in classes]
        if missing:
            return f"no text for {missing[0]!r}", "write a text for each class"
        if foreign:
            return f"{foreign[0]!r} is none of the classes", "write a text for each class"
        return _find_same(prompts)
    for text in prompts:
        if text.count(PLACE) != 1:
            remedy = f"write where the class's name goes, such as {USUAL[0]!r}; or texts by class"
            return f"{text!r}, and it would be the same for every class", remedy
    return None


def _find_same(prompts: Mapping[str, tuple[str, ...]]) -> tuple[str, str] | None:
    """Return the mistake of two classes that the same texts stand for; None: there are none."""
    first_of: dict[frozenset[str], str] = {}
    for name, texts in prompts.items():
        other = first_of.setdefault(frozenset(texts), name)
        if other != name:
            what = f"{other!r} and {name!r} have the same texts, and could not be told apart"
            return what, "write other texts for one of them"
    return None


def list_texts(prompts: Prompts, classes: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the texts of each class, in the order of the classes; `prompts` have no mistake."""
    if isinstance(prompts, Mapping):
        return [prompts[name] for name in classes]
    texts: list[tuple[str, ...]] = []
    for name in classes:
        texts.append(tuple(text.replace(PLACE, name) for text in prompts))
    return texts
