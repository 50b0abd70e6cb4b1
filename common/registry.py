"""Tables of members by name: a seam lists who stands in it.

`common/extensions.py` alone adds lines, of code that a person approved or registered; a plan never
does.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from fedgraft.common.errors import UserError

Member = TypeVar("Member")
# what a member is called → name → line: of code that a person approved or registered
_ADDED: dict[str, dict[str, Any]] = {}


def add_line(what: str, name: str, line: Any) -> None:
    """Add a line to the table whose members are called so, in place of an earlier addition."""
    _ADDED.setdefault(what, {})[name] = line


@dataclass(frozen=True)
class Line:
    """A line of a registry; with more fields, what must be known of a member without importing it.

    Attributes:
        member: "module:attribute", or the member itself.
    """

    member: Any


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

    def __init__(self, key: str, what: str, members: Mapping[str, Any]) -> None:
        self.key = key
        self.what = what
        self._own = members

    @property
    def lines(self) -> Mapping[str, Any]:
        """Return the lines by name: what was added, then the table's own. A name of the table
        cannot be taken by an addition.
        """
        return _ADDED.get(self.what, {}) | dict(self._own)

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names, in the order of the table. Imports no member."""
        return tuple(self.lines)

    def __getitem__(self, name: str) -> Member:
        """Return a member. Raises `UserError` for a name that is not in the table."""
        lines = self.lines
        if name not in lines:
            raise self.unknown(name)
        member = lines[name]
        if isinstance(member, Line):
            member = member.member
        if not isinstance(member, str):
            return member
        module, _, attribute = member.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self.lines

    def __iter__(self) -> Iterator[str]:
        return iter(self.lines)

    def values(self) -> list[Member]:
        """Return all members, in the order of the table."""
        return [self[name] for name in self.lines]

    def unknown(self, name: str) -> UserError:
        """Return what to say of a name that is not in the table."""
        near = get_close_matches(name, self.lines, n=1, cutoff=0.5)
        remedy = f"write one of {', '.join(self.names)}"
        if near:
            remedy = f"did you mean {near[0]!r}?"
        return UserError(f"no {self.what} is called {name!r}", where=self.key, remedy=remedy)
