"""The house as a whole: no circle of imports, and a file name that means one file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
ROOMS = ("fedgraft", "client", "common", "server", "simulations")
# each room has its own: a door of Flower's, a command, what makes a folder a package
IN_EVERY_ROOM = {"__init__.py", "app.py", "cli.py"}


def first_circle(imports: Mapping[str, set[str]]) -> list[str]:
    """Return modules that import one another in a ring, the first again at the end; [] for none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_a_circle_is_seen() -> None:
    assert first_circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(first_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def test_no_module_imports_itself_round_about() -> None:
    """Two files that can only be read together; an import hidden in a function is one, too."""
    graph = grimp.build_graph("fedgraft", exclude_type_checking_imports=True, cache_dir=None)
    assert len(graph.modules) > 250
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert first_circle(imports) == []


def source_files() -> Iterator[Path]:
    """Yield the files of all rooms; the links that gather them in one package are not followed."""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            if not path.is_symlink() and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT)


def test_a_file_name_occurs_once() -> None:
    """`manifest.py:12` in a traceback or in conversation, and nobody knows which."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path in source_files():
        places[path.name].append(str(path))
    assert len(places) > 200
    twice = [
        paths for name, paths in places.items() if len(paths) > 1 and name not in IN_EVERY_ROOM
    ]
    assert twice == []
