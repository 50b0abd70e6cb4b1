"""Which tests stay in one process where `make test` runs several, and which come first.

A file's tests stay together, and all federations of real processes in one group: two at a time
beside everything else have been too slow for what they wait for, and one that only waits takes a
fifth of a core. What takes long comes first: whoever is left with it at the end leaves the others
idle.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]
FEDERATIONS = "federations"


class FederationsAndFiles(LoadScopeScheduling):
    """All federations are one unit of work, and each other file is one.

    xdist's own groups are not used: it writes them behind the tests' names, and pytest 9.2 no
    longer takes them from there.
    """

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        return FEDERATIONS if is_of_federations(Path(file)) else file


@functools.cache
def is_of_federations(file: Path) -> bool:
    """Whether a file's tests start federations of real processes: their mark says so."""
    return "pytest.mark.deployment" in (ROOT / file).read_text()


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
        if is_of_federations(item.path):
            return 0, 0 if shares_a_federation(item) else 1
        if item.path in slow:
            return 1, tests[item.path]
        return 2, -tests[item.path]

    return place
