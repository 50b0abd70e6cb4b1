"""What every group of keys has in common, in a plan and in a node file: frozen, strict, no unknown
key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic_core import PydanticCustomError

from fedgraft.common.files.mistakes import Contradictions, shown

T = TypeVar("T")


class Section(BaseModel):
    """A group of keys: frozen, no unknown key, no NaN, no text taken for a number.

    Attributes:
        later: keys that older releases do not have. At their defaults they are not written, so that
            the hashes of plans that were approved before stay what they are.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )
    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later keys at their defaults."""
        written = write(self)
        for key in self.later:
            if getattr(self, key) == type(self).model_fields[key].default:
                written.pop(key, None)
        return written


@dataclass(frozen=True)
class OneOf:
    """Whether a value is one of some names, which are asked for when it is read: extensions may
    have added to them. Another is told as pydantic tells it of a `Literal`.

        Kind = Annotated[str, AfterValidator(OneOf(lambda: TASKS.names))]
    """

    names: Callable[[], Sequence[str]]

    def __call__(self, value: str) -> str:
        """Return the value. Raise pydantic's own error where it is none of them."""
        known = self.names()
        if value in known:
            return value
        expected = ", ".join(f"'{name}'" for name in known)
        raise PydanticCustomError("literal_error", "one of {expected}", {"expected": expected})


def unique(values: tuple[T, ...]) -> tuple[T, ...]:
    """Return the values. Raise ValueError for one that is there twice, as they are written: 1 and
    "1" would be the same label in a CSV file.
    """
    counts = Counter(map(str, values))
    for word, times in counts.items():
        if times > 1:
            raise ValueError(f"{shown(word)} is there more than once")
    return values


def as_names(value: object) -> object:
    """Return one name as a tuple of one, and a list as a tuple; anything else as it is."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def readable(text: str) -> str:
    """Return text that can stand in a table, a file or a log. Raise ValueError for other text."""
    if not text.isprintable() or text != text.strip():
        raise ValueError("it must be printable text that neither begins nor ends with a space")
    return text


class Problem(NamedTuple):
    """Keys that do not fit together: the key to name, what is wrong, what to write instead."""

    key: str
    what: str
    remedy: str


def check_together(section: T, problems: Sequence[Problem]) -> T:
    """Return the section. Raise `Contradictions` where keys do not fit together."""
    if problems:
        raise Contradictions(problems)
    return section


Text = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(readable)]
Names = Annotated[tuple[Text, ...], Field(max_length=10_000), AfterValidator(unique)]
Labels = Annotated[
    tuple[int | Text, ...], Field(min_length=2, max_length=10_000), AfterValidator(unique)
]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
