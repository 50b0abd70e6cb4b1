"""Which tests stay in one process where `make test` runs several, and which come first.

A file's tests stay together, and all federations of real processes in one group. What takes long
comes first: whoever is left with it at the end leaves the others idle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from xdist.scheduler.loadgroup import LoadGroupScheduling

FEDERATIONS = "federations"


class GroupsAndFiles(LoadGroupScheduling):
    """Groups as they are marked, and all else by files."""

    def _split_scope(self, nodeid: str) -> str:
        scope = super()._split_scope(nodeid)
        file, _, _ = scope.partition("::")
        return file


def group_federations(items: list[pytest.Item]) -> None:
    """Mark the tests of federations as one group: two at a time beside everything else have been
    too slow for what they wait for.
    """
    for item in items:
        if item.get_closest_marker("deployment") is not None:
            item.add_marker(pytest.mark.xdist_group(FEDERATIONS))


def shares_a_federation(item: pytest.Item) -> bool:
    """Return whether a test is one of the shared federation, made once in a process."""
    return "deployed" in getattr(item, "fixturenames", ())


def put_long_files_first(items: list[pytest.Item]) -> None:
    """Sort by files: federations, then files with slow tests, those with few tests first, then all
    others, those with many tests first.
    """
    tests = Counter(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=_place(tests, slow))


def _place(tests: Counter[Path], slow: set[Path]) -> Callable[[pytest.Item], tuple[int, int]]:
    def place(item: pytest.Item) -> tuple[int, int]:
        if item.get_closest_marker("deployment") is not None:
            return 0, 0 if shares_a_federation(item) else 1
        if item.path in slow:
            return 1, tests[item.path]
        return 2, -tests[item.path]

    return place
