"""What every group of keys has in common, in a plan and in a node file: frozen, strict, no unknown
key.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fedgraft.common.files.mistakes import Contradictions, shown

T = TypeVar("T")


class Section(BaseModel):
    """A group of keys: frozen, no unknown key, no NaN, no text taken for a number."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


def unique(values: tuple[T, ...]) -> tuple[T, ...]:
    """Compared as they are written: 1 and "1" would be the same label in a CSV file. Raises
    ValueError.
    """
    twice = [word for word, times in Counter(str(value) for value in values).items() if times > 1]
    if twice:
        raise ValueError(f"{shown(twice[0])} is there more than once")
    return values


def readable(text: str) -> str:
    """Text that can stand in a table, a file or a log. Raises ValueError."""
    if not text.isprintable() or text != text.strip():
        raise ValueError("it must be printable text that neither begins nor ends with a space")
    return text


def checked(section: T, found: list[tuple[str, str, str]]) -> T:
    """The section, or Contradictions if keys do not fit together: (key, what is wrong, what to
    write instead).
    """
    if found:
        raise Contradictions(found)
    return section


Text = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(readable)]
Names = Annotated[tuple[Text, ...], Field(max_length=10_000), AfterValidator(unique)]
Labels = Annotated[
    tuple[int | Text, ...], Field(min_length=2, max_length=10_000), AfterValidator(unique)
]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
