"""Closed tables of members by name: a seam lists who stands in it, and nothing else ever does."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Generic, TypeVar

from fedgraft.common.errors import UserError

Member = TypeVar("Member")


@dataclass(frozen=True)
class Line:
    """A line of a registry; with more fields, what must be known of a member without importing it.

    Attributes:
        member: "module:attribute".
    """

    member: str


class Registry(Generic[Member]):
    """Members of one seam by the name that a plan calls them; each imported when asked for.

    The table is written in our own source, a line a member. A name out of a plan picks a line of
    it; it never becomes a module's name itself.

        RULES: Registry[Rule] = Registry(
            "aggregate.strategy", "rule", {"fedavg": "fedgraft.server.aggregation.fedavg:FEDAVG"}
        )
        RULES["fedavg"].combine(…)

    Args:
        key: of the plan or file that holds the name, for messages.
        what: a member is called in messages.
        members: name → "module:attribute", or a `Line`.
    """

    def __init__(self, key: str, what: str, members: Mapping[str, str | Line]) -> None:
        self.key = key
        self.what = what
        self._members: dict[str, str] = {}
        for name, line in members.items():
            if isinstance(line, Line):
                line = line.member
            self._members[name] = line

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names, in the order of the table. Imports no member."""
        return tuple(self._members)

    def __getitem__(self, name: str) -> Member:
        """Return a member. Raises `UserError` for a name that is not in the table."""
        if name not in self._members:
            raise self.unknown(name)
        module, _, attribute = self._members[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def values(self) -> list[Member]:
        """Return all members, in the order of the table."""
        return [self[name] for name in self._members]

    def unknown(self, name: str) -> UserError:
        """Return what to say of a name that is not in the table."""
        near = get_close_matches(name, self._members, n=1, cutoff=0.5)
        remedy = f"write one of {', '.join(self.names)}"
        if near:
            remedy = f"did you mean {near[0]!r}?"
        return UserError(f"no {self.what} is called {name!r}", where=self.key, remedy=remedy)
