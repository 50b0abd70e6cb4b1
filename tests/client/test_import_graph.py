"""What the hospital's modules import: reading node.yaml is light, and no module needs itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What only start-up time is a reason for: each verb of the command imports what it needs.
LATE = ("client/cli.py",)


def module_of(path: Path) -> str:
    name = ".".join(("fedgraft", *path.relative_to(ROOT).with_suffix("").parts))
    return name.removesuffix(".__init__")


def modules(room: str) -> dict[str, Path]:
    return {module_of(path): path for path in sorted((ROOT / room).rglob("*.py"))}


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules among `known` that a file imports anywhere, for its types alone included."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module)
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    return imported & set(known)


@pytest.mark.parametrize("room", ["client"])
def test_no_module_needs_itself(room: str) -> None:
    """Two modules that need each other cannot be read, or moved, one after the other."""
    known = modules(room)
    graph = {module: imports_of(path, known) for module, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(" → ".join(circle.args[1]))


def test_node_yaml_is_read_without_torch() -> None:
    """`fedgraft node …` must answer at once, and a watchdog that reads a file needs no gigabyte."""
    code = (
        "import sys; from fedgraft.client.node.node_file import load_node;"
        "heavy = {'torch', 'flwr', 'sklearn', 'PIL'} & set(sys.modules); sys.exit(str(heavy or 0))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.stderr.strip() == "0"


def test_late_imports_of_our_own_are_for_the_command_only() -> None:
    """A late import hides a circle; where start-up time is the reason, it is the command's."""
    late = []
    for path in modules("client").values():
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                late += [
                    f"{path.relative_to(ROOT)}: {node.module}"
                    for node in ast.walk(function)
                    if isinstance(node, ast.ImportFrom)
                    and str(node.module).startswith("fedgraft.client")
                    and path.relative_to(ROOT).as_posix() not in LATE
                ]
    assert late == []
